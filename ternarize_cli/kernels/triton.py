"""Runs packed linears of 2-bit weights on NVIDIA GPUs, in Triton: int8 activations, int8 tensor cores, exact sums.

In device memory the weights have the bits of the file. Encoders whose blocks are described run fused (`gpu.encoder`);
of other encoders only the linears run here. Triton comes with torch on Linux if torch is built for CUDA.
"""

import importlib.util

import torch
from torch import Tensor, nn

from ternarize_cli.kernels import Kernel, register
from ternarize_cli.layers import PackedLinear

__all__ = ["Triton", "missing", "refuses"]

_MULTIPLE = 16  # the GPU's unit that copies tiles needs rows of a multiple of these bytes


def missing(oldest: tuple[int, int], wanted: str) -> str | None:
    """Says what this machine lacks, a new enough NVIDIA GPU or Triton; None if it has both.

    Args:
        oldest: the least compute capability, as major and minor number.
        wanted: the name of that generation of GPUs in the sentence, such as "Ampere".
    """
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
    """Says why the backend `name` can't run a layer on a GPU with 8-bit activations; None if it can."""
    if layer.weight.device.type != "cuda":
        return f"the model is on {layer.weight.device}, and {name} runs on cuda"
    if layer.scheme.activation_bits != 8:
        return "its activations are not int8"
    if layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE:
        return f"a linear is {layer.out_features} × {layer.in_features}, and {name} takes multiples of {_MULTIPLE}"
    return None


@register
class Triton:
    """The backend `triton`: int8 activations × 2-bit weights."""

    name = "triton"
    device = "cuda"
    weights = "2-bit"
    levels: tuple[str, ...] = ("ternary",)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Says what this machine lacks, an NVIDIA GPU (Ampere or newer) or Triton; None if it has both."""
        return missing((8, 0), "Ampere")

    def refuses(self, layer: PackedLinear) -> str | None:
        """Says why a layer can't run; None if it is on a GPU, has int8 activations, and widths in multiples of 16."""
        return refuses(self.name, layer)

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Makes the function from `[..., in]` to `[..., out]`, which prepares the weights when it is first called.

        In a fused encoder it is never called.
        """
        from ternarize_cli.kernels.gpu.int8 import Int8
        from ternarize_cli.kernels.gpu.products import Joined
        from ternarize_cli.kernels.gpu.rounding import quantise

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
        """Replaces the model's `forward` by a fused one, and returns None; or returns the reason why it can't."""
        from ternarize_cli.kernels.gpu.forward import run_fused
        from ternarize_cli.kernels.gpu.int8 import Int8

        return run_fused(model, self.name, Int8)
