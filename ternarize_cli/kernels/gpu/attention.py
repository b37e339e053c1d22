"""Softmax self-attention in one kernel that never stores the scores (FlashAttention, arXiv 2205.14135).

The kernel also norms each head's queries and keys and turns them by their positions, where a block does that: a program
does it for its queries once, and for its keys as it reads them. Long texts have many programs that read a key, so there
`heads.prepare` does it before, and PyTorch's attention may follow.

Where texts lie side by side, the queries of a program may also be those of several texts: a tile for one short text
would be mostly empty. The program then reads for each row where its text begins and ends.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.heads import Heads
from ternarize_cli.kernels.gpu.matmul import begin, launch_options, overlaps

__all__ = ["Attention", "Scores", "attention", "ways"]

_LOG2_E = 1.4426950408889634


class Attention(NamedTuple):
    """The configuration of `attention`: queries and keys of a step, warps, stages, whether tiles go across texts."""

    queries: int
    keys: int
    warps: int
    stages: int
    across: bool = False


class Scores(NamedTuple):
    """Which keys a query sees, and what is added to its scores.

    Attributes:
        before, after: how many tokens before and after its own a token sees; -1: all.
        distances: float32 `[heads, 2 * reach + 1]`, added by the distance from query to key, cut to ±reach; None for
            none.
        pairs: float16 or float32 `[heads, tokens, tokens]`, added to the scores of equally long texts; None for none.
    """

    before: int = -1
    after: int = -1
    distances: Tensor | None = None
    pairs: Tensor | None = None


@triton.jit
def _turned(
    base, place, stride, inside, gain_ptr, cos_ptr, sin_ptr, eps, factor,
    HEAD: tl.constexpr, PADDED: tl.constexpr, GAINS: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Reads one head of some tokens, norms and turns it: its first and its second half, float32 each."""
    HALF: tl.constexpr = HEAD // 2
    d = tl.arange(0, PADDED)
    here = inside[:, None] & (d < HALF)[None, :]
    at = base + place[:, None] * stride + d[None, :]
    x = tl.load(at, here, 0.0).to(tl.float32)
    y = tl.load(at + HALF, here, 0.0).to(tl.float32)
    if GAINS:
        spread = tl.rsqrt((tl.sum(x * x, axis=1) + tl.sum(y * y, axis=1)) / HEAD + eps)[:, None]
        x *= spread * tl.load(gain_ptr + d, d < HALF, 0.0)[None, :]
        y *= spread * tl.load(gain_ptr + HALF + d, d < HALF, 0.0)[None, :]
    if TURNS:
        turn = place[:, None] * HALF + d[None, :]
        cos = tl.load(cos_ptr + turn, here, 0.0).to(tl.float32)
        sin = tl.load(sin_ptr + turn, here, 0.0).to(tl.float32)
        turned = x * cos - y * sin
        y = y * cos + x * sin
        x = turned
    return x * factor, y * factor


