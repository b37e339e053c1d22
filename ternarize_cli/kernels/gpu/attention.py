"""Softmax self-attention in one kernel that never stores the scores (FlashAttention, arXiv 2205.14135)."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.matmul import begin, launch_options, overlaps

__all__ = ["Attention", "attention"]


class Attention(NamedTuple):
    """The configuration of `attention`: queries and keys of a step, warps, stages."""

    queries: int
    keys: int
    warps: int
    stages: int


@triton.jit
def _attention(
    qkv_ptr, mask_ptr, starts_ptr, y_ptr, tokens, heads, scale,
    WIDTH: tl.constexpr, HEAD: tl.constexpr, PADDED: tl.constexpr, MASK: tl.constexpr, STARTS: tl.constexpr,
    WHOLE: tl.constexpr, OVERLAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0) // heads, tl.program_id(0) % heads
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    d = tl.arange(0, PADDED)
    begin(OVERLAP)
    first = text * tokens
    if STARTS:
        first = tl.load(starts_ptr + text)
        tokens = tl.load(starts_ptr + text + 1) - first
    base = qkv_ptr + first.to(tl.int64) * (3 * WIDTH) + head * HEAD
    q = tl.load(base + m[:, None] * (3 * WIDTH) + d[None, :], (m < tokens)[:, None] & (d < HEAD)[None, :], 0.0)
    q = (q * scale).to(q.dtype)
    largest = tl.full((BM,), -1e30, tl.float32)
    weights = tl.zeros((BM,), tl.float32)
    total = tl.zeros((BM, PADDED), tl.float32)
    for start in range(0, tokens, BN):
        key = start + tl.arange(0, BN)
        at = base + key[:, None] * (3 * WIDTH) + d[None, :]
        if WHOLE:
            k = tl.load(at + WIDTH)
        else:
            k = tl.load(at + WIDTH, (key < tokens)[:, None] & (d < HEAD)[None, :], 0.0)
        s = tl.dot(q, k.T)
        if MASK:
            seen = tl.load(mask_ptr + first + key, key < tokens, 0) != 0
            s = tl.where(seen[None, :], s, -1e30)
        elif not WHOLE:
            s = tl.where((key < tokens)[None, :], s, -1e30)
        higher = tl.maximum(largest, tl.max(s, axis=1))
        p = tl.exp2(s - higher[:, None])
        shrink = tl.exp2(largest - higher)
        weights = weights * shrink + tl.sum(p, axis=1)
        if WHOLE:
            v = tl.load(at + 2 * WIDTH)
        else:
            v = tl.load(at + 2 * WIDTH, (key < tokens)[:, None] & (d < HEAD)[None, :], 0.0)
        total = tl.dot(p.to(v.dtype), v, total * shrink[:, None])
        largest = higher
    y = (total / weights[:, None]).to(y_ptr.dtype.element_ty)
    at = y_ptr + ((first + m).to(tl.int64) * WIDTH)[:, None] + head * HEAD + d[None, :]
    tl.store(at, y, (m < tokens)[:, None] & (d < HEAD)[None, :])


def attention(
    qkv: Tensor, mask: Tensor | None, texts: int, heads: int, *, starts: Tensor | None = None, longest: int = 0,
    how: Attention | None = None,
) -> Tensor:  # fmt: skip
    """Computes softmax self-attention within every text.

    Args:
        qkv: float16 or bfloat16 `[rows, 3 · width]`: queries, keys and values, each with its heads side by side.
        mask: int `[texts, tokens]`, 0 where a key is padding; None means that there is no padding.
        texts: number of texts.
        heads: number of heads.
        starts: int32 `[texts + 1]`: the row where each text starts, then the number of rows; None means that all texts
            have equally many tokens.
        longest: number of tokens of the longest text, if `starts` is given.
        how: the configuration; None chooses it by the number of tokens.

    Returns:
        `[rows, width]`, in the dtype of `qkv`.
    """
    rows, width = qkv.shape[0], qkv.shape[1] // 3
    tokens, head = longest or rows // texts, width // heads
    how = how or _attention_for(tokens)
    y = torch.empty(rows, width, dtype=qkv.dtype, device=qkv.device)
    padded = max(16, triton.next_power_of_2(head))
    overlap = overlaps()
    _attention[(texts * heads, triton.cdiv(tokens, how.queries))](
        qkv, mask, starts, y, tokens, heads, head**-0.5 * 1.4426950408889634,
        WIDTH=width, HEAD=head, PADDED=padded, MASK=mask is not None, STARTS=starts is not None,
        WHOLE=padded == head and tokens % how.keys == 0 and starts is None, OVERLAP=overlap,
        BM=how.queries, BN=how.keys, num_warps=how.warps, num_stages=how.stages, **launch_options(overlap),
    )  # fmt: skip
    return y


def _attention_for(tokens: int) -> Attention:
    if tokens <= 16:
        return Attention(16, 16, 1, 1)
    if tokens <= 32:
        return Attention(16, 32, 2, 2)
    if tokens <= 64:
        return Attention(32, 64, 4, 1)
    if tokens <= 128:
        return Attention(64, 128, 4, 1)
    return Attention(128, 64, 4, 3)
