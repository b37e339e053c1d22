"""Runs packed linears through PyTorch's oneDNN int8 GEMM, on AVX2, VNNI or AMX, without a compiler or extra package.

The operator multiplies unsigned 8-bit activations (zero point 128) by signed 8-bit weights with a scale per output.
Codes are expanded to int8 once. The operator takes one scale for all activations, so that scale is 1, and the scales of
the tokens are applied to the output: the float32 output is then the exact integer sum times the row's scale. From there
on the operations and their order are those of `ternary_linear`, so results are bit for bit those of `reference`; a
fused multiply-add would differ in the last bit, and int8 rounding in later layers can turn this into a difference of a
percent. Without VNNI, oneDNN adds pairs of products in 16 bits, which saturates for general weights. The codes of every
grid are small enough: a pair is at most 510 for ternary and 4,080 for int4, and the limit is 32,767.

`qlinear_prepack` gets a shape hint, without which every call would reorder the weights again.
"""

import platform

import torch
from torch import Tensor

from ternarize_cli.arithmetic.ternary import quantize_tokens
from ternarize_cli.format.scheme import LEVELS
from ternarize_cli.kernels import Kernel, register
from ternarize_cli.layers import PackedLinear

__all__ = ["OneDnn"]

_ZERO_POINT = 128
_HINT_ROWS = 16


@register
class OneDnn:
    """The backend `onednn`: int8 activations × int8 codes through `torch.ops.onednn`."""

    name = "onednn"
    device = "cpu"
    weights = "int8, expanded at load"
    levels: tuple[str, ...] = tuple(LEVELS)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Says what this machine lacks, an x86 CPU with AVX2 or a torch built with oneDNN; None if it has both."""
        if platform.machine().lower() not in ("x86_64", "amd64"):
            return f"it needs an x86 CPU, this is {platform.machine()}"
        if not torch.backends.mkldnn.is_available():
            return "this torch is built without oneDNN"
        if torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "NO AVX"):
            return "this CPU has no AVX2 (or ATEN_CPU_CAPABILITY hides it)"
        return None

    def refuses(self, layer: PackedLinear) -> str | None:
        """Says why a layer can't run: it is not on the CPU, or its activations are not int8; None if it can."""
        if layer.weight.device.type != "cpu":
            return f"the model is on {layer.weight.device}, and onednn runs on the CPU"
        if layer.scheme.activation_bits != 8:
            return "its activations are not int8"
        return None

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Expands the codes to int8, which oneDNN reorders, and makes the function from `[..., in]` to `[..., out]`."""
        weight = torch.ops.onednn.qlinear_prepack(layer.codes(), [_HINT_ROWS, layer.in_features])
        scale = layer.weight_scale.float().flatten().expand(layer.out_features).contiguous()
        zero_points = torch.zeros(layer.out_features, dtype=torch.int32)
        bias = None if layer.bias is None else layer.bias.float()
        out_features = layer.out_features

        def run(x: Tensor) -> Tensor:
            rows = x.reshape(-1, x.shape[-1]).float()
            q, t = quantize_tokens(rows)
            q = q.add_(_ZERO_POINT).to(torch.uint8)
            y = torch.ops.onednn.qlinear_pointwise(
                q, 1.0, _ZERO_POINT, weight, scale, zero_points, None, 1.0, 0, torch.float32, "none", [], ""
            )
            y = y.mul_(t)
            if bias is not None:
                y += bias
            output: Tensor = y.to(x.dtype).reshape(*x.shape[:-1], out_features)
            return output

        return run
