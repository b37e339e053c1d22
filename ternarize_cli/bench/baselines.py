"""The rivals: what a packed model is compared with.

A rival is a way to run the same encoder in full width. It is built from a folder with full-precision weights and
gives a `Forward`: token ids and attention mask in, last hidden state out. Rivals register by name, so adding one is
adding a function (or a file, as `onnx` and `openvino`):

    @rival("onnx-fp32", "ONNX Runtime, fp32", needs=("onnx", "onnxscript", "onnxruntime"))
    def _onnx_fp32(folder: Path, device: str) -> Forward: ...

Names start with the library that runs them: torch-*, onnx-*, openvino-*. A rival whose packages are not installed is
known all the same, so that asking for it can say what to install.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from ternarize_cli.bench.exports import full_precision
from ternarize_cli.errors import InputError, UnavailableError

__all__ = ["Forward", "Rival", "forward_of", "names", "on_cpu", "require", "rival"]

Forward = Callable[[Tensor, Tensor], Tensor]
"""ids: [batch, tokens] int64, mask: [batch, tokens] int64 → last hidden state: [batch, tokens, width]."""


Build = Callable[[Path, str], Forward]


@dataclass(frozen=True)
class Rival:
    """A registered rival: `build(folder, device)` loads the full-precision model in `folder` for it.

    `needs` are the packages, beside ours, that it imports.
    """

    name: str
    summary: str
    build: Build
    needs: tuple[str, ...] = ()


_RIVALS: dict[str, Rival] = {}


def rival(name: str, summary: str, *, needs: tuple[str, ...] = ()) -> Callable[[Build], Build]:
    """Registers the decorated build function under `name`."""

    def register(build: Build) -> Build:
        _RIVALS[name] = Rival(name, summary, build, needs)
        return build

    return register


def names() -> list[str]:
    """All registered rivals, in the order in which they registered, installed or not."""
    return list(_RIVALS)


def require(name: str) -> Rival:
    """The rival of that name.

    Raises:
        InputError: there is none.
        UnavailableError: packages that it needs are not installed.
    """
    if name not in _RIVALS:
        raise InputError(f"there is no rival {name!r} to compare with", hint="--against one of: " + ", ".join(_RIVALS))
    missing = [package for package in _RIVALS[name].needs if importlib.util.find_spec(package) is None]
    if missing:
        raise UnavailableError(f"{name} needs {', '.join(missing)}", hint="pip install 'ternarize-cli[rivals]'")
    return _RIVALS[name]


def on_cpu(name: str, device: str) -> None:
    """Refuses any other device.

    Raises:
        UnavailableError: the rival runs on the CPU only.
    """
    if torch.device(device).type != "cpu":
        raise UnavailableError(f"{name} runs on the CPU, not on {device}", hint="leave it out, or --device cpu")


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


@rival("torch-fp16", "PyTorch, fp16 weights and activations, eager")
def _torch_fp16(folder: Path, device: str) -> Forward:
    return _torch(folder, device, torch.float16)


def _torch(folder: Path, device: str, dtype: torch.dtype) -> Forward:
    return forward_of(full_precision(folder, dtype).to(device))


for _module in ("onnx", "openvino"):
    import_module(f"ternarize_cli.bench.{_module}")
