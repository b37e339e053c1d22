"""Runs packed linears in 8-bit floating point on NVIDIA GPUs: e4m3 in PyTorch's scaled matrix product.

Integers up to 16 are exact in e4m3, and so are the codes of all levels: the fp8 tensor cores of Ada, Hopper and newer
multiply them at twice the rate of float16. Activations are rounded to e4m3, not to int8, with one scale per token; this
changes vectors about as much as unrounded activations do (docs/research/gpu.md). Weights take a byte each. Encoders
whose blocks are described run fused (`gpu.encoder`); of other encoders only the linears run, in operations that
torch.compile takes without a graph break.
"""

import torch
from torch import Tensor, nn

from ternarize_cli.format.scheme import LEVELS
from ternarize_cli.kernels import Kernel, register
from ternarize_cli.kernels.triton import missing, refuses
from ternarize_cli.layers import PackedLinear

__all__ = ["ScaledMm"]

_LARGEST = 448.0
_TINY = 1e-30


@register
class ScaledMm:
    """The backend `scaled_mm`: e4m3 activations × e4m3 codes."""

    name = "scaled_mm"
    device = "cuda"
    weights = "e4m3, expanded at load"
    levels: tuple[str, ...] = tuple(LEVELS)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Says what is missing, an NVIDIA GPU with fp8 (Ada, Hopper or newer) or Triton; None if neither is."""
        return missing((8, 9), "Ada, and has no fp8 tensor cores")

    def refuses(self, layer: PackedLinear) -> str | None:
        """Says why a layer can't run; None if it is on a GPU, has 8-bit activations, and widths in multiples of 16."""
        return refuses(self.name, layer)

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Expands the codes to e4m3, and makes the function from `[..., in]` to `[..., out]`."""
        from ternarize_cli.kernels.gpu.e4m3 import scaled_mm

        weight = layer.codes().to(torch.float8_e4m3fn)
        scale = layer.weight_scale.float().flatten().expand(layer.out_features).contiguous()
        bias = None if layer.bias is None else layer.bias.bfloat16()
        out_features = layer.out_features

        def run(x: Tensor) -> Tensor:
            rows = x.reshape(-1, x.shape[-1]).float()
            t = rows.abs().amax(dim=-1) / _LARGEST
            q = (rows / t.clamp_min(_TINY)[:, None]).to(torch.float8_e4m3fn)
            y = scaled_mm(q, t, weight, scale, bias)
            return y.to(x.dtype).reshape(*x.shape[:-1], out_features)

        return run

    def fuse(self, model: nn.Module) -> str | None:
        """Replaces the model's `forward` by a fused one, and returns None; or returns the reason why it can't."""
        from ternarize_cli.kernels.gpu.e4m3 import E4m3
        from ternarize_cli.kernels.gpu.forward import run_fused
        from ternarize_cli.kernels.stack import Stack

        reason = run_fused(model, self.name, E4m3, self.levels)
        if reason is None:
            stack = Stack.of(model)
            for layer in (m for i in range(len(stack.layers)) for m in stack.linears(i)):
                layer.release()
        return reason
