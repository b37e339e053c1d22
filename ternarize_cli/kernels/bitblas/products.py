"""The products of a whole encoder (`gpu.encoder`) through BitBLAS operators.

An operator's sums are int32. Where a layer norm follows it reads them as they are; elsewhere one kernel multiplies them
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
from ternarize_cli.kernels.bitblas.operators import Operator, Shape
from ternarize_cli.kernels.fused_encoder import blocks_of, linears_of
from ternarize_cli.kernels.gpu.fused import Rounded, Sums, quantise
from ternarize_cli.kernels.gpu.products import Joined

__all__ = ["BitBlasProducts", "finish", "shapes_of"]

_BLOCK = 1024


class _Laid(NamedTuple):
    operator: Operator
    weight: Tensor
    scale: Tensor
    bias: Tensor


class BitBlasProducts:
    """int8 activations in the usual order, 2-bit weights; widths are multiples of 16."""

    dtype, between = torch.int8, torch.float16

    def __init__(self, blocks: Sequence[Sequence[Joined]]) -> None:
        operators.build(_shape(joined) for block in blocks for joined in block)
        self._linears = [[_linear(joined) for joined in block] for block in blocks]

    def order(self, rows: int) -> int:
        """The usual one."""
        return 0

    def begin(self, block: int, rows: int) -> None:
        """Nothing to do."""

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """As `Products`."""
        return finish(self.before_norm(block, linear, x))

    def before_norm(self, block: int, linear: int, x: Rounded) -> Sums:
        """As `Products`; the norm finishes the sums."""
        w = self._linears[block][linear]
        return Sums(w.operator(x.q, w.weight), x.t, w.scale, w.bias)

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """As `Products`."""
        return quantise(self.run(block, linear, x), self.dtype, activate=True)


def shapes_of(model: nn.Module) -> list[Shape]:
    """The kernels that a model which runs as a whole needs."""
    blocks = [linears_of(block) for block in blocks_of(model)]
    return [_shape(Joined(part)) for q, k, v, *others in blocks for part in ([q, k, v], *([m] for m in others))]


def _shape(joined: Joined) -> Shape:
    return Shape.of(sum(m.out_features for m in joined.layers), joined.layers[0].in_features, "int8")


def _linear(joined: Joined) -> _Laid:
    shape = _shape(joined)
    return _Laid(operators.get(shape), lay_out(joined.codes(), "int8"), joined.scale(), joined.bias())


@triton.jit
def _finish(raw_ptr, t_ptr, scale_ptr, bias_ptr, y_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = k < WIDTH
    y = tl.load(raw_ptr + row * WIDTH + k, inside, 0).to(tl.float32) * tl.load(scale_ptr + k, inside, 0.0)
    y = y * tl.load(t_ptr + row) + tl.load(bias_ptr + k, inside, 0.0)
    tl.store(y_ptr + row * WIDTH + k, y.to(y_ptr.dtype.element_ty), inside)


def finish(sums: Sums) -> Tensor:
    """`sums` by their scales, and the bias added: float16 `[rows, out]`."""
    rows, width = sums.raw.shape
    y = torch.empty(rows, width, dtype=torch.float16, device=sums.raw.device)
    if rows:
        blocks = triton.cdiv(width, _BLOCK)
        _finish[(rows, blocks)](sums.raw, sums.t, sums.scale, sums.bias, y, WIDTH=width, BLOCK=_BLOCK, num_warps=4)
    return y
