"""Norms and turns the heads of queries and keys before attention, in place."""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.matmul import begin, launch_options, overlaps

__all__ = ["Heads", "prepare"]

_ROWS = 16


class Heads(NamedTuple):
    """How the queries, keys and values of a token lie side by side, and what is done to them before attention.

    Attributes:
        heads: number of heads of queries.
        shared: number of heads of keys and values.
        head: width of a head.
        scale: factor of the scores.
        turns: cosines and sines, float16 `[positions, pairs]` each, by which the first `2 * pairs` numbers of queries
            and keys are turned; None for none.
        gains: gains of the RMS norms of queries and keys, float32 `[head]` each; None for no norm.
        eps: epsilon of these norms.
    """

    heads: int
    shared: int
    head: int
    scale: float
    turns: tuple[Tensor, Tensor] | None = None
    gains: tuple[Tensor, Tensor] | None = None
    eps: float = 0.0

    @property
    def width(self) -> int:
        """The width of the queries, keys and values of a token."""
        return (self.heads + 2 * self.shared) * self.head

    @property
    def bare(self) -> "Heads":
        """The same, with nothing to be done before attention."""
        return self._replace(turns=None, gains=None)

    @property
    def is_bare(self) -> bool:
        """Whether nothing is done before attention."""
        return self.turns is None and self.gains is None

    @property
    def pairs(self) -> int:
        """How many pairs of numbers of a head are turned."""
        return 0 if self.turns is None else self.turns[0].shape[1]


@triton.jit(do_not_specialize=["rows", "tokens"])
def _prepare(
    qkv_ptr, places_ptr, cos_ptr, sin_ptr, q_gain_ptr, k_gain_ptr, rows, tokens, heads, eps,
    STRIDE: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr, PAIRS: tl.constexpr, GAINS: tl.constexpr,
    PLACES: tl.constexpr, OVERLAP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    head = tl.program_id(1)
    d = tl.arange(0, PADDED)
    here = row < rows
    inside = here[:, None] & (d < HEAD)[None, :]
    begin(OVERLAP)
    base = qkv_ptr + row[:, None] * STRIDE + head * HEAD
    x = tl.load(base + d[None, :], inside, 0.0).to(tl.float32)
    if GAINS:
        is_query = head < heads
        spread = tl.rsqrt(tl.sum(x * x, axis=1) / HEAD + eps)[:, None]
        gain = tl.where(is_query, tl.load(q_gain_ptr + d, d < HEAD, 0.0), tl.load(k_gain_ptr + d, d < HEAD, 0.0))
        x *= spread * gain[None, :]
    if PAIRS:
        other = tl.where(d < PAIRS, d + PAIRS, tl.where(d < 2 * PAIRS, d - PAIRS, d))
        y = tl.load(base + other[None, :], inside, 0.0).to(tl.float32)
        if GAINS:
            other_q = tl.load(q_gain_ptr + other, d < HEAD, 0.0)
            y *= spread * tl.where(is_query, other_q, tl.load(k_gain_ptr + other, d < HEAD, 0.0))[None, :]
        place = row % tokens
        if PLACES:
            place = tl.load(places_ptr + row, here, 0).to(tl.int64)
        turn = place[:, None] * PAIRS + (d % PAIRS)[None, :]
        turned = inside & (d < 2 * PAIRS)[None, :]
        sin = tl.load(sin_ptr + turn, turned, 0.0).to(tl.float32)
        x = x * tl.load(cos_ptr + turn, turned, 1.0).to(tl.float32) + tl.where((d < PAIRS)[None, :], -sin, sin) * y
        tl.debug_barrier()  # a thread may still read what another writes
    tl.store(base + d[None, :], x.to(qkv_ptr.dtype.element_ty), inside)


def prepare(qkv: Tensor, heads: Heads, tokens: int, places: Tensor | None = None) -> Heads:
    """Norms and turns queries and keys in place.

    Args:
        qkv: float16 or bfloat16 `[rows, heads.width]`: queries, keys and values, each with its heads side by side.
        heads: how they lie, and what is done to them.
        tokens: number of tokens of each text, whose positions count from 0.
        places: int `[rows]`, the positions of tokens where texts are not equally long; None counts them.

    Returns:
        What is left to do with the heads.
    """
    overlap = overlaps()
    _prepare[(triton.cdiv(len(qkv), _ROWS), heads.heads + heads.shared)](
        qkv, places, *(heads.turns or (None, None)), *(heads.gains or (None, None)), len(qkv), tokens, heads.heads,
        heads.eps, STRIDE=heads.width, HEAD=heads.head, PADDED=triton.next_power_of_2(heads.head), PAIRS=heads.pairs,
        GAINS=heads.gains is not None, PLACES=places is not None, OVERLAP=overlap, ROWS=_ROWS, num_warps=4,
        **launch_options(overlap),
    )  # fmt: skip
    return heads.bare
