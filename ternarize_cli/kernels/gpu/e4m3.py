"""Computes products of e4m3 activations and e4m3 weights, with PyTorch's scaled product or the kernel in `matmul`."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.kernels.gpu import matmul
from ternarize_cli.kernels.gpu.matmul import ManyRows
from ternarize_cli.kernels.gpu.norm import Sums
from ternarize_cli.kernels.gpu.products import FeedForward, Joined, JoinedLinear, gated_ways, many_ways
from ternarize_cli.kernels.gpu.rounding import Rounded, RowWay, quantise, row_ways
from ternarize_cli.kernels.gpu.tuning import Choices

__all__ = ["E4m3", "scaled_mm"]

_ROOM = 16  # about how many times larger than the largest of the sample an activation may be before it is cut
_SPREAD = 64  # how many times larger than the median token the largest may be for both to have one scale
E4M3 = torch.float8_e4m3fn


class E4m3:
    """Products of e4m3 activations and e4m3 weights.

    The results of attention and of activations have one scale for all tokens: the kernel that computes them rounds
    them, too. e4m3 has a constant relative error over a range of 2^15, so a scale that is not the token's own loses
    little. A block in which some tokens are much larger than others has a scale for each token there.
    """

    dtype, between = E4M3, torch.bfloat16

    def __init__(self, blocks: Sequence[Sequence[Joined]], feed_forward: FeedForward = FeedForward()) -> None:
        self._feed_forward = feed_forward
        self._linears = [
            [
                JoinedLinear(j.codes().to(E4M3).contiguous(), 0, j.scale(), j.bias(), j.layers[0].in_features)
                for j in block
            ]
            for block in blocks
        ]
        self._choices = Choices()
        self._half = [[w.bias.bfloat16() for w in block] for block in self._linears]
        self._watching = False
        self._attended, self._activated = [0.0] * len(blocks), [0.0] * len(blocks)
        self._ones: list[Tensor] = []
        self._by_factor: dict[tuple[int, int], Tensor] = {}

    def order(self, rows: int) -> int:
        """Returns 0: activations in natural order."""
        return 0

    def begin(self, block: int, rows: int) -> None:
        """Does nothing."""

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """Computes a product: `[rows, in]` to `[rows, out]`."""
        w, bias = self._linears[block][linear], self._half[block][linear]
        rows, t = len(x.q), x.t

        def call(how: ManyRows | None) -> Tensor:
            if how is not None:
                return matmul.many_rows(x.q, t, w.packed, w.scale, w.bias, out=self.between, how=how)
            if isinstance(t, float):
                return scaled_mm(x.q, self._one_a_row(rows), w.packed, self._times_factor(block, linear, t), bias)
            return scaled_mm(x.q, t, w.packed, w.scale, bias)

        kind = "e4m3, one scale" if isinstance(t, float) else "e4m3"
        return call(self._choices.of(kind, w.shape(rows), lambda rows: [None, *many_ways(rows)], call))

    def before_norm(self, block: int, linear: int, x: Rounded) -> Tensor | Sums:
        """Computes a product for the next norm."""
        return self.run(block, linear, x)

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """Computes the first product of a feed-forward and its activation, rounded to e4m3."""
        w, times, then = self._linears[block][linear], self._activated[block], self._feed_forward
        if not times:
            rounded = quantise(self.run(block, linear, x), self.dtype, **then._asdict())
            if self._watching:
                self._activated[block] = _factor(rounded)
            return rounded

        def call(how: ManyRows | RowWay) -> Rounded:
            if isinstance(how, RowWay):
                return quantise(self.run(block, linear, x), self.dtype, **then._asdict(), how=how)
            q = matmul.many_rows(x.q, x.t, w.packed, w.scale, w.bias, **then._asdict(), out=E4M3, times=times, how=how)
            return Rounded(q, 1 / times)

        def ways(rows: int) -> list[ManyRows | RowWay]:
            if not then.gated:
                return [*many_ways(rows)]
            return [*gated_ways(rows), *(row_ways(rows, outputs) if rows > 1024 else [])]

        outputs = len(w.scale) // 2 if then.gated else len(w.scale)
        kind = f"e4m3 {'gated ' if then.gated else ''}{then.activation}"
        return call(self._choices.of(kind, (len(x.q), w.inputs, outputs), ways, call))

    def attention_factor(self, block: int) -> float:
        """The factor of the results of a block's attention, which are stored in e4m3; 0 if they have other scales."""
        return self._attended[block]

    def clear(self) -> None:
        """Does nothing: passes leave nothing behind."""

    def attended(self, block: int, y: Tensor) -> Rounded:
        """Rounds the results of a block's attention, or takes them as they are if they are rounded."""
        if y.dtype == E4M3:
            return Rounded(y, 1 / self._attended[block])
        rounded = quantise(y, self.dtype)
        if self._watching:
            self._attended[block] = _factor(rounded)
        return rounded

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Takes the passes that run meanwhile as a sample, whose largest activations give the scales of all rows."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False

    def _one_a_row(self, rows: int) -> Tensor:
        """The number 1 for each row; a buffer stays, since recorded passes read from it."""
        if not self._ones or len(self._ones[-1]) < rows:
            device = self._linears[0][0].scale.device
            self._ones.append(torch.ones(1 << (rows - 1).bit_length(), device=device))
        return self._ones[-1][:rows]

    def _times_factor(self, block: int, linear: int, t: float) -> Tensor:
        """The scales of a linear, multiplied by that of all rows of its input, which does not change."""
        key = (block, linear)
        if key not in self._by_factor:
            self._by_factor[key] = self._linears[block][linear].scale * t
        return self._by_factor[key]


def _factor(sample: Rounded) -> float:
    """Chooses the factor of one scale for all rows, a power of two; 0 if some rows are much larger than others."""
    assert isinstance(sample.t, Tensor)
    most = float(sample.t.max())
    if most > _SPREAD * float(sample.t.median()):
        return 0.0
    return _power_of_two(1 / (_ROOM * max(most, 1e-20)))


def _power_of_two(times: float) -> float:
    """Rounds to the nearest power of two that is a normal number of float16."""
    return 2.0 ** min(max(round(math.log2(times)), -14), 15)


def scaled_mm(x: Tensor, t: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Computes PyTorch's scaled product of e4m3 `[rows, in]` and e4m3 `[out, in]`: bfloat16 `[rows, out]`.

    Args:
        x: the activations.
        t: their scales, float32 `[rows]`.
        weight: the weights.
        scale: their scales, float32 `[out]`.
        bias: bfloat16 `[out]` or None.
    """
    if not x.is_cuda:  # PyTorch's scaled product does not run on the CPU, where Triton's interpreter runs
        y = x.float() @ weight.float().T * scale * t[:, None]
        return (y if bias is None else y + bias).half()  # Triton's interpreter does not know bfloat16
    if hasattr(F, "scaled_mm") and not torch.compiler.is_compiling():  # from torch 2.10 on; Dynamo does not know it yet
        row = F.ScalingType.RowWise
        return F.scaled_mm(
            x, weight.T, t[:, None], row, scale[None], row, bias=bias, output_dtype=torch.bfloat16, use_fast_accum=True
        )
    half = torch.bfloat16
    return torch._scaled_mm(x, weight.T, t[:, None], scale[None], bias=bias, out_dtype=half, use_fast_accum=True)
