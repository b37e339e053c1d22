"""The backend of BitBLAS: int8 or float16 activations × 2-bit weights on NVIDIA GPUs (extra `ternarize-cli[bitblas]`).

    operators    kernels built in parallel, loaded, checked                ▲
    kernel_cache compiled kernels on disk                                  │ uses
    toolchain    what is missing; flags for the card                       │
    layout       widths and weights in the form that the kernels read      │
    generate     the process in which BitBLAS writes a kernel              │

The library (arXiv 2411.15438 uses it) writes a CUDA kernel for a weight shape, and nvcc compiles it, which takes about
ten seconds the first time. int8 products are exact; float16 products are summed in float32. Encoders
whose blocks are described run fused (`bitblas.products`).
"""

import importlib.util
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ternarize_cli.arithmetic.ternary import quantize_tokens
from ternarize_cli.kernels import Kernel, register

if TYPE_CHECKING:
    from ternarize_cli.kernels.bitblas.operators import OperatorShape
    from ternarize_cli.layers import PackedLinear

__all__ = ["BitBlas"]


@register
class BitBlas:
    """The backend: int8 × int2 and float16 × int2 products in BitBLAS's kernels."""

    name = "bitblas"
    device = "cuda"
    weights = "int2, laid out at load"
    levels: tuple[str, ...] = ("ternary",)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Says which is missing: an NVIDIA GPU (Ampere or newer), nvcc, or the package with its CUDA 12 libraries."""
        from ternarize_cli.kernels.bitblas import toolchain

        return toolchain.missing()

    def note(self) -> str | None:
        """Says why this backend starts slowly; None if it does not."""
        from ternarize_cli.kernels.bitblas import kernel_cache

        return kernel_cache.unwritable()

    def refuses(self, layer: "PackedLinear") -> str | None:
        """Says why a layer can't run: it must be on a GPU; its widths may be any."""
        if layer.weight.device.type != "cuda":
            return f"the model is on {layer.weight.device}, and bitblas runs on cuda"
        return None

    def prepare(self, layer: "PackedLinear") -> Kernel:
        """Starts to build the operator; weights are laid out when the layer runs for the first time."""
        from ternarize_cli.kernels.bitblas import operators
        from ternarize_cli.kernels.bitblas.layout import lay_out

        shape = _shape(layer)
        operators.start(shape)
        out_features, bias = layer.out_features, layer.bias
        scale = layer.weight_scale.float().flatten()
        made: list[Tensor] = []

        def run(x: Tensor) -> Tensor:
            operator = operators.get(shape)
            if not made:
                made.append(lay_out(layer.codes(), shape.activations))
            rows = x.reshape(-1, x.shape[-1])
            q, t = quantize_tokens(rows) if shape.activations == "int8" else _scaled(rows)
            y = operator(q, made[0])[:, :out_features].float() * scale * t
            if bias is not None:
                y = y + bias.float()
            return y.to(x.dtype).reshape(*x.shape[:-1], out_features)

        return run

    def fuse(self, model: nn.Module) -> str | None:
        """Waits for the model's operators, and runs a model of int8 activations fused; or else says why it can't.

        Raises:
            UnavailableError: an operator can't be built, or its results are wrong.
        """
        from ternarize_cli.kernels.bitblas import operators
        from ternarize_cli.layers import PackedLinear

        layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
        shapes = [_shape(layer) for layer in layers]
        reason = _refusal(layers)
        if reason is None:
            from ternarize_cli.kernels.bitblas.products import BitBlasProducts, shapes_of
            from ternarize_cli.kernels.gpu.forward import run_fused

            reason = run_fused(model, self.name, BitBlasProducts)
            shapes += [] if reason else shapes_of(model)
        operators.build(shapes)
        return reason


def _refusal(layers: "list[PackedLinear]") -> str | None:
    """Says why a model with these layers does not run fused; None if it can."""
    if any(layer.scheme.activation_bits != 8 for layer in layers):
        return "its activations are not int8"
    if any(layer.in_features % 16 or layer.out_features % 16 for layer in layers):
        return "a linear's width is no multiple of 16"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    return None


def _shape(layer: "PackedLinear") -> "OperatorShape":
    from ternarize_cli.kernels.bitblas.operators import OperatorShape

    activations = "int8" if layer.scheme.activation_bits == 8 else "float16"
    return OperatorShape.of(layer.out_features, layer.in_features, activations)


def _scaled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Divides rows by powers of two to fit float16: float16 `[rows, in]` within ±1, and float32 `[rows, 1]`."""
    x = x.float()
    exponent = torch.frexp(x.abs().amax(dim=-1, keepdim=True)).exponent
    return torch.ldexp(x, -exponent).half(), torch.ldexp(torch.ones_like(x[:, :1]), exponent)
