"""The definition: codes expanded to float32, integer-valued products in float32, or float64 where a layer is
too wide for exact float32 sums (more than 16,512 inputs, see `ternary`).

Runs everywhere, takes all levels and granularities, and is what the other backends are tested against.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from ternarize_cli.arithmetic.ternary import ternary_linear
from ternarize_cli.format.scheme import GRANULARITIES, LEVELS
from ternarize_cli.kernels import Kernel, register

if TYPE_CHECKING:
    from ternarize_cli.layers import PackedLinear

__all__ = ["Reference"]


@register
class Reference:
    """float32 arithmetic on dense codes."""

    name = "reference"
    device = "any"
    weights = "float32, expanded at load"
    levels: tuple[str, ...] = tuple(LEVELS)
    granularities: tuple[str, ...] = GRANULARITIES

    def missing(self) -> str | None:
        """Always there."""
        return None

    def refuses(self, layer: "PackedLinear") -> str | None:
        """Takes every layer."""
        return None

    def prepare(self, layer: "PackedLinear") -> Kernel:
        """Expands the codes."""
        codes, scale, bias = layer.codes().float(), layer.weight_scale.float(), layer.bias
        bits = layer.scheme.activation_bits

        def run(x: Tensor) -> Tensor:
            return ternary_linear(x, codes, scale, bias, activation_bits=bits)

        return run
