"""Looks up rows of a table in training, without a gradient as large as the table."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

__all__ = ["looked_up"]


def looked_up(table: Tensor, ids: Tensor, padding: int | None = None) -> Tensor:
    """Looks up rows; the backward pass adds the gradient to `table.grad`, or makes one if there is none yet.

    Args:
        table: a leaf, float `[rows, dim]`.
        ids: int64 `[...]`.
        padding: the row that gets no gradient, or None.

    Returns:
        `[..., dim]`.
    """
    rows: Tensor = _LookedUp.apply(table, ids, padding)  # type: ignore[no-untyped-call]
    return rows


class _LookedUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding = table, padding
        return F.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (ids,), (of_rows,), table = ctx.saved_tensors, gradients, ctx.table
        if ctx.padding is not None:
            of_rows = of_rows.masked_fill((ids == ctx.padding).unsqueeze(-1), 0.0)
        made = table.new_zeros(table.shape) if table.grad is None else table.grad
        made.index_add_(0, ids.flatten(), of_rows.flatten(0, -2).to(made.dtype))
        return made if table.grad is None else None, None, None
