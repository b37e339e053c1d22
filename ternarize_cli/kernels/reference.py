"""Runs packed linears in plain PyTorch; its results define those of all other backends.

Codes are expanded to float32, and integer-valued products are summed in float32, or in float64 if a layer is too wide
for exact float32 sums (more than 16,512 inputs, see `ternary`). This backend runs on every machine and takes all levels
and granularities; the other backends are tested against it.
"""

from torch import Tensor

from ternarize_cli.arithmetic.ternary import ternary_linear
from ternarize_cli.format.scheme import GRANULARITIES, LEVELS
from ternarize_cli.kernels import Kernel, register
from ternarize_cli.layers import PackedLinear

__all__ = ["Reference"]


@register
class Reference:
    """The backend `reference`: float32 arithmetic on dense codes."""

    name = "reference"
    device = "any"
    weights = "float32, expanded at load"
    levels: tuple[str, ...] = tuple(LEVELS)
    granularities: tuple[str, ...] = GRANULARITIES

    def missing(self) -> str | None:
        """Returns None: this backend runs on every machine."""
        return None

    def refuses(self, layer: PackedLinear) -> str | None:
        """Returns None: this backend runs every layer."""
        return None

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Expands the codes to float32, and makes the function from `[..., in]` to `[..., out]`."""
        codes, scale, bias = layer.codes().float(), layer.weight_scale.float(), layer.bias
        bits = layer.scheme.activation_bits

        def run(x: Tensor) -> Tensor:
            return ternary_linear(x, codes, scale, bias, activation_bits=bits)

        return run
