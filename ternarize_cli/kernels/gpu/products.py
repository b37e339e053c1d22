"""The four products of a block: what an encoder asks of them, and what the arithmetics have in common.

module            class              activations      weights in memory                          sums
gpu.int8          Int8               int8 a token     2 bits, shared with the model's buffers    int32, exact
gpu.e4m3          E4m3               e4m3 a token     e4m3 (a byte each)                         float32
bitblas.products  BitBlasProducts    int8 a token     2 bits, laid out anew                      int32, exact
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ternarize_cli.kernels.gpu.fused import Rounded, Sums
from ternarize_cli.kernels.gpu.matmul import ManyRows
from ternarize_cli.layers import PackedLinear

__all__ = ["Joined", "Linear", "Products", "many_ways"]


class Joined(NamedTuple):
    """Linears of the same input, their outputs side by side, multiplied by `by` `[out]` where that is given."""

    layers: Sequence[PackedLinear]
    by: Tensor | None = None

    def scale(self) -> Tensor:
        """float32 `[out]`."""
        scale = torch.cat([m.weight_scale.float().flatten().expand(m.out_features) for m in self.layers])
        return (scale if self.by is None else scale * self.by).contiguous()

    def bias(self) -> Tensor:
        """float32 `[out]`, zeros where there is none."""
        device = self.layers[0].weight.device
        bias = torch.cat(
            [torch.zeros(m.out_features, device=device) if m.bias is None else m.bias.float() for m in self.layers]
        )
        return (bias if self.by is None else bias * self.by).contiguous()

    def codes(self) -> Tensor:
        """int8 `[out, in]`."""
        return torch.cat([m.codes() for m in self.layers])


class Products(Protocol):
    """What an encoder asks of its products. Blocks are numbered; linears of a block are those that it was made with.

    Attributes:
        dtype: of activations.
        between: of results.
    """

    dtype: torch.dtype
    between: torch.dtype

    def order(self, rows: int) -> int:
        """The order in which so many rows of activations are wanted: b of `matmul`, or 0 for the usual one."""

    def begin(self, block: int, rows: int) -> None:
        """Called before a block's products."""

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """`[rows, in]` → `[rows, out]`."""

    def before_norm(self, block: int, linear: int, x: Rounded) -> Tensor | Sums:
        """The same, perhaps unfinished."""

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """GELU of the product, rounded."""


class Linear(NamedTuple):
    """Joined linears on the card; `packed` begins at `start` of what holds a block's weights."""

    packed: Tensor
    start: int
    scale: Tensor
    bias: Tensor
    inputs: int

    def shape(self, rows: int) -> tuple[int, int, int]:
        """Of a product: rows, inputs, outputs."""
        return rows, self.inputs, len(self.scale)


def many_ways(rows: int) -> list[ManyRows]:
    """Ways to multiply many rows, the one to take unmeasured first."""
    ways = [ManyRows(128, 128, 128, 4, 2, 2), ManyRows(128, 256, 128, 8, 3), ManyRows(128, 128, 64, 4, 4, 2)]
    if rows <= 8192:
        ways += [ManyRows(64, 128, 128, 4, 4, 2), ManyRows(128, 128, 128, 8, 4), ManyRows(64, 256, 128, 4, 3)]
    if rows <= 2048:
        ways += [ManyRows(64, 64, 128, 4, 4, 2), ManyRows(128, 64, 128, 4, 4, 2), ManyRows(64, 128, 256, 4, 3)]
    return ways
