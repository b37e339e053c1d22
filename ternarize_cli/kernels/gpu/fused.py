"""The kernels between products: embedding, layer norm and rounding (`attention` has a file of its own).

For the next product, a kernel gives 8-bit activations, int8 or e4m3, and a scale for each row (token).
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.gelu import gelu
from ternarize_cli.kernels.gpu.matmul import begin, filled, launch_options, nearest, on_gpu, overlaps

__all__ = ["Norm", "Rounded", "Sums", "embed", "norm", "quantise"]

_TWO_A_WARP = 8192  # from this number of rows on, a warp takes two; with fewer rows some warps would have none


class Rounded(NamedTuple):
    """8-bit activations, int8 or e4m3 `[rows, width]`, and their scales, float32 `[rows]`.

    If the kernel was given b, a row is in the order of `matmul.in_order`; otherwise in natural order.
    """

    q: Tensor
    t: Tensor


class Norm(NamedTuple):
    """A layer norm: gain and bias, float32 `[width]`, and the epsilon that is added to the variance."""

    gain: Tensor
    bias: Tensor
    eps: float


class Sums(NamedTuple):
    """The sums of an unfinished product: int32 `[rows, width]`, which the reader sets to zero.

    To finish it, multiply by `t` `[rows]` and `scale` `[width]`, and add `bias`, float32 `[width]` or None.
    """

    raw: Tensor
    t: Tensor
    scale: Tensor
    bias: Tensor | None


@triton.jit
def _store_rounded(
    x, q_ptr, t_ptr, row, here,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, B: tl.constexpr, E4M3: tl.constexpr,
):  # fmt: skip
    largest = tl.max(tl.abs(x), axis=1)
    if E4M3:
        t = largest / 448.0  # x / t and the faster x · (1 / t) agree in the 3 bits of e4m3's mantissa
        q = x * (1.0 / tl.maximum(t, 1e-30))[:, None]
    else:
        t = largest / 127.0
        q = nearest(x / tl.maximum(t, 1e-30)[:, None])
    q = q.to(q_ptr.dtype.element_ty)
    k = tl.arange(0, BLOCK)
    if B:
        q = tl.reshape(tl.permute(tl.reshape(q, (ROWS, BLOCK // (4 * B), B, 4)), (0, 1, 3, 2)), (ROWS, BLOCK))
        FILLED: tl.constexpr = (WIDTH + 4 * B - 1) // (4 * B) * 4 * B
        tl.store(q_ptr + row[:, None] * FILLED + k[None, :], q, here[:, None] & (k < FILLED)[None, :])
    else:
        tl.store(q_ptr + row[:, None] * WIDTH + k[None, :], q, here[:, None] & (k < WIDTH)[None, :])
    tl.store(t_ptr + row, t, here)


@triton.jit
def _normed(x, gain_ptr, bias_ptr, eps, k, WIDTH: tl.constexpr):
    away = tl.where((k < WIDTH)[None, :], x - (tl.sum(x, axis=1) / WIDTH)[:, None], 0.0)
    spread = tl.rsqrt(tl.sum(away * away, axis=1) / WIDTH + eps)
    gain, bias = tl.load(gain_ptr + k, k < WIDTH, 0.0), tl.load(bias_ptr + k, k < WIDTH, 0.0)
    return away * spread[:, None] * gain[None, :] + bias[None, :]


@triton.jit(do_not_specialize=["rows"])
def _norm(
    x_ptr, y_ptr, raw_t_ptr, scale_ptr, added_ptr, gain_ptr, bias_ptr, kept_ptr, q_ptr, t_ptr, rows, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr, RAW: tl.constexpr,
    BIAS: tl.constexpr, AFTER: tl.constexpr, ROUND: tl.constexpr, B: tl.constexpr, E4M3: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    here = row < rows
    at, inside = row[:, None] * WIDTH + k[None, :], here[:, None] & (k < WIDTH)[None, :]
    begin(OVERLAP)
    x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
    if RAW:
        raw = tl.load(y_ptr + at, inside, 0)
        tl.debug_barrier()  # one thread may clear what another still reads
        tl.store(y_ptr + at, tl.zeros((ROWS, BLOCK), tl.int32), inside)
        y = raw.to(tl.float32) * tl.load(scale_ptr + k, k < WIDTH, 0.0)[None, :]
        y *= tl.load(raw_t_ptr + row, here, 0.0)[:, None]
        if BIAS:
            y += tl.load(added_ptr + k, k < WIDTH, 0.0)[None, :]
        x += y
    elif ADD:
        x += tl.load(y_ptr + at, inside, 0.0).to(tl.float32)
    if not AFTER:
        tl.store(kept_ptr + at, x.to(kept_ptr.dtype.element_ty), inside)
    z = _normed(x, gain_ptr, bias_ptr, eps, k, WIDTH)
    if AFTER:
        tl.store(kept_ptr + at, z.to(kept_ptr.dtype.element_ty), inside)
    if ROUND:
        _store_rounded(z, q_ptr, t_ptr, row, here, WIDTH, BLOCK, ROWS, B, E4M3)


def norm(
    x: Tensor, y: Tensor | Sums | None, by: Norm, *, after: bool, dtype: torch.dtype | None,
    b: int = 0, kept: torch.dtype | None = None,
) -> tuple[Tensor, Rounded]:  # fmt: skip
    """Computes the layer norm of `x + y`, and rounds it for a product.

    Args:
        x, y: `[rows, width]`; y may be None.
        by: the layer norm.
        after: whether the residual is the result of the norm (post-norm) or its input (pre-norm).
        dtype: int8 or e4m3; None rounds nothing.
        b: block size of the order of the weights' inputs (`matmul`); 0 is natural order.
        kept: dtype of the residual; None keeps that of x.

    Returns:
        The residual and the rounded norm.
    """
    x = x.contiguous()
    rows, width = x.shape
    residual = torch.empty(rows, width, dtype=kept or x.dtype, device=x.device)
    rounded = _empty(rows, filled(width, b) if b else width, dtype or torch.int8, x.device)
    raw = y if isinstance(y, Sums) else None
    block = triton.next_power_of_2(max(width, 4 * b))
    each, warps = _shared_out(rows, block)
    overlap = overlaps()
    _norm[(triton.cdiv(rows, each),)](
        x, raw.raw if raw else y, raw and raw.t, raw and raw.scale, raw and raw.bias, by.gain, by.bias, residual,
        *rounded, rows, by.eps,
        WIDTH=width, BLOCK=block, ROWS=each, ADD=y is not None, RAW=raw is not None,
        BIAS=raw is not None and raw.bias is not None, AFTER=after, ROUND=dtype is not None, B=b,
        E4M3=dtype == torch.float8_e4m3fn, OVERLAP=overlap, num_warps=warps, **launch_options(overlap),
    )  # fmt: skip
    return residual, rounded


def _shared_out(rows: int, block: int) -> tuple[int, int]:
    """Chooses the rows and the warps of a program. With many rows, a warp reads two at once, and none waits."""
    if rows >= _TWO_A_WARP and block <= 1024:
        return 2, 1
    return 1, max(1, min(8, block // 256))


def _empty(rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Rounded:
    return Rounded(
        torch.empty(rows, width, dtype=dtype, device=device), torch.empty(rows, dtype=torch.float32, device=device)
    )


@triton.jit
def _looked_up(table_ptr, scales_ptr, entry, k, inside, WIDTH: tl.constexpr):
    found = tl.load(table_ptr + entry[:, None] * WIDTH + k[None, :], inside, 0).to(tl.float32)
    return found * tl.load(scales_ptr + entry)[:, None]


@triton.jit(do_not_specialize=["rows"])
def _embed(
    ids_ptr, kinds_ptr, words_ptr, word_scales_ptr, types_ptr, type_scales_ptr, places_ptr, place_scales_ptr,
    gain_ptr, bias_ptr, kept_ptr, q_ptr, t_ptr, rows, tokens, words, kinds, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, KINDS: tl.constexpr, B: tl.constexpr,
    E4M3: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    here = row < rows
    inside = here[:, None] & (k < WIDTH)[None, :]
    begin(OVERLAP)
    word, place, kind = tl.load(ids_ptr + row, here, 0), row % tokens, tl.zeros_like(row)
    known = (word >= 0) & (word < words)
    if KINDS:
        kind = tl.load(kinds_ptr + row, here, 0)
        known &= (kind >= 0) & (kind < kinds)
    word, kind = tl.where(known, word, 0), tl.where(known, kind, 0)
    x = _looked_up(words_ptr, word_scales_ptr, word, k, inside, WIDTH)
    x += _looked_up(types_ptr, type_scales_ptr, kind, k, inside, WIDTH)
    x += _looked_up(places_ptr, place_scales_ptr, place, k, inside, WIDTH)
    z = _normed(x, gain_ptr, bias_ptr, eps, k, WIDTH)
    z = tl.where(known[:, None], z, float("nan"))
    tl.store(kept_ptr + row[:, None] * WIDTH + k[None, :], z.to(kept_ptr.dtype.element_ty), inside)
    _store_rounded(z, q_ptr, t_ptr, row, here, WIDTH, BLOCK, ROWS, B, E4M3)


def embed(
    ids: Tensor, kinds: Tensor | None, tables: list[tuple[Tensor, Tensor]], by: Norm, *, dtype: torch.dtype,
    kept: torch.dtype, b: int = 0,
) -> tuple[Tensor, Rounded]:  # fmt: skip
    """Computes BERT's embedding: the sum of words, token types and positions, its layer norm, and that rounded.

    Args:
        ids: int64 `[texts, tokens]`, ids of words.
        kinds: int64 `[texts, tokens]`, token types; None means that all are 0.
        tables: the tables of words, token types and positions: int8 `[n, width]` with scales, float32 `[n]`.
        by: the layer norm.
        dtype: int8 or e4m3.
        kept: dtype of the residual.
        b: block size of the order of the weights' inputs (`matmul`); 0 is natural order.

    Returns:
        The residual `[texts · tokens, width]`, NaN for ids beyond a table, and the rounded norm.
    """
    (words, word_scales), (types, type_scales), (places, place_scales) = tables
    rows, width = ids.numel(), words.shape[1]
    residual = torch.empty(rows, width, dtype=kept, device=ids.device)
    rounded = _empty(rows, filled(width, b) if b else width, dtype, ids.device)
    block = triton.next_power_of_2(max(width, 4 * b))
    each, warps = _shared_out(rows, block)
    overlap = overlaps()
    _embed[(triton.cdiv(rows, each),)](
        ids, kinds, words, word_scales, types, type_scales, places, place_scales, by.gain, by.bias, residual, *rounded,
        rows, ids.shape[1], len(words), len(types), by.eps,
        WIDTH=width, BLOCK=block, ROWS=each, KINDS=kinds is not None, B=b, E4M3=dtype == torch.float8_e4m3fn,
        OVERLAP=overlap, num_warps=warps, **launch_options(overlap),
    )  # fmt: skip
    return residual, rounded


@triton.jit(do_not_specialize=["rows"])
def _quantise(
    x_ptr, q_ptr, t_ptr, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, GELU: tl.constexpr, B: tl.constexpr,
    E4M3: tl.constexpr, NATIVE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    here = row < rows
    begin(OVERLAP)
    inside = here[:, None] & (k < WIDTH)[None, :]
    x = tl.load(x_ptr + row[:, None] * WIDTH + k[None, :], inside, 0.0).to(tl.float32)
    if GELU:
        x = gelu(x, NATIVE)
    _store_rounded(x, q_ptr, t_ptr, row, here, WIDTH, BLOCK, ROWS, B, E4M3)


def quantise(x: Tensor, dtype: torch.dtype, *, b: int = 0, activate: bool = False) -> Rounded:
    """Rounds `x` `[rows, width]`, or GELU of `x` if `activate`, to int8 or e4m3; b is the order, as in `norm`."""
    x = x.contiguous()
    rows, width = x.shape
    rounded = _empty(rows, filled(width, b) if b else width, dtype, x.device)
    block = triton.next_power_of_2(max(width, 4 * b))
    each, warps = _shared_out(rows, block)
    overlap = overlaps()
    _quantise[(triton.cdiv(rows, each),)](
        x, *rounded, rows, WIDTH=width, BLOCK=block, ROWS=each, GELU=activate, B=b, E4M3=dtype == torch.float8_e4m3fn,
        NATIVE=on_gpu(), OVERLAP=overlap,
        num_warps=warps, **launch_options(overlap),
    )  # fmt: skip
    return rounded
