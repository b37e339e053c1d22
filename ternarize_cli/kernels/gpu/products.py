"""The interface of the four products of a block, and what its implementations have in common.

module            class              activations      weights in memory                          sums
gpu.int8          Int8               int8 a token     2 bits, shared with the model's buffers    int32, exact
gpu.e4m3          E4m3               e4m3 a token     e4m3 (a byte each)                         float32
bitblas.products  BitBlasProducts    int8 a token     2 bits, laid out anew                      int32, exact
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ternarize_cli.kernels.gpu.matmul import ManyRows
from ternarize_cli.kernels.gpu.norm import Sums
from ternarize_cli.kernels.gpu.rounding import Rounded
from ternarize_cli.layers import PackedLinear

__all__ = ["FeedForward", "Joined", "JoinedLinear", "Products", "gated_ways", "many_ways"]


class FeedForward(NamedTuple):
    """What stands between the two products of a feed-forward.

    Attributes:
        activation: one of `format.block.ACTIVATIONS`.
        gated: whether the first half of the first product is activated and multiplied by the second.
    """

    activation: str = "gelu"
    gated: bool = False


class Joined(NamedTuple):
    """Linears of one input, whose outputs are concatenated and, if `by` `[out]` is given, multiplied by it."""

    layers: Sequence[PackedLinear]
    by: Tensor | None = None

    def scale(self) -> Tensor:
        """The scales of all rows: float32 `[out]`."""
        scale = torch.cat([m.weight_scale.float().flatten().expand(m.out_features) for m in self.layers])
        return (scale if self.by is None else scale * self.by).contiguous()

    def bias(self) -> Tensor:
        """The bias: float32 `[out]`, zeros for a linear without bias."""
        device = self.layers[0].weight.device
        bias = torch.cat(
            [torch.zeros(m.out_features, device=device) if m.bias is None else m.bias.float() for m in self.layers]
        )
        return (bias if self.by is None else bias * self.by).contiguous()

    def codes(self) -> Tensor:
        """The codes: int8 `[out, in]`."""
        return torch.cat([m.codes() for m in self.layers])


class Products(Protocol):
    """The products of an encoder's linears. Blocks are numbered, and so are the linears of a block.

    Attributes:
        dtype: dtype of the activations that the products take.
        between: dtype of their results; bfloat16 may be set where results may be beyond float16.
    """

    dtype: torch.dtype
    between: torch.dtype

    def order(self, rows: int) -> int:
        """The order of activations that the products of `rows` rows need: b of `matmul`, or 0 for natural order."""

    def begin(self, block: int, rows: int) -> None:
        """Prepares the products of a block; called before them."""

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """Computes a product: `[rows, in]` to `[rows, out]`."""

    def before_norm(self, block: int, linear: int, x: Rounded) -> Tensor | Sums:
        """Computes a product as `run` does, but may return partial sums, which the next norm finishes."""

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """Computes the first product of a feed-forward and its activation, rounded to 8 bits."""

    def attention_factor(self, block: int) -> float:
        """The factor of the results of a block's attention, if that is to store them in e4m3; otherwise 0."""

    def clear(self) -> None:
        """Clears what a pass that failed midway has left for kernels that did not run."""

    def attended(self, block: int, y: Tensor) -> Rounded:
        """Rounds the results of a block's attention, or takes them as they are if they are rounded."""


class JoinedLinear(NamedTuple):
    """Joined linears on the GPU; `packed` begins at byte `start` of the tensor of a block's weights."""

    packed: Tensor
    start: int
    scale: Tensor
    bias: Tensor
    inputs: int

    def shape(self, rows: int) -> tuple[int, int, int]:
        """The shape of a product: rows, inputs, outputs."""
        return rows, self.inputs, len(self.scale)


def many_ways(rows: int) -> list[ManyRows]:
    """Lists configurations for multiplying many rows; the first is used if nothing is measured."""
    if rows <= 1024:
        ways = [ManyRows(64, 64, 128, 4, 4, 2), ManyRows(64, 128, 256, 4, 3), ManyRows(128, 64, 128, 4, 4, 2)]
        return [*ways, ManyRows(64, 128, 128, 4, 4, 2)]
    ways = [ManyRows(128, 128, 128, 4, 2, 2), ManyRows(128, 256, 128, 8, 3)]
    return [*ways, ManyRows(64, 256, 128, 4, 3), ManyRows(64, 128, 128, 4, 4, 2)] if rows <= 8192 else ways


def gated_ways(rows: int) -> list[ManyRows]:
    """Lists configurations for gated products, which hold two tiles of sums."""
    if rows <= 1024:
        return [ManyRows(64, 64, 128, 4, 4, 2), ManyRows(64, 32, 256, 4, 3, 2), ManyRows(128, 64, 128, 8, 4)]
    ways = [ManyRows(128, 128, 128, 8, 3), ManyRows(128, 64, 128, 4, 3, 2), ManyRows(64, 128, 128, 4, 3, 2)]
    return [*ways, ManyRows(128, 128, 64, 8, 4)]
