"""Products of e4m3 activations and weights of a byte each: through PyTorch's scaled product, or our kernel."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.kernels.gpu import matmul
from ternarize_cli.kernels.gpu.fused import Rounded, Sums, quantise
from ternarize_cli.kernels.gpu.matmul import ManyRows
from ternarize_cli.kernels.gpu.products import Joined, Linear, many_ways
from ternarize_cli.kernels.gpu.tuning import Choices

__all__ = ["E4m3", "scaled_mm"]

_MANY = 8192
_ROOM = 16  # about how many times larger than the sample's largest an activation may be before it is cut
E4M3 = torch.float8_e4m3fn


class E4m3:
    """e4m3 activations, a scale a token, and e4m3 weights."""

    dtype, between = E4M3, torch.bfloat16
    _watching = False

    def __init__(self, blocks: Sequence[Sequence[Joined]]) -> None:
        self._linears = [
            [Linear(j.codes().to(E4M3).contiguous(), 0, j.scale(), j.bias(), j.layers[0].in_features) for j in block]
            for block in blocks
        ]
        self._times = [0.0] * len(blocks)
        self._choices = Choices()
        self._half = [[w.bias.bfloat16() for w in block] for block in self._linears]

    def order(self, rows: int) -> int:
        """The usual one."""
        return 0

    def begin(self, block: int, rows: int) -> None:
        """Nothing to do."""

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """As `Products`."""
        w, bias = self._linears[block][linear], self._half[block][linear]
        rows = len(x.q)

        def call(how: ManyRows | None) -> Tensor:
            if how is None:
                return scaled_mm(x.q, x.t, w.packed, w.scale, bias)
            return matmul.many_rows(x.q, x.t, w.packed, w.scale, w.bias, out=self.between, how=how)

        return call(self._choices.of("e4m3", w.shape(rows), lambda rows: [None, *many_ways(rows)], call))

    def before_norm(self, block: int, linear: int, x: Rounded) -> Tensor | Sums:
        """As `Products`."""
        return self.run(block, linear, x)

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """As `Products`.

        With many rows the product itself applies GELU and rounds, by one scale for all rows: e4m3 has the same relative
        error over 2^15, so that little is lost where the scale is not that of the row.
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
        """What is run meanwhile is a sample, from whose largest activations the scale of all rows is found."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False


def _power_of_two(times: float) -> float:
    """The nearest that float16 has as a normal number."""
    return 2.0 ** min(max(round(math.log2(times)), -14), 15)


def scaled_mm(x: Tensor, t: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """PyTorch's product of e4m3 `[rows, in]` and `[out, in]` with a scale a row and an output: bfloat16 `[rows, out]`.

    Args:
        t, scale: float32 `[rows]`, `[out]`.
        bias: bfloat16 `[out]` or None.
    """
    if not x.is_cuda:  # Triton's interpreter runs there, PyTorch's product does not
        y = x.float() @ weight.float().T * scale * t[:, None]
        return (y if bias is None else y + bias).half()  # it does not know bfloat16
    if hasattr(F, "scaled_mm") and not torch.compiler.is_compiling():  # from torch 2.10 on; Dynamo does not know it yet
        row = F.ScalingType.RowWise
        return F.scaled_mm(
            x, weight.T, t[:, None], row, scale[None], row, bias=bias, output_dtype=torch.bfloat16, use_fast_accum=True
        )
    half = torch.bfloat16
    return torch._scaled_mm(x, weight.T, t[:, None], scale[None], bias=bias, out_dtype=half, use_fast_accum=True)
