"""Computes products of int8 activations and 2-bit weights, with exact sums.

With few rows, kernels read the 2-bit weights directly. With many rows, one launch expands a block's weights into a
buffer that all blocks share, and the tensor cores read from there.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ternarize_cli.kernels.gpu import matmul
from ternarize_cli.kernels.gpu.matmul import FewRows, ManyRows
from ternarize_cli.kernels.gpu.norm import Sums
from ternarize_cli.kernels.gpu.products import FeedForward, Joined, JoinedLinear, gated_ways, many_ways
from ternarize_cli.kernels.gpu.rounding import Rounded, RowWay, quantise, row_ways
from ternarize_cli.kernels.gpu.tuning import Choices
from ternarize_cli.layers import PackedLinear

__all__ = ["Int8"]

_FEW = 256
_PARTS = (3, 4, 6, 2, 12, 1)


class Int8:
    """Products of int8 activations and 2-bit weights."""

    dtype = torch.int8

    def __init__(
        self,
        blocks: Sequence[Sequence[Joined]],
        feed_forward: FeedForward = FeedForward(),
        between: torch.dtype = torch.float16,
    ) -> None:
        self.between, self._feed_forward = between, feed_forward
        first = blocks[0]
        self._b = matmul.block_of(*(j.layers[0].in_features for j in first))
        self._flat: list[Tensor] = []
        self._linears: list[list[JoinedLinear]] = []
        for block in blocks:
            flat, linears = self._laid_out(block)
            self._flat.append(flat)
            self._linears.append(linears)
        self._choices = Choices()
        self._codes: Tensor | None = None
        self._sums: dict[int, Tensor] = {}

    def _laid_out(self, block: Sequence[Joined]) -> tuple[Tensor, list[JoinedLinear]]:
        """Packs a block's weights into one tensor. If they keep the file's layout, layers' buffers become its views."""
        shared = all(_lies_as_in_file(m, self._b) for j in block for m in j.layers)
        made = [
            torch.cat([m.weight for m in j.layers]) if shared else matmul.lay_out(j.codes(), self._b) for j in block
        ]
        flat = torch.cat([w.flatten() for w in made])
        linears, start = [], 0
        for joined, weight in zip(block, made, strict=True):
            part = flat[start : start + weight.numel()].view(weight.shape)
            if shared:
                row = 0
                for m in joined.layers:
                    m.weight = part[row : row + m.out_features]
                    row += m.out_features
            inputs = matmul.filled(joined.layers[0].in_features, self._b)
            linears.append(JoinedLinear(part, start, joined.scale(), joined.bias(), inputs))
            start += weight.numel()
        return flat, linears

    def order(self, rows: int) -> int:
        """The order of the 2-bit weights if kernels read them directly (few rows), else 0 for natural order."""
        return self._b if rows <= _FEW else 0

    def begin(self, block: int, rows: int) -> None:
        """Expands a block's weights if there are many rows."""
        if rows > _FEW:
            if self._codes is None:
                most = max(flat.numel() for flat in self._flat)
                self._codes = torch.empty(4 * most, dtype=torch.int8, device=self._flat[0].device)
            matmul.expand(self._flat[block], self._codes)

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """Computes a product: `[rows, in]` to `[rows, out]`."""
        return self._finished(self._linears[block][linear], x)

    def before_norm(self, block: int, linear: int, x: Rounded) -> Tensor | Sums:
        """Computes a product for the next norm. With few rows it may return raw sums, which the norm finishes."""
        w, rows = self._linears[block][linear], len(x.q)
        if rows > _FEW:
            return self._finished(w, x)
        sums = self._sums_of(rows, len(w.scale), x.q.device)
        trial: list[Tensor] = []

        def measured(how: FewRows) -> Tensor:
            if not trial:
                trial.append(torch.zeros_like(sums))
            return self._few(w, x, how, sums=trial[0] if how.parts > 1 else None)

        def ways(rows: int) -> list[FewRows]:
            blocks = w.packed.shape[1] // self._b
            return [how for parts in _PARTS if blocks % parts == 0 for how in _few_ways(rows, parts)]

        how = self._choices.of("int8 sums", w.shape(rows), ways, measured)
        if how.parts == 1:
            return self._few(w, x, how)
        return Sums(self._few(w, x, how, sums=sums), x.scales, w.scale, w.bias)

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """Computes the first product of a feed-forward and its activation, rounded to int8."""
        w, then = self._linears[block][linear], self._feed_forward
        if then.gated and len(x.q) <= _FEW:
            return quantise(self._finished(w, x), self.dtype, b=self.order(len(x.q)), **then._asdict())
        return self._rounded(self._finished(w, x, then))

    def attention_factor(self, block: int) -> float:
        """Returns 0: the scale of a token needs all of its heads."""
        return 0.0

    def clear(self) -> None:
        """Sets the buffers of raw sums to zero, which norms have not read if a pass failed midway."""
        for sums in self._sums.values():
            sums.zero_()

    def attended(self, block: int, y: Tensor) -> Rounded:
        """Rounds the results of a block's attention to int8."""
        return self._rounded(y)

    def _rounded(self, y: Tensor) -> Rounded:
        def call(how: RowWay) -> Rounded:
            return quantise(y, self.dtype, b=self.order(len(y)), how=how)

        return call(self._choices.of("int8 round", (*y.shape, 0), lambda rows: row_ways(rows, y.shape[1]), call))

    def _sums_of(self, rows: int, outputs: int, device: torch.device) -> Tensor:
        """The buffer of raw sums, int32 `[rows, outputs]`, which is zero because every norm clears it."""
        if outputs not in self._sums:
            self._sums[outputs] = torch.zeros(_FEW, outputs, dtype=torch.int32, device=device)
        return self._sums[outputs][:rows]

    def _finished(self, w: JoinedLinear, x: Rounded, then: FeedForward | None = None) -> Tensor:
        """Computes a product and what follows it: nothing, or the activation of a feed-forward."""
        rows = len(x.q)
        activation, gated = then or (None, False)
        kind = " ".join(["int8", *(("gated",) if gated else ()), *((activation,) if activation else ())])
        if rows <= _FEW:
            few = partial(self._few, w, x, activation=activation)
            return few(self._choices.of(kind, w.shape(rows), _few_ways, few))
        assert self._codes is not None
        codes = self._codes[4 * w.start : 4 * (w.start + w.packed.numel())].view(len(w.packed), w.inputs)

        def many(how: ManyRows) -> Tensor:
            return matmul.many_rows(
                x.q, x.t, codes, w.scale, w.bias, activation=activation, gated=gated, out=self.between, how=how
            )

        if self.between == torch.float32:
            return many(self._choices.of(f"{kind} wide", w.shape(rows), _wide_ways, many))
        return many(self._choices.of(kind, w.shape(rows), gated_ways if gated else many_ways, many))

    def _few(
        self, w: JoinedLinear, x: Rounded, how: FewRows, *, activation: str | None = None, sums: Tensor | None = None
    ) -> Tensor:
        return matmul.few_rows(
            x.q,
            x.scales,
            w.packed,
            w.scale,
            w.bias,
            self._b,
            activation=activation,
            out=self.between,
            how=how,
            sums=sums,
        )


def _lies_as_in_file(layer: PackedLinear, b: int) -> bool:
    return layer.codec.name == "2bit" and layer.in_features % (4 * b) == 0 and layer.out_features % 64 == 0


def _few_ways(rows: int, parts: int = 1) -> list[FewRows]:
    ways = [FewRows(16, 32, 4, 4, parts), FewRows(16, 32, 2, 5, parts), FewRows(16, 16, 2, 4, parts)]
    if rows > 16:
        ways = [FewRows(32, 64, 4, 4, parts), FewRows(32, 32, 4, 3, parts), FewRows(64, 64, 4, 3, parts), *ways[1:2]]
    if rows > 64:
        ways = [FewRows(64, 64, 4, 3, parts), FewRows(32, 64, 4, 4, parts), FewRows(128, 64, 4, 3, parts)]
    return ways


def _wide_ways(rows: int) -> list[ManyRows]:
    """Lists configurations for results of four bytes, which leave less shared memory for tiles."""
    return [ManyRows(64, 128, 128, 4, 2, 1), ManyRows(128, 128, 128, 8, 2, 1), ManyRows(64, 64, 128, 4, 3, 2)]
