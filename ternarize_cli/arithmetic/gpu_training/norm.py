"""Layer norm with its gradient, each one pass over the rows, in Triton."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["layer_norm"]

_PROGRAMS = 264
"""The most programs of the backward pass, two for each multiprocessor of a Hopper card: each adds up gradients of its
rows, and these parts are added up afterwards, always in the same order."""


def layer_norm(x: Tensor, gain: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Computes the layer norm of rows in float32, and rounds it to a dtype.

    Args:
        x: `[..., width]`, at least a row, in any float dtype, in which its gradient is, too.
        gain, shift: `[width]`, in any float dtype.
        eps: added to the variance.
        dtype: the dtype of the result.

    Returns:
        `[..., width]`, `(x - mean) / sqrt(variance + eps) * gain + shift`.
    """
    y: Tensor = _LayerNorm.apply(x, gain, shift, eps, dtype)  # type: ignore[no-untyped-call]
    return y


@triton.jit(do_not_specialize=["rows"])
def _norm(
    x_ptr, gain_ptr, shift_ptr, y_ptr, mean_ptr, spread_ptr, rows, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    here, real = row < rows, k < WIDTH
    at, inside = row[:, None] * WIDTH + k[None, :], here[:, None] & real[None, :]
    x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
    mean = tl.sum(x, axis=1) / WIDTH
    away = tl.where(real[None, :], x - mean[:, None], 0.0)
    spread = tl.rsqrt(tl.sum(away * away, axis=1) / WIDTH + eps)
    gain = tl.load(gain_ptr + k, real, 0.0).to(tl.float32)
    shift = tl.load(shift_ptr + k, real, 0.0).to(tl.float32)
    y = away * spread[:, None] * gain[None, :] + shift[None, :]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), inside)
    tl.store(mean_ptr + row, mean, here)
    tl.store(spread_ptr + row, spread, here)


@triton.jit(do_not_specialize=["rows", "each"])
def _of_norm(
    x_ptr, of_y_ptr, gain_ptr, mean_ptr, spread_ptr, of_x_ptr, parts_ptr, rows, each,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    k = tl.arange(0, BLOCK)
    real = k < WIDTH
    gain = tl.load(gain_ptr + k, real, 0.0).to(tl.float32)
    of_gain = tl.zeros((BLOCK,), tl.float32)
    of_shift = tl.zeros((BLOCK,), tl.float32)
    first = tl.program_id(0) * each
    last = tl.minimum(first + each, rows)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        here = row < last
        at, inside = row.to(tl.int64)[:, None] * WIDTH + k[None, :], here[:, None] & real[None, :]
        x = tl.load(x_ptr + at, inside, 0.0).to(tl.float32)
        of_y = tl.load(of_y_ptr + at, inside, 0.0).to(tl.float32)
        mean, spread = tl.load(mean_ptr + row, here, 0.0), tl.load(spread_ptr + row, here, 0.0)
        normal = tl.where(inside, (x - mean[:, None]) * spread[:, None], 0.0)
        g = of_y * gain[None, :]
        along = tl.sum(g * normal, axis=1) / WIDTH
        of_x = (g - (tl.sum(g, axis=1) / WIDTH)[:, None] - normal * along[:, None]) * spread[:, None]
        tl.store(of_x_ptr + at, of_x.to(of_x_ptr.dtype.element_ty), inside)
        of_gain += tl.sum(of_y * normal, axis=0)
        of_shift += tl.sum(of_y, axis=0)
    part = parts_ptr + tl.program_id(0) * 2 * WIDTH + k
    tl.store(part, of_gain, real)
    tl.store(part + WIDTH, of_shift, real)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        mean = torch.empty(rows, dtype=torch.float32, device=x.device)
        spread = torch.empty_like(mean)
        block, each, warps = _shape(width)
        _norm[(triton.cdiv(rows, each),)](
            x, gain, shift, y, mean, spread, rows, eps, WIDTH=width, BLOCK=block, ROWS=each, num_warps=warps
        )
        ctx.save_for_backward(x, gain, mean, spread)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, mean, spread = ctx.saved_tensors
        of_y = gradients[0].contiguous()
        width, rows = x.shape[-1], mean.numel()
        block, at_once, warps = _shape(width)
        each = triton.cdiv(rows, min(_PROGRAMS, triton.cdiv(rows, at_once)))
        programs = triton.cdiv(rows, each)
        of_x = torch.empty_like(x)
        parts = torch.empty(programs, 2, width, dtype=torch.float32, device=x.device)
        _of_norm[(programs,)](
            x, of_y, gain, mean, spread, of_x, parts, rows, each,
            WIDTH=width, BLOCK=block, ROWS=at_once, num_warps=warps,
        )  # fmt: skip
        of_gain, of_shift = parts.sum(dim=0)
        return of_x, of_gain, of_shift, None, None


def _shape(width: int) -> tuple[int, int, int]:
    """Chooses the padded width, the rows that a program reads at once, and its warps."""
    block = triton.next_power_of_2(width)
    rows = max(1, 2048 // block)
    return block, rows, 4 if block <= 4096 else 8
