"""The rivals: what a packed model is compared with.

A rival is a way to run the same encoder in full width. It is built from a folder with full-precision weights and
gives a `Forward`: token ids and attention mask in, last hidden state out. Rivals register by name, so adding one is
adding a function (or a file):

    @rival("onnx-fp32", "ONNX Runtime, fp32")
    def _onnx_fp32(folder: Path, device: str) -> Forward: ...

Names start with the library that runs them: torch-*, onnx-*, openvino-*.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ternarize_cli.errors import InputError

__all__ = ["Forward", "Rival", "forward_of", "names", "require", "rival"]

Forward = Callable[[Tensor, Tensor], Tensor]
"""ids: [batch, tokens] int64, mask: [batch, tokens] int64 → last hidden state: [batch, tokens, width]."""


@dataclass(frozen=True)
class Rival:
    """A registered rival: `build(folder, device)` loads the full-precision model in `folder` for it."""

    name: str
    summary: str
    build: Callable[[Path, str], Forward]


_RIVALS: dict[str, Rival] = {}


def rival(name: str, summary: str) -> Callable[[Callable[[Path, str], Forward]], Callable[[Path, str], Forward]]:
    """Registers the decorated build function under `name`."""

    def register(build: Callable[[Path, str], Forward]) -> Callable[[Path, str], Forward]:
        _RIVALS[name] = Rival(name, summary, build)
        return build

    return register


def names() -> list[str]:
    """All registered rivals, in the order in which they registered."""
    return list(_RIVALS)


def require(name: str) -> Rival:
    """The rival of that name.

    Raises:
        InputError: there is none.
    """
    if name not in _RIVALS:
        raise InputError(f"there is no rival {name!r} to compare with", hint="--against one of: " + ", ".join(_RIVALS))
    return _RIVALS[name]


def forward_of(model: nn.Module) -> Forward:
    """The `Forward` of a transformers encoder. Returns when the result is there, on a GPU too."""

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        if hidden.is_cuda:
            torch.cuda.synchronize(hidden.device)
        return hidden

    return forward


@rival("torch-fp32", "PyTorch, fp32, eager")
def _torch_fp32(folder: Path, device: str) -> Forward:
    return _torch(folder, device, torch.float32)


@rival("torch-bf16", "PyTorch, bf16 weights and activations, eager")
def _torch_bf16(folder: Path, device: str) -> Forward:
    return _torch(folder, device, torch.bfloat16)


def _torch(folder: Path, device: str, dtype: torch.dtype) -> Forward:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=dtype, local_files_only=True)
    return forward_of(model.to(device).eval())
