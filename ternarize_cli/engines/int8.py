"""A rival in 8 bits on a GPU: int8 weights and activations in PyTorch's product `torch._int_mm`.

Each row of a weight has a scale, computed once; the activations of each token have a scale, computed in every pass
(W8A8, dynamic). Sums are int32 and exact; all else is fp16. The product needs more than 16 rows and widths that are
multiples of 8, so few rows are padded, and linears of other widths stay fp16.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternarize_cli.engines.baselines import ROUNDED, Forward, forward_of, rival
from ternarize_cli.engines.compiled import fixed_shapes, without_gpu_compiler
from ternarize_cli.engines.exports import transformer

__all__ = ["Int8Linear", "replace_linears"]

_ROWS, _MULTIPLE, _LARGEST = 32, 8, 127
_TINY = 1e-8


class Int8Linear(nn.Module):
    """A linear in int8, from `[..., in]` to `[..., out]`."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp_min(_TINY) / _LARGEST
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Rounds activations `[..., in]` to int8 and multiplies: `[..., out]`."""
        rows = x.reshape(-1, x.shape[-1])
        count = rows.shape[0]
        t = rows.abs().amax(dim=1, keepdim=True).float().clamp_min(_TINY) / _LARGEST
        q = (rows / t).round().to(torch.int8)
        if count < _ROWS:
            q = F.pad(q, (0, 0, 0, _ROWS - count))
        y = torch._int_mm(q, self.weight.t())[:count] * t * self.scale
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).reshape(*x.shape[:-1], self.weight.shape[0])


def replace_linears(model: nn.Module) -> nn.Module:
    """Replaces each linear of suitable widths by an `Int8Linear`; returns the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and not (child.in_features % _MULTIPLE or child.out_features % _MULTIPLE):
                setattr(module, name, Int8Linear(child))
    return model


@rival(
    "torch-int8",
    "PyTorch, int8 weights and activations (torch._int_mm), the rest fp16, eager",
    cuda_only=True,
    tolerance=ROUNDED,
    same_vectors=True,
)
def _torch_int8(folder: Path, device: str) -> Forward:
    return forward_of(replace_linears(transformer(folder, torch.float16).to(device)), torch.float16)


@rival(
    "torch-int8-compiled",
    "torch-int8 with torch.compile, CUDA graphs",
    missing=without_gpu_compiler,
    cuda_only=True,
    tolerance=ROUNDED,
    same_vectors=True,
)
def _torch_int8_compiled(folder: Path, device: str) -> Forward:
    model = replace_linears(transformer(folder, torch.float16).to(device))
    return fixed_shapes("torch-int8-compiled", model, torch.float16, mode="reduce-overhead")
