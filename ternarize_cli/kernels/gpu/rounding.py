"""Rounds activations to 8 bits for the next product: int8 or e4m3, with a scale for each row (token)."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.activation import activated
from ternarize_cli.kernels.gpu.matmul import begin, filled, launch_options, nearest, on_gpu, overlaps

__all__ = ["Rounded", "RowWay", "empty_rounded", "quantise", "row_ways", "store_rounded"]

_MANY = 2048  # rows from which on configurations are measured


class RowWay(NamedTuple):
    """The configuration of a kernel that reads whole rows: rows and warps of a program."""

    rows: int
    warps: int


class Rounded(NamedTuple):
    """8-bit activations, int8 or e4m3 `[rows, width]`, and their scales: float32 `[rows]`, or one for all rows.

    If the kernel was given b, a row is in the order of `matmul.in_order`; otherwise in natural order.
    """

    q: Tensor
    t: Tensor | float

    @property
    def scales(self) -> Tensor:
        """The scales of all rows, which are not one number."""
        assert isinstance(self.t, Tensor)
        return self.t


@triton.jit
def store_rounded(
    x, q_ptr, t_ptr, row, here,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, B: tl.constexpr, E4M3: tl.constexpr,
):  # fmt: skip
    """Rounds rows `x` `[ROWS, BLOCK]`, and stores them and their scales."""
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


def row_ways(rows: int, width: int) -> list[RowWay]:
    """Lists configurations for a kernel that reads whole rows; the first is used if nothing is measured.

    With many rows a warp may read two at once, so that none waits; with few, some warps would have none.
    """
    block = triton.next_power_of_2(width)
    usual = RowWay(1, max(1, min(8, block // 256)))
    if rows < _MANY:
        return [usual]
    if block <= 1024:
        return [RowWay(2, 1), RowWay(1, 1), RowWay(1, 2), RowWay(4, 4), RowWay(8, 8), usual]
    return [usual, RowWay(1, 4), RowWay(1, 2), RowWay(2, 8)]


def empty_rounded(rows: int, width: int, dtype: torch.dtype, b: int, device: torch.device) -> Rounded:
    """Allocates rounded activations for a product whose weights' inputs have the order `b`."""
    q = torch.empty(rows, filled(width, b) if b else width, dtype=dtype, device=device)
    return Rounded(q, torch.empty(rows, dtype=torch.float32, device=device))


@triton.jit(do_not_specialize=["rows"])
def _quantise(
    x_ptr, q_ptr, t_ptr, rows,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    B: tl.constexpr, E4M3: tl.constexpr, NATIVE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    here = row < rows
    begin(OVERLAP)
    inside = here[:, None] & (k < WIDTH)[None, :]
    STRIDE: tl.constexpr = 2 * WIDTH if GATED else WIDTH
    at = x_ptr + row[:, None] * STRIDE + k[None, :]
    x = tl.load(at, inside, 0.0).to(tl.float32)
    if ACTIVATION is not None:
        x = activated(x, ACTIVATION, NATIVE)
    if GATED:
        x *= tl.load(at + WIDTH, inside, 0.0).to(tl.float32)
    store_rounded(x, q_ptr, t_ptr, row, here, WIDTH, BLOCK, ROWS, B, E4M3)


def quantise(
    x: Tensor, dtype: torch.dtype, *, b: int = 0, activation: str | None = None, gated: bool = False,
    how: RowWay | None = None,
) -> Rounded:  # fmt: skip
    """Applies an activation, and rounds.

    Args:
        x: `[rows, width]`; `[rows, 2 * width]` if gated.
        dtype: int8 or e4m3.
        b: block size of the order of the weights' inputs (`matmul`); 0 is natural order.
        activation: one of `format.block.ACTIVATIONS`; None for none.
        gated: whether the activated first half of a row is multiplied by the second.
        how: the configuration; None takes the first of `row_ways`.
    """
    x = x.contiguous()
    rows, width = len(x), x.shape[1] // 2 if gated else x.shape[1]
    rounded = empty_rounded(rows, width, dtype, b, x.device)
    block = triton.next_power_of_2(max(width, 4 * b))
    each, warps = how or row_ways(rows, width)[0]
    overlap = overlaps()
    _quantise[(triton.cdiv(rows, each),)](
        x, *rounded, rows, WIDTH=width, BLOCK=block, ROWS=each, ACTIVATION=activation, GATED=gated, B=b,
        E4M3=dtype == torch.float8_e4m3fn, NATIVE=on_gpu(), OVERLAP=overlap, num_warps=warps,
        **launch_options(overlap),
    )  # fmt: skip
    return rounded
