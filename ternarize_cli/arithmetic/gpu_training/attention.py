"""Softmax self-attention with its gradient, which never stores the scores, in Triton.

The arithmetic is that of FlashAttention (arXiv 2205.14135): the forward pass keeps the logarithm of each query's sum of
exponentials, from which the backward pass computes the probabilities again.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["self_attention"]

_LOG2_E = 1.4426950408889634


def self_attention(
    qkv: Tensor, heads: int, scale: float, mask: Tensor | None = None, distances: Tensor | None = None
) -> Tensor:
    """Computes softmax self-attention within every text.

    Args:
        qkv: float `[texts, tokens, 3 * width]`: queries, keys and values, each with its heads side by side.
        heads: the number of heads, each of `width / heads` numbers.
        scale: by what the products of queries and keys are multiplied.
        mask: bool or uint8 `[texts, tokens]`, 0 where a key is padding; every text has a key that is none. None means
            that there is no padding.
        distances: float32 `[heads, 2 * reach + 1]`, added to the scores by the distance from query to key, cut to
            ±reach; it gets no gradient. None adds nothing.

    Returns:
        `[texts, tokens, width]` in the dtype of `qkv`.
    """
    y: Tensor = _SelfAttention.apply(qkv, heads, scale, mask, distances)  # type: ignore[no-untyped-call]
    return y


@triton.jit
def _scores(
    q, k, m, n, scale, seen, distances_ptr, head, reach, DISTANCES: tl.constexpr,
):  # fmt: skip
    """Computes the scores of queries `m` and keys `n` in powers of two, -1e30 where a key is not seen."""
    s = tl.dot(q, k.T) * scale
    if DISTANCES:
        away = tl.minimum(tl.maximum(n[None, :] - m[:, None], -reach), reach) + reach
        s += tl.load(distances_ptr + head * (2 * reach + 1) + away) * 1.4426950408889634
    return tl.where(seen[None, :], s, -1e30)


@triton.jit
def _seen(mask_ptr, text, tokens, n, MASK: tl.constexpr):
    """Says which keys are there, and no padding."""
    there = n < tokens
    if MASK:
        there = there & (tl.load(mask_ptr + text * tokens + n, there, 0) != 0)
    return there


@triton.jit(do_not_specialize=["tokens", "reach"])
def _attention(
    qkv_ptr, mask_ptr, distances_ptr, y_ptr, sums_ptr, tokens, heads, scale, reach,
    HEAD: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, DISTANCES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    d = tl.arange(0, PADDED)
    width = heads * HEAD
    base = qkv_ptr + (text * tokens).to(tl.int64) * 3 * width + head * HEAD + d[None, :]
    inside = (d < HEAD)[None, :]
    q = tl.load(base + m[:, None] * 3 * width, (m < tokens)[:, None] & inside, 0.0)
    largest = tl.full((BM,), -1e30, tl.float32)
    weights = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, PADDED), tl.float32)
    for start in range(0, tokens, BN):
        n = start + tl.arange(0, BN)
        at, there = base + n[:, None] * 3 * width + width, (n < tokens)[:, None] & inside
        k, v = tl.load(at, there, 0.0), tl.load(at + width, there, 0.0)
        seen = _seen(mask_ptr, text, tokens, n, MASK)
        s = _scores(q, k, m, n, scale, seen, distances_ptr, head, reach, DISTANCES)
        higher = tl.maximum(largest, tl.max(s, axis=1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(largest - higher)
        weights = weights * shrink + tl.sum(p, axis=1)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None])
        largest = higher
    y = total / weights[:, None]
    at = y_ptr + (text * tokens + m).to(tl.int64)[:, None] * width + head * HEAD + d[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), (m < tokens)[:, None] & inside)
    tl.store(sums_ptr + tl.program_id(0) * tokens + m, largest + tl.log2(weights), m < tokens)


@triton.jit(do_not_specialize=["tokens", "reach"])
def _of_queries(
    qkv_ptr, mask_ptr, distances_ptr, y_ptr, of_y_ptr, sums_ptr, means_ptr, of_qkv_ptr, tokens, heads, scale, reach,
    factor,
    HEAD: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, DISTANCES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Computes the gradient of queries, and each query's mean gradient of its probabilities, weighed by these."""
    text, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    d = tl.arange(0, PADDED)
    width = heads * HEAD
    offset = (text * tokens).to(tl.int64) * 3 * width + head * HEAD + d[None, :]
    base = qkv_ptr + offset
    inside, present = (d < HEAD)[None, :], m < tokens
    here = present[:, None] & inside
    q = tl.load(base + m[:, None] * 3 * width, here, 0.0)
    at = (text * tokens + m).to(tl.int64)[:, None] * width + head * HEAD + d[None, :]
    of_y = tl.load(of_y_ptr + at, here, 0.0)
    mean = tl.sum(of_y.to(tl.float32) * tl.load(y_ptr + at, here, 0.0).to(tl.float32), axis=1)
    place = tl.program_id(0) * tokens + m
    tl.store(means_ptr + place, mean, present)
    sums = tl.load(sums_ptr + place, present, 0.0)
    total = tl.zeros((BM, PADDED), tl.float32)
    for start in range(0, tokens, BN):
        n = start + tl.arange(0, BN)
        keys, there = base + n[:, None] * 3 * width + width, (n < tokens)[:, None] & inside
        k, v = tl.load(keys, there, 0.0), tl.load(keys + width, there, 0.0)
        seen = _seen(mask_ptr, text, tokens, n, MASK)
        s = _scores(q, k, m, n, scale, seen, distances_ptr, head, reach, DISTANCES)
        p = tl.exp2(s - sums[:, None])
        of_s = p * (tl.dot(of_y, v.T) - mean[:, None])
        total = tl.dot(of_s.to(k.dtype), k, total)
    tl.store(of_qkv_ptr + offset + m[:, None] * 3 * width, (total * factor).to(of_qkv_ptr.dtype.element_ty), here)


