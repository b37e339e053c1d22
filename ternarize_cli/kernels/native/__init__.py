"""Our own runtime for CPUs: weights stay at 2 bits, and encoders of the usual shapes run in one call.

`encoder` runs whole models; what it does not cover runs through the ordinary modules with the kernel below. Both give
the integers of `reference`; the float arithmetic around them is done in another order, so vectors differ by what int8
rounding makes of a last bit (docs/research/cpu.md).
"""

from functools import cache

from torch import Tensor, nn

from ternarize_cli.errors import UnavailableError
from ternarize_cli.kernels import Kernel, register
from ternarize_cli.kernels.native.interface import MAX_INPUTS, MAX_OUTPUTS
from ternarize_cli.kernels.native.library import PackedCodes, library
from ternarize_cli.layers import PackedLinear

__all__ = ["Native"]


@register
class Native:
    """int8 activations × 2-bit codes: AMX, AVX-512 VNNI, AVX2, NEON, or plain C++."""

    name = "native"
    device = "cpu"
    weights = "2-bit"
    levels: tuple[str, ...] = ("ternary",)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Needs the library that is compiled when the package is installed."""
        try:
            library()
        except UnavailableError as e:
            return str(e.args[0])
        return None

    def refuses(self, layer: PackedLinear) -> str | None:
        """Takes int8 activations on the CPU."""
        if layer.weight.device.type != "cpu":
            return f"the model is on {layer.weight.device}, and native runs on the CPU"
        if layer.scheme.activation_bits != 8:
            return "its activations are not int8"
        if layer.in_features > MAX_INPUTS or layer.out_features > MAX_OUTPUTS:
            return f"it is {layer.in_features:,} × {layer.out_features:,}, and {MAX_INPUTS:,} inputs are the most"
        return None

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Lays the codes out for the processor, when the layer runs for the first time: most never run on their own."""
        lib = library()

        @cache
        def packed() -> PackedCodes:
            scale = layer.weight_scale.float().flatten().expand(layer.out_features)
            return PackedCodes(lib, layer.codec, layer.weight, layer.in_features, scale, layer.bias)

        def run(x: Tensor) -> Tensor:
            y = lib.linear(packed(), x.reshape(-1, x.shape[-1]).float())
            return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

        return run

    def fuse(self, model: nn.Module) -> str | None:
        """Lets a whole model run in one call, or says why it can't and runs its linears only."""
        from ternarize_cli.kernels.fused_encoder import refusal
        from ternarize_cli.kernels.native.encoder import NativeForward, head_refusal

        reason = refusal(model) or head_refusal(model)
        if reason is None:
            model.forward = NativeForward(model)
        return reason
