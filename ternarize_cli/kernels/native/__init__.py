"""Runs packed models in PyTorch on the compiled library of `runtime`: weights stay at 2 bits, encoders run in one call.

`encoder` runs whole models; a model that it does not cover runs through its own modules, with the kernel of this module
for each linear. Both compute the integer sums of `reference`. A fused encoder does the float arithmetic between them in
another order, so its vectors can differ where int8 rounding amplifies a last-bit difference (docs/research/cpu.md).
"""

from functools import cache

import torch
from torch import Tensor, nn

from ternarize_cli.errors import UnavailableError
from ternarize_cli.kernels import Kernel, register
from ternarize_cli.layers import PackedLinear
from ternarize_cli.runtime.native.interface import BITS, MAX_INPUTS, MAX_INPUTS_INT4, MAX_OUTPUTS
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.native.threads import set_threads
from ternarize_cli.runtime.native.weights import PackedCodes

__all__ = ["Native"]

set_threads(torch.get_num_threads)


@register
class Native:
    """The backend `native`: int8 activations × 2-bit codes on AMX, AVX-512 VNNI, AVX-VNNI, AVX2, NEON, or plain C++.

    Codes of int4 linears take 4 bits.
    """

    name = "native"
    device = "cpu"
    weights = "2-bit"
    levels: tuple[str, ...] = tuple(BITS)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Says why the library, which is compiled when the package is installed, can't be used; None if it can."""
        try:
            library()
        except UnavailableError as e:
            return str(e.args[0])
        return None

    def refuses(self, layer: PackedLinear) -> str | None:
        """Says why a layer can't run: it is not on the CPU, is not int8, or is too large; None if it can."""
        if layer.weight.device.type != "cpu":
            return f"the model is on {layer.weight.device}, and native runs on the CPU"
        if layer.scheme.activation_bits != 8:
            return "its activations are not int8"
        most = MAX_INPUTS if layer.scheme.levels == "ternary" else MAX_INPUTS_INT4
        if layer.in_features > most or layer.out_features > MAX_OUTPUTS:
            return f"it is {layer.in_features:,} × {layer.out_features:,}, and {most:,} inputs are the most"
        return None

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Makes the function from `[..., in]` to `[..., out]`, which lays the codes out when it is first called.

        The layers of a fused encoder are not called one by one, so nothing is laid out for them here.
        """
        lib = library()

        @cache
        def packed() -> PackedCodes:
            scale = layer.weight_scale.detach().float().flatten().expand(layer.out_features).numpy()
            bias = None if layer.bias is None else layer.bias.detach().float().numpy()
            return PackedCodes(lib, layer.codec, layer.weight.numpy(), layer.in_features, scale, bias)

        def run(x: Tensor) -> Tensor:
            y = torch.from_numpy(lib.linear(packed(), x.detach().reshape(-1, x.shape[-1]).float().numpy()))
            return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

        return run

    def fuse(self, model: nn.Module) -> str | None:
        """Replaces the model's `forward` by one call of the library, and returns None; or returns why it can't."""
        from ternarize_cli.kernels.fused_encoder import tell_unfused
        from ternarize_cli.kernels.native.encoder import NativeForward
        from ternarize_cli.kernels.stack import Stack, refusal
        from ternarize_cli.runtime.blocks import head_refusal

        reason = refusal(model, self.levels) or head_refusal(Stack.of(model).block)
        if reason is None:
            forward = NativeForward(model)
            reason = forward.checked()
            if reason is None:
                model.forward = forward
            else:
                tell_unfused(model, reason)
        return reason