@triton.jit(do_not_specialize=["tokens", "reach"])
def _of_keys(
    qkv_ptr, mask_ptr, distances_ptr, of_y_ptr, sums_ptr, means_ptr, of_qkv_ptr, tokens, heads, scale, reach, factor,
    HEAD: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, DISTANCES: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Computes the gradients of keys and values."""
    text, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    d = tl.arange(0, PADDED)
    width = heads * HEAD
    offset = (text * tokens).to(tl.int64) * 3 * width + head * HEAD + d[None, :]
    base = qkv_ptr + offset
    inside = (d < HEAD)[None, :]
    there = (n < tokens)[:, None] & inside
    keys = n[:, None] * 3 * width + width
    k, v = tl.load(base + keys, there, 0.0), tl.load(base + keys + width, there, 0.0)
    seen = _seen(mask_ptr, text, tokens, n, MASK)
    of_k = tl.zeros((BN, PADDED), tl.float32)
    of_v = tl.zeros((BN, PADDED), tl.float32)
    for start in range(0, tokens, BM):
        m = start + tl.arange(0, BM)
        present = m < tokens
        here = present[:, None] & inside
        q = tl.load(base + m[:, None] * 3 * width, here, 0.0)
        at = (text * tokens + m).to(tl.int64)[:, None] * width + head * HEAD + d[None, :]
        of_y = tl.load(of_y_ptr + at, here, 0.0)
        place = tl.program_id(0) * tokens + m
        s = _scores(q, k, m, n, scale, seen, distances_ptr, head, reach, DISTANCES)
        p = tl.where(present[:, None], tl.exp2(s - tl.load(sums_ptr + place, present, 0.0)[:, None]), 0.0)
        of_v = tl.dot(p.to(of_y.dtype).T, of_y, of_v)
        of_s = p * (tl.dot(of_y, v.T) - tl.load(means_ptr + place, present, 0.0)[:, None])
        of_k = tl.dot(of_s.to(q.dtype).T, q, of_k)
    kind = of_qkv_ptr.dtype.element_ty
    tl.store(of_qkv_ptr + offset + keys, (of_k * factor).to(kind), there)
    tl.store(of_qkv_ptr + offset + keys + width, of_v.to(kind), there)


class _SelfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, qkv: Tensor, heads: int, scale: float, mask: Tensor | None, distances: Tensor | None
    ) -> Tensor:
        qkv = qkv.contiguous()
        texts, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
        mask = None if mask is None else mask.contiguous().view(torch.uint8)
        distances = None if distances is None else distances.float().contiguous()
        ctx.heads, ctx.scale = heads, scale
        y = qkv.new_empty(texts, tokens, width)
        sums = torch.empty(texts * heads, tokens, dtype=torch.float32, device=qkv.device)
        ways = _ways(tokens, width // heads).forward
        _attention[(texts * heads, triton.cdiv(tokens, ways["BM"]))](
            qkv, mask, distances, y, sums, tokens, heads, scale * _LOG2_E, _reach(distances),
            **_shape(qkv, heads, mask, distances), **ways,
        )  # fmt: skip
        ctx.save_for_backward(qkv, y, sums, mask, distances)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, y, sums, mask, distances = ctx.saved_tensors
        of_y = gradients[0].contiguous()
        texts, tokens, width = y.shape
        of_qkv, means = torch.empty_like(qkv), torch.empty_like(sums)
        given = tokens, ctx.heads, ctx.scale * _LOG2_E, _reach(distances), ctx.scale
        shape, ways = _shape(qkv, ctx.heads, mask, distances), _ways(tokens, width // ctx.heads)
        programs = texts * ctx.heads
        _of_queries[(programs, triton.cdiv(tokens, ways.of_queries["BM"]))](
            qkv, mask, distances, y, of_y, sums, means, of_qkv, *given, **shape, **ways.of_queries
        )
        _of_keys[(programs, triton.cdiv(tokens, ways.of_keys["BN"]))](
            qkv, mask, distances, of_y, sums, means, of_qkv, *given, **shape, **ways.of_keys
        )
        return of_qkv, None, None, None, None


def _reach(distances: Tensor | None) -> int:
    return 0 if distances is None else distances.shape[1] // 2


def _shape(qkv: Tensor, heads: int, mask: Tensor | None, distances: Tensor | None) -> dict[str, Any]:
    """The constants of all kernels."""
    head = qkv.shape[2] // 3 // heads
    return {
        "HEAD": head,
        "PADDED": max(16, triton.next_power_of_2(head)),
        "MASK": mask is not None,
        "DISTANCES": distances is not None,
    }


class _Ways(NamedTuple):
    """The configurations of the three kernels: queries and keys of a step, warps, stages."""

    forward: dict[str, int]
    of_queries: dict[str, int]
    of_keys: dict[str, int]


def _ways(tokens: int, head: int) -> _Ways:
    """Chooses configurations by the number of tokens of a text, and the numbers of a head."""

    def way(queries: int, keys: int, warps: int, stages: int) -> dict[str, int]:
        return {"BM": queries, "BN": keys, "num_warps": warps, "num_stages": stages}

    if tokens <= 32 or head > 128:
        few = way(32, 32, 4 if head > 64 else 2, 1)
        return _Ways(few, few, few)
    many = way(64, 64, 4, 1)
    return _Ways(many, many, way(64, 64, 4, 2) if tokens > 64 and head <= 64 else many)
