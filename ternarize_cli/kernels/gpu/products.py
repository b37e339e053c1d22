"""The four products of a block, on one card and in one arithmetic.

    class    activations        weights in memory            sums
    Int8     int8 a token       2 bits, shared with the      int32, exact
                                model's own buffers
    E4m3     e4m3 a token       e4m3 (a byte each)           float32

With few rows, kernels read the 2-bit weights themselves. With many, one launch expands a block's weights into a buffer
that all blocks share, and the tensor cores read from there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.kernels.gpu import matmul
from ternarize_cli.kernels.gpu.fused import Rounded, Sums, quantise
from ternarize_cli.kernels.gpu.matmul import FewRows, ManyRows
from ternarize_cli.kernels.gpu.tuning import Choices
from ternarize_cli.layers import PackedLinear

__all__ = ["E4m3", "Int8", "Joined", "Products", "scaled_mm"]

_FEW, _MANY = 256, 8192
_PARTS = (3, 4, 6, 2, 12, 1)
_ROOM = 16  # how many times larger than the sample's largest an activation may be before it is cut
E4M3 = torch.float8_e4m3fn


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


class _Linear(NamedTuple):
    packed: Tensor
    start: int
    scale: Tensor
    bias: Tensor
    inputs: int

    def shape(self, rows: int) -> tuple[int, int, int]:
        """Of a product: rows, inputs, outputs."""
        return rows, self.inputs, len(self.scale)


class Int8:
    """int8 activations, 2-bit weights."""

    dtype = torch.int8

    def __init__(self, blocks: Sequence[Sequence[Joined]], between: torch.dtype = torch.float16) -> None:
        self.between = between
        first = blocks[0]
        self._b = matmul.block_of(*(j.layers[0].in_features for j in first))
        self._flat: list[Tensor] = []
        self._linears: list[list[_Linear]] = []
        for block in blocks:
            flat, linears = self._laid_out(block)
            self._flat.append(flat)
            self._linears.append(linears)
        self._choices = Choices()
        self._codes: Tensor | None = None
        self._sums: dict[int, Tensor] = {}

    def _laid_out(self, block: Sequence[Joined]) -> tuple[Tensor, list[_Linear]]:
        """A block's weights in one tensor. Where they lie as in the file, the layers' buffers become parts of it."""
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
            linears.append(_Linear(part, start, joined.scale(), joined.bias(), inputs))
            start += weight.numel()
        return flat, linears

    def order(self, rows: int) -> int:
        """That of the 2-bit weights, where they are read as they are."""
        return self._b if rows <= _FEW else 0

    def begin(self, block: int, rows: int) -> None:
        """Expands the weights, where there are many rows."""
        if rows > _FEW:
            if self._codes is None:
                most = max(flat.numel() for flat in self._flat)
                self._codes = torch.empty(4 * most, dtype=torch.int8, device=self._flat[0].device)
            matmul.expand(self._flat[block], self._codes)

    def run(self, block: int, linear: int, x: Rounded) -> Tensor:
        """As `Products`."""
        return self._finished(self._linears[block][linear], x, gelu=False)

    def before_norm(self, block: int, linear: int, x: Rounded) -> Tensor | Sums:
        """As `Products`; with few rows several programs share the inputs, and the norm finishes their sums."""
        w, rows = self._linears[block][linear], len(x.q)
        if rows > _FEW:
            return self._finished(w, x, gelu=False)
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
        return Sums(self._few(w, x, how, sums=sums), x.t, w.scale, w.bias)

    def activated(self, block: int, linear: int, x: Rounded) -> Rounded:
        """As `Products`."""
        h = self._finished(self._linears[block][linear], x, gelu=True)
        return quantise(h, self.dtype, b=self.order(len(h)))

    def _sums_of(self, rows: int, outputs: int, device: torch.device) -> Tensor:
        """Zeros, as every norm leaves them."""
        if outputs not in self._sums:
            self._sums[outputs] = torch.zeros(_FEW, outputs, dtype=torch.int32, device=device)
        return self._sums[outputs][:rows]

    def _finished(self, w: _Linear, x: Rounded, *, gelu: bool) -> Tensor:
        rows, kind = len(x.q), "int8 gelu" if gelu else "int8"
        if rows <= _FEW:
            few = partial(self._few, w, x, gelu=gelu)
            return few(self._choices.of(kind, w.shape(rows), _few_ways, few))
        assert self._codes is not None
        codes = self._codes[4 * w.start : 4 * (w.start + w.packed.numel())].view(len(w.packed), w.inputs)

        def many(how: ManyRows) -> Tensor:
            return matmul.many_rows(x.q, x.t, codes, w.scale, w.bias, gelu=gelu, out=self.between, how=how)

        if self.between == torch.float32:
            return many(self._choices.of(f"{kind} wide", w.shape(rows), _wide_ways, many))
        return many(self._choices.of(kind, w.shape(rows), _many_ways, many))

    def _few(self, w: _Linear, x: Rounded, how: FewRows, *, gelu: bool = False, sums: Tensor | None = None) -> Tensor:
        out = self.between
        return matmul.few_rows(x.q, x.t, w.packed, w.scale, w.bias, self._b, gelu=gelu, out=out, how=how, sums=sums)


def _lies_as_in_file(layer: PackedLinear, b: int) -> bool:
    return layer.codec.name == "2bit" and layer.in_features % (4 * b) == 0 and layer.out_features % 64 == 0


def _few_ways(rows: int, parts: int = 1) -> list[FewRows]:
    ways = [FewRows(16, 32, 4, 4, parts), FewRows(16, 32, 2, 5, parts), FewRows(16, 16, 2, 4, parts)]
    if rows > 16:
        ways = [FewRows(32, 64, 4, 4, parts), FewRows(32, 32, 4, 3, parts), FewRows(64, 64, 4, 3, parts), *ways[1:2]]
    if rows > 64:
        ways = [FewRows(64, 64, 4, 3, parts), FewRows(32, 64, 4, 4, parts), FewRows(128, 64, 4, 3, parts)]
    return ways


def _many_ways(rows: int) -> list[ManyRows]:
    ways = [ManyRows(128, 128, 128, 4, 2, 2), ManyRows(128, 256, 128, 8, 3), ManyRows(128, 128, 64, 4, 4, 2)]
    if rows <= 8192:
        ways += [ManyRows(64, 128, 128, 4, 4, 2), ManyRows(128, 128, 128, 8, 4), ManyRows(64, 256, 128, 4, 3)]
    if rows <= 2048:
        ways += [ManyRows(64, 64, 128, 4, 4, 2), ManyRows(128, 64, 128, 4, 4, 2), ManyRows(64, 128, 256, 4, 3)]
    return ways


def _wide_ways(rows: int) -> list[ManyRows]:
    """For results of four bytes, which take more room beside the tiles."""
    return [ManyRows(64, 128, 128, 4, 2, 1), ManyRows(128, 128, 128, 8, 2, 1), ManyRows(64, 64, 128, 4, 3, 2)]


class E4m3:
    """e4m3 activations, and weights of a byte each: through PyTorch's scaled product, or our kernel."""

    dtype, between = E4M3, torch.bfloat16
    _watching = False

    def __init__(self, blocks: Sequence[Sequence[Joined]]) -> None:
        self._linears = [
            [_Linear(j.codes().to(E4M3).contiguous(), 0, j.scale(), j.bias(), j.layers[0].in_features) for j in block]
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

        return call(self._choices.of("e4m3", w.shape(rows), lambda rows: [None, *_many_ways(rows)], call))

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
                self._times[block] = 448 / (_ROOM * 448 * max(float(rounded.t.max()), 1e-20))
            return rounded
        w, times = self._linears[block][linear], self._times[block]

        def call(how: ManyRows) -> Tensor:
            return matmul.many_rows(x.q, x.t, w.packed, w.scale, w.bias, gelu=True, out=E4M3, times=times, how=how)

        q = call(self._choices.of("e4m3 gelu", w.shape(rows), _many_ways, call))
        return Rounded(q, torch.full((rows,), 1 / times, device=q.device))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """What is run meanwhile is a sample, from whose largest activations the scale of all rows is found."""
        self._watching = True
        try:
            yield
        finally:
            self._watching = False


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
