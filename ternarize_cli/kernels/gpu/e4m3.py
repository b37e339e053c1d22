"""Computes products of e4m3 activations and e4m3 weights, with PyTorch's scaled product or the kernel in `matmul`."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.kernels.gpu import matmul
from ternarize_cli.kernels.gpu.fused import Rounded, Sums, quantise
from ternarize_cli.kernels.gpu.matmul import ManyRows
from ternarize_cli.kernels.gpu.products import Joined, JoinedLinear, many_ways
from ternarize_cli.kernels.gpu.tuning import Choices

__all__ = ["E4m3", "scaled_mm"]

_MANY = 8192
_ROOM = 16  # about how many times larger than the largest of the sample an activation may be before it is cut
E4M3 = torch.float8_e4m3fn


class E4m3:
    """Products of e4m3 activations, with one scale per token, and e4m3 weights."""

    dtype, between = E4M3, torch.bfloat16
    _watching = False

    def __init__(self, blocks: Sequence[Sequence[Joined]]) -> None:
        self._linears = [
            [
                JoinedLinear(j.codes().to(E4M3).contiguous(), 0, j.scale(), j.bias(), j.layers[0].in_features)
                for j in block
            ]
            for block in blocks
        ]
        self._times = [0.0] * len(blocks)
        self._choices = Choices()
        self._half = [[w.bias.bfloat16() for w in block] for block in self._linears]

    def order(self, rows: int) -> int:
        """Returns 0: activations in natural order."""
        return 0

    def begin(self, block: int, rows: int) -> None:
        """Does nothing."""

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """Computes a product: `[rows, in]` to `[rows, out]`."""
        w, bias = self._linears[block][linear], self._half[block][linear]
        rows = len(x.q)

        def call(how: ManyRows | None) -> Tensor:
            if how is None:
                return scaled_mm(x.q, x.t, w.packed, w.scale, bias)
            return matmul.many_rows(x.q, x.t, w.packed, w.scale, w.bias, out=self.between, how=how)

        return call(self._choices.of("e4m3", w.shape(rows), lambda rows: [None, *many_ways(rows)], call))

    def before_norm(self, block: int, linear: int, x: Rounded) -> Tensor | Sums:
        """Computes a product for the next norm."""
        return self.run(block, linear, x)

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """Computes GELU of a product, rounded to e4m3.

        With many rows, the kernel of the product applies GELU and rounds, with one scale for all rows. e4m3 has a
        constant relative error over a range of 2^15, so a scale that is not the row's own loses little.
        """
        rows = len(x.q)
        if rows < _MANY or not self._times[block]:
            rounded = quantise(self.run(block, linear, x), self.dtype, activate=True)
            if self._watching:
                self._times[block] = _power_of_two(1 / (_ROOM * max(float(rounded.t.max()), 1e-20)))
            return rounded
        w, times = self._linears[block][linear], self._times[block]

        def call(how: ManyRows) -> Tensor:
            return matmul.many_rows(x.q, x.t, w.packed, w.scale, w.bias, gelu=True, out=E4M3, times=times, how=how)

        q = call(self._choices.of("e4m3 gelu", w.shape(rows), many_ways, call))
        return Rounded(q, torch.full((rows,), 1 / times, device=q.device))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Takes the passes that run meanwhile as a sample, whose largest activations give the scale of all rows."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False


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
