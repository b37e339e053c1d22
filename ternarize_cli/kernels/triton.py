"""The backend of 2-bit weights on NVIDIA GPUs, in Triton: int8 activations, int8 tensor cores, exact sums.

In device memory the weights have the bits of the file. Encoders of the usual shapes run fused (`gpu.encoder`); of
others the linears run. Triton comes with torch on Linux if torch is built for CUDA.
"""

import importlib.util

import torch
from torch import Tensor, nn

from ternarize_cli.kernels import Kernel, register
from ternarize_cli.layers import PackedLinear

__all__ = ["Triton", "missing", "refuses"]

_MULTIPLE = 16  # the GPU's unit that copies tiles needs rows of a multiple of these bytes


def missing(oldest: tuple[int, int], wanted: str) -> str | None:
    """Says whether a GPU of this compute capability or newer, or Triton, is missing; None if neither is."""
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if torch.version.cuda is None:
        return "this torch is not built for NVIDIA GPUs"
    if torch.cuda.get_device_capability() < oldest:
        return f"{torch.cuda.get_device_name()} is older than {wanted}"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with torch for CUDA on Linux)"
    return None


def refuses(name: str, layer: PackedLinear) -> str | None:
    """Says why a layer can't run on a GPU with 8-bit activations; None if it can."""
    if layer.weight.device.type != "cuda":
        return f"the model is on {layer.weight.device}, and {name} runs on cuda"
    if layer.scheme.activation_bits != 8:
        return "its activations are not int8"
    if layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE:
        return f"a linear is {layer.out_features} × {layer.in_features}, and {name} takes multiples of {_MULTIPLE}"
    return None


@register
class Triton:
    """The backend: int8 activations × 2-bit weights."""

    name = "triton"
    device = "cuda"
    weights = "2-bit"
    levels: tuple[str, ...] = ("ternary",)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Says which is missing: an NVIDIA GPU (Ampere or newer), or Triton; None if neither is."""
        return missing((8, 0), "Ampere")

    def refuses(self, layer: PackedLinear) -> str | None:
        """Says why a layer can't run: it needs int8 activations, widths that are multiples of 16, and a GPU."""
        return refuses(self.name, layer)

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Makes the kernel of a layer when it runs for the first time; in a fused encoder this never happens."""
        from ternarize_cli.kernels.gpu.fused import quantise
        from ternarize_cli.kernels.gpu.int8 import Int8
        from ternarize_cli.kernels.gpu.products import Joined

        made: list[Int8] = []

        def run(x: Tensor) -> Tensor:
            if not made:
                with torch.inference_mode(False):  # the layer's buffer becomes a view of the new weights
                    made.append(Int8([[Joined([layer])]], between=torch.float32))
            (products,) = made
            rows = x.reshape(-1, x.shape[-1])
            if not len(rows):
                return x.new_empty(*x.shape[:-1], layer.out_features)
            with torch.cuda.device_of(x):
                products.begin(0, len(rows))
                y = products.run(0, 0, quantise(rows, products.dtype, b=products.order(len(rows))))
            return y.to(x.dtype).reshape(*x.shape[:-1], layer.out_features)

        return run

    def fuse(self, model: nn.Module) -> str | None:
        """Runs a whole model fused; or else runs its linears only, and says why."""
        from ternarize_cli.kernels.gpu.encoder import run_fused
        from ternarize_cli.kernels.gpu.int8 import Int8

        return run_fused(model, self.name, Int8)
