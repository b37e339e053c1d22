"""Sums over rows, in Triton: the gradient of a bias."""

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["column_sums"]

_ROWS, _COLUMNS, _PARTS = 32, 128, 64
"""The rows and columns that a program reads at once, and the most parts into which rows are split."""


def column_sums(x: Tensor) -> Tensor:
    """Adds up the rows of a matrix, at least one, in one order: float `[rows, width]` to float32 `[width]`."""
    x = x.contiguous()
    rows, width = x.shape
    each = triton.cdiv(triton.cdiv(rows, _ROWS), _PARTS) * _ROWS
    parts = triton.cdiv(rows, each)
    sums = torch.empty(parts, width, dtype=torch.float32, device=x.device)
    _sums[(triton.cdiv(width, _COLUMNS), parts)](x, sums, rows, each, WIDTH=width, ROWS=_ROWS, COLUMNS=_COLUMNS)
    return sums.sum(dim=0)


@triton.jit(do_not_specialize=["rows", "each"])
def _sums(x_ptr, sums_ptr, rows, each, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    first = tl.program_id(1) * each
    last = tl.minimum(first + each, rows)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < last)[:, None] & (k < WIDTH)[None, :]
        total += tl.load(x_ptr + row.to(tl.int64)[:, None] * WIDTH + k[None, :], inside, 0.0).to(tl.float32)
    tl.store(sums_ptr + tl.program_id(1) * WIDTH + k, tl.sum(total, axis=0), k < WIDTH)
