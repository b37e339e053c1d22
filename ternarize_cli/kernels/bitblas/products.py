"""Computes the products of a fused encoder (`gpu.encoder`) with BitBLAS operators.

An operator gives int32 sums. A layer norm that follows reads these sums directly; elsewhere one kernel multiplies them
by the scales, adds the bias and rounds to float16.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from ternarize_cli.kernels.bitblas import operators
from ternarize_cli.kernels.bitblas.layout import lay_out
from ternarize_cli.kernels.bitblas.operators import Operator, OperatorShape
from ternarize_cli.kernels.gpu.norm import Sums
from ternarize_cli.kernels.gpu.products import FeedForward, Joined
from ternarize_cli.kernels.gpu.rounding import Rounded, quantise
from ternarize_cli.kernels.stack import Stack

__all__ = ["BitBlasProducts", "finish", "shapes_of"]

_BLOCK = 1024


class _Laid(NamedTuple):
    operator: Operator
    weight: Tensor
    scale: Tensor
    bias: Tensor


class BitBlasProducts:
    """Products of int8 activations in natural order and 2-bit weights; widths are multiples of 16."""

    dtype = torch.int8

    def __init__(self, blocks: Sequence[Sequence[Joined]], feed_forward: FeedForward = FeedForward()) -> None:
        self.between, self._feed_forward = torch.float16, feed_forward
        operators.build(_shape(joined) for block in blocks for joined in block)
        self._linears = [[_linear(joined) for joined in block] for block in blocks]

    def order(self, rows: int) -> int:
        """Returns 0: activations in natural order."""
        return 0

    def begin(self, block: int, rows: int) -> None:
        """Does nothing."""

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """Computes a product: `[rows, in]` to `[rows, out]`."""
        return finish(self.before_norm(block, linear, x), self.between)

    def before_norm(self, block: int, linear: int, x: Rounded) -> Sums:
        """Computes the int32 sums of a product; the next norm applies scales and bias."""
        w = self._linears[block][linear]
        return Sums(w.operator(x.q, w.weight), x.scales, w.scale, w.bias)

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """Computes the first product of a feed-forward and its activation, rounded to int8."""
        return quantise(self.run(block, linear, x), self.dtype, **self._feed_forward._asdict())

    def attention_factor(self, block: int) -> float:
        """Returns 0: the scale of a token needs all of its heads."""
        return 0.0

    def clear(self) -> None:
        """Does nothing: passes leave nothing behind."""

    def attended(self, block: int, y: Tensor) -> Rounded:
        """Rounds the results of a block's attention to int8."""
        return quantise(y, self.dtype)


def shapes_of(model: nn.Module) -> list[OperatorShape]:
    """Lists the shapes of the kernels that a fused encoder needs."""
    stack = Stack.of(model)
    found = [stack.joined(i) for i in range(len(stack.layers))]
    return [_shape(Joined(part)) for qkv, output, up, down in found for part in (qkv, [output], up, [down])]


def _shape(joined: Joined) -> OperatorShape:
    return OperatorShape.of(sum(m.out_features for m in joined.layers), joined.layers[0].in_features, "int8")


def _linear(joined: Joined) -> _Laid:
    shape = _shape(joined)
    return _Laid(operators.get(shape), lay_out(joined.codes(), "int8"), joined.scale(), joined.bias())


@triton.jit
def _finish(raw_ptr, t_ptr, scale_ptr, bias_ptr, y_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < WIDTH
    y = tl.load(raw_ptr + row * WIDTH + k, inside, 0).to(tl.float32) * tl.load(scale_ptr + k, inside, 0.0)
    y = y * tl.load(t_ptr + row) + tl.load(bias_ptr + k, inside, 0.0)
    tl.store(y_ptr + row * WIDTH + k, y.to(y_ptr.dtype.element_ty), inside)


def finish(sums: Sums, dtype: torch.dtype = torch.float16) -> Tensor:
    """Multiplies `sums` by their scales and adds the bias: `[rows, out]` of `dtype`."""
    rows, width = sums.raw.shape
    y = torch.empty(rows, width, dtype=dtype, device=sums.raw.device)
    if rows:
        blocks = triton.cdiv(width, _BLOCK)
        _finish[(rows, blocks)](sums.raw, sums.t, sums.scale, sums.bias, y, WIDTH=width, BLOCK=_BLOCK, num_warps=4)
    return y
