"""Adds to the residual, computes norms, and rounds the result for the next product, in one kernel."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.matmul import begin, launch_options, overlaps
from ternarize_cli.kernels.gpu.rounding import Rounded, RowWay, empty_rounded, row_ways, store_rounded

__all__ = ["Norm", "Sums", "norm", "normed"]


class Norm(NamedTuple):
    """A norm over the values of a token.

    Attributes:
        kind: "layer" or "rms", as in `format.block_parts.Norm`.
        gain: float32 `[width]`.
        shift: float32 `[width]`, which only a layer norm reads.
        eps: the epsilon.
    """

    kind: str
    gain: Tensor
    shift: Tensor
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
def normed(x, gain_ptr, shift_ptr, eps, k, WIDTH: tl.constexpr, KIND: tl.constexpr):
    """Computes the norm of rows `x`, whose values beyond `WIDTH` are 0; `KIND` None returns them as they are."""
    if KIND is None:
        return x
    else:
        gain = tl.load(gain_ptr + k, k < WIDTH, 0.0)
        if KIND == "rms":
            spread = tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)
            return x * spread[:, None] * gain[None, :]
        else:
            away = tl.where((k < WIDTH)[None, :], x - (tl.sum(x, axis=1) / WIDTH)[:, None], 0.0)
            spread = tl.rsqrt(tl.sum(away * away, axis=1) / WIDTH + eps)
            return away * spread[:, None] * gain[None, :] + tl.load(shift_ptr + k, k < WIDTH, 0.0)[None, :]


@triton.jit(do_not_specialize=["rows"])
def _norm(
    x_ptr, y_ptr, raw_t_ptr, scale_ptr, added_ptr, inner_gain_ptr, inner_shift_ptr, gain_ptr, shift_ptr, kept_ptr,
    q_ptr, t_ptr, rows, inner_eps, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr, RAW: tl.constexpr,
    BIAS: tl.constexpr, INNER: tl.constexpr, KIND: tl.constexpr, AFTER: tl.constexpr, ROUND: tl.constexpr,
    B: tl.constexpr, E4M3: tl.constexpr, OVERLAP: tl.constexpr,
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
        x += normed(y, inner_gain_ptr, inner_shift_ptr, inner_eps, k, WIDTH, INNER)
    elif ADD:
        y = tl.load(y_ptr + at, inside, 0.0).to(tl.float32)
        x += normed(y, inner_gain_ptr, inner_shift_ptr, inner_eps, k, WIDTH, INNER)
    if not AFTER:
        tl.store(kept_ptr + at, x.to(kept_ptr.dtype.element_ty), inside)
    z = normed(x, gain_ptr, shift_ptr, eps, k, WIDTH, KIND)
    if AFTER:
        tl.store(kept_ptr + at, z.to(kept_ptr.dtype.element_ty), inside)
    if ROUND:
        store_rounded(z, q_ptr, t_ptr, row, here, WIDTH, BLOCK, ROWS, B, E4M3)


def norm(
    x: Tensor, y: Tensor | Sums | None, by: Norm | None, *, after: bool, dtype: torch.dtype | None,
    inner: Norm | None = None, b: int = 0, kept: torch.dtype | None = None, how: RowWay | None = None,
) -> tuple[Tensor, Rounded]:  # fmt: skip
    """Computes the norm of `x + y`, and rounds it for a product.

    Args:
        x, y: `[rows, width]`; y may be None.
        by: the norm; None for none.
        after: whether the residual is the result of the norm (post-norm) or its input (pre-norm).
        dtype: int8 or e4m3; None rounds nothing.
        inner: a norm of `y` before it is added; None for none.
        b: block size of the order of the weights' inputs (`matmul`); 0 is natural order.
        kept: dtype of the residual; None keeps that of x.
        how: the configuration; None takes the first of `rounding.row_ways`.

    Returns:
        The residual and the rounded norm.
    """
    x = x.contiguous()
    rows, width = x.shape
    residual = torch.empty(rows, width, dtype=kept or x.dtype, device=x.device)
    rounded = empty_rounded(rows, width, dtype or torch.int8, b, x.device)
    raw = y if isinstance(y, Sums) else None
    block = triton.next_power_of_2(max(width, 4 * b))
    each, warps = how or row_ways(rows, width)[0]
    overlap = overlaps()
    _norm[(triton.cdiv(rows, each),)](
        x, raw.raw if raw else y, raw and raw.t, raw and raw.scale, raw and raw.bias,
        inner and inner.gain, inner and inner.shift, by and by.gain, by and by.shift, residual,
        *rounded, rows, inner.eps if inner else 0.0, by.eps if by else 0.0,
        WIDTH=width, BLOCK=block, ROWS=each, ADD=y is not None, RAW=raw is not None,
        BIAS=raw is not None and raw.bias is not None, INNER=inner.kind if inner else None,
        KIND=by.kind if by else None, AFTER=after, ROUND=dtype is not None, B=b,
        E4M3=dtype == torch.float8_e4m3fn, OVERLAP=overlap, num_warps=warps, **launch_options(overlap),
    )  # fmt: skip
    return residual, rounded