@triton.jit(do_not_specialize=["tokens", "before", "after", "reach"])
def _attention(
    qkv_ptr, mask_ptr, starts_ptr, spans_ptr, distances_ptr, pairs_ptr, cos_ptr, sin_ptr, q_gain_ptr, k_gain_ptr, y_ptr,
    tokens, heads, scale, eps, times, before, after, reach,
    STRIDE: tl.constexpr, KEYS: tl.constexpr, VALUES: tl.constexpr, GROUP: tl.constexpr, HEAD: tl.constexpr,
    PADDED: tl.constexpr, HALVES: tl.constexpr, GAINS: tl.constexpr, TURNS: tl.constexpr, MASK: tl.constexpr,
    STARTS: tl.constexpr, ACROSS: tl.constexpr, WHOLE: tl.constexpr, BEFORE: tl.constexpr, AFTER: tl.constexpr,
    DISTANCES: tl.constexpr, PAIRS: tl.constexpr, TIMES: tl.constexpr, OVERLAP: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    text, head, tile = tl.program_id(0) // heads, tl.program_id(0) % heads, tl.program_id(1)
    if ACROSS:  # all rows are as one text, of which a query sees a part
        text, tile = tl.program_id(1), tl.program_id(0) // heads
    m = tile * BM + tl.arange(0, BM)
    if ACROSS:
        m = m.to(tl.int64)
    d = tl.arange(0, PADDED)
    begin(OVERLAP)
    first = text * tokens
    length = tokens
    if STARTS:
        first = tl.load(starts_ptr + text)
        length = tl.load(starts_ptr + text + 1) - first
    base = qkv_ptr + first.to(tl.int64) * STRIDE + head * HEAD
    keys = qkv_ptr + first.to(tl.int64) * STRIDE + KEYS + head // GROUP * HEAD
    kind = qkv_ptr.dtype.element_ty
    PART: tl.constexpr = PADDED // 2 if PADDED > 16 else 16
    if HALVES:
        x, y = _turned(base, m, STRIDE, m < length, q_gain_ptr, cos_ptr, sin_ptr, eps, scale, HEAD, PART, GAINS, TURNS)
        q, q_second = x.to(kind), y.to(kind)
    else:
        q = tl.load(base + m[:, None] * STRIDE + d[None, :], (m < length)[:, None] & (d < HEAD)[None, :], 0.0)
        q = (q * scale).to(kind)
    largest = tl.full((BM,), -1e30, tl.float32)
    weights = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, PADDED), tl.float32)
    low, high = 0, length
    if ACROSS:
        begins = tl.load(spans_ptr + m, m < length, length)
        ends = tl.load(spans_ptr + length + m, m < length, 0)
        low, high = tl.min(begins, axis=0), tl.max(ends, axis=0)
    if BEFORE:
        low = tl.maximum(tile * BM - before, low) // BN * BN
    if AFTER:
        high = tl.minimum(tile * BM + BM + after, high)
    if STARTS:  # a short text has no queries in the last tiles of a long one
        high = tl.where(tile * BM < length, high, 0)
    for start in range(low, high, BN):
        key = start + tl.arange(0, BN)
        if ACROSS:
            key = key.to(tl.int64)
        there = key < length
        if HALVES:
            k, k_second = _turned(
                keys, key, STRIDE, there, k_gain_ptr, cos_ptr, sin_ptr, eps, 1.0, HEAD, PART, GAINS, TURNS
            )
            s = tl.dot(q_second, k_second.to(kind).T, tl.dot(q, k.to(kind).T))
        else:
            at = keys + key[:, None] * STRIDE + d[None, :]
            if WHOLE:
                k = tl.load(at)
            else:
                k = tl.load(at, there[:, None] & (d < HEAD)[None, :], 0.0)
            s = tl.dot(q, k.T)
        if DISTANCES:
            away = tl.minimum(tl.maximum(key[None, :] - m[:, None], -reach), reach) + reach
            s += tl.load(distances_ptr + head * (2 * reach + 1) + away)
        if PAIRS:
            pair = (head * tokens + m).to(tl.int64)[:, None] * tokens + key[None, :]
            s += tl.load(pairs_ptr + pair, (m < length)[:, None] & there[None, :], 0.0).to(tl.float32)
        if BEFORE:
            s = tl.where(key[None, :] >= m[:, None] - before, s, -1e30)
        if AFTER:
            s = tl.where(key[None, :] <= m[:, None] + after, s, -1e30)
        if MASK:
            seen = tl.load(mask_ptr + first + key, there, 0) != 0
            s = tl.where(seen[None, :], s, -1e30)
        elif ACROSS:
            s = tl.where((key[None, :] >= begins[:, None]) & (key[None, :] < ends[:, None]), s, -1e30)
        elif not WHOLE:
            s = tl.where(there[None, :], s, -1e30)
        higher = tl.maximum(largest, tl.max(s, axis=1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(largest - higher)
        weights = weights * shrink + tl.sum(p, axis=1)
        at = keys + (VALUES - KEYS) + key[:, None] * STRIDE + d[None, :]
        if WHOLE:
            v = tl.load(at)
        else:
            v = tl.load(at, there[:, None] & (d < HEAD)[None, :], 0.0)
        if ACROSS:  # what is infinite in one text must not reach another, which weighs it with 0
            most = 65504.0 if kind == tl.float16 else 3.0e38
            v = tl.minimum(tl.maximum(v.to(tl.float32), -most), most).to(kind)
        total = tl.dot(p.to(kind), v, total * shrink[:, None])
        largest = higher
    y = total / tl.maximum(weights, 1e-30)[:, None]
    if TIMES:
        y = tl.minimum(tl.maximum(y * times, -448.0), 448.0)
    at = y_ptr + ((first + m).to(tl.int64) * (heads * HEAD))[:, None] + head * HEAD + d[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), (m < length)[:, None] & (d < HEAD)[None, :])


def attention(
    qkv: Tensor, heads: Heads, mask: Tensor | None, texts: int, *, scores: Scores = Scores(),
    starts: Tensor | None = None, longest: int = 0, spans: Tensor | None = None, times: float = 0.0,
    how: Attention | None = None,
) -> Tensor:  # fmt: skip
    """Computes softmax self-attention within every text.

    Args:
        qkv: float16 or bfloat16 `[rows, heads.width]`: queries, keys and values, each with its heads side by side.
        heads: how they lie, and what is done to them.
        mask: int `[texts, tokens]`, 0 where a key is padding; None means that there is no padding.
        texts: number of texts.
        scores: which keys a query sees, and what is added to its scores.
        starts: int32 `[texts + 1]`: the row where each text starts, then the number of rows; None means that all texts
            have equally many tokens.
        longest: number of tokens of the longest text, if `starts` is given.
        spans: int32 `[2, rows]`, if `starts` is given: the row where the text of each row starts, and the row behind
            its end. Only configurations that go across texts read it, and these take heads that are bare.
        times: if not 0, results are multiplied by it, cut to ±448, and stored in e4m3.
        how: the configuration; None takes the first of `ways`.

    Returns:
        `[rows, heads.heads * heads.head]`, in e4m3, or in the dtype of `qkv`.
    """
    rows, tokens = len(qkv), longest or len(qkv) // texts
    how = how or ways(tokens, heads.head)[0]
    width = heads.heads * heads.head
    y = torch.empty(rows, width, dtype=torch.float8_e4m3fn if times else qkv.dtype, device=qkv.device)
    padded = max(16, triton.next_power_of_2(heads.head))
    overlap = overlaps()
    halves = heads.turns is not None or heads.gains is not None
    grid = (texts * heads.heads, triton.cdiv(tokens, how.queries))
    if how.across:
        assert spans is not None
        assert mask is None
        assert scores.pairs is None
        assert not halves
        starts, tokens, grid = None, rows, (triton.cdiv(rows, how.queries) * heads.heads, 1)
    _attention[grid](
        qkv, mask, starts, spans, scores.distances, scores.pairs, *(heads.turns or (None, None)),
        *(heads.gains or (None, None)), y, tokens, heads.heads, heads.scale * _LOG2_E, heads.eps, times,
        scores.before, scores.after, 0 if scores.distances is None else scores.distances.shape[1] // 2,
        STRIDE=heads.width, KEYS=width, VALUES=width + heads.shared * heads.head, GROUP=heads.heads // heads.shared,
        HEAD=heads.head, PADDED=padded, HALVES=halves, GAINS=heads.gains is not None, TURNS=heads.turns is not None,
        MASK=mask is not None, STARTS=starts is not None, ACROSS=how.across,
        WHOLE=padded == heads.head and tokens % how.keys == 0 and starts is None and not how.across,
        BEFORE=scores.before >= 0, AFTER=scores.after >= 0, DISTANCES=scores.distances is not None,
        PAIRS=scores.pairs is not None, TIMES=times > 0, OVERLAP=overlap,
        BM=how.queries, BN=how.keys, num_warps=how.warps, num_stages=how.stages, **launch_options(overlap),
    )  # fmt: skip
    return y


def ways(tokens: int, head: int, *, across: bool = False) -> list[Attention]:
    """Lists configurations for texts of so many tokens; the first is used if nothing is measured.

    Args:
        tokens: number of tokens of the longest text.
        head: width of a head.
        across: whether `attention` gets `spans`, so that a program may have the queries of several texts; those ways
            suit texts that are shorter than the longest.
    """
    if across:
        tiles = [Attention(16, 16, 1, 2, True), Attention(32, 32, 2, 2, True)]
        return [*ways(tokens, head), *tiles, *([] if head > 128 else [Attention(64, 64, 4, 2, True)])]
    wide = head > 128
    if tokens <= 16:
        return [Attention(16, 16, 1, 1)]
    if tokens <= 32:
        return [Attention(16, 32, 2, 2), Attention(32, 32, 4, 1)]
    if tokens <= 64:
        return [Attention(32, 64, 4, 1), Attention(64, 64, 4, 1)]
    if tokens <= 128:
        made = [Attention(64, 128, 4, 1), Attention(64, 64, 4, 2), Attention(128, 128, 8, 1)]
        return [Attention(64, 64, 8, 1), Attention(64, 32, 4, 2)] if wide else made
    made = [Attention(128, 64, 4, 3), Attention(64, 64, 4, 3), Attention(128, 128, 8, 2), Attention(128, 64, 8, 2)]
    return [Attention(64, 64, 8, 1), Attention(64, 32, 4, 2), Attention(128, 64, 8, 1)] if wide else made
