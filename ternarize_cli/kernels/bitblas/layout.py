"""Lays out operands for BitBLAS: widths that are multiples of 16, and 2-bit weights in the order that it decodes.

A weight is its code plus 2, two bits wide. 16 weights of a row share 32 bits. int8 activations (bits 31 … 0, the number
is that of the input):

    15 11  7  3 │ 14 10  6  2 │ 13  9  5  1 │ 12  8  4  0

so that a mask and a shift leave four neighbours, one in each byte. For float16 activations the lower half holds the
even inputs, the upper half the odd ones, and then the two middle bytes change places. This equals what
`bitblas.Matmul.transform_weight` returns.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["fitted", "lay_out", "padded"]

_MULTIPLE = 16
_OFFSET = 2


def fitted(width: int) -> int:
    """Rounds a width up to a multiple of 16."""
    return -(-width // _MULTIPLE) * _MULTIPLE


def padded(x: Tensor, rows: int) -> Tensor:
    """Pads `[n, width]` with zeros to `[rows, fitted width]`, contiguous."""
    missing = (fitted(x.shape[1]) - x.shape[1], max(rows - len(x), 0))
    return F.pad(x, (0, missing[0], 0, missing[1])) if any(missing) else x.contiguous()


def lay_out(codes: Tensor, activations: str) -> Tensor:
    """Packs codes -1, 0 and 1, int8 `[out, in]`, as BitBLAS reads them: int8 `[fitted out, fitted in / 4]`.

    Args:
        codes: the codes.
        activations: "int8" or "float16".
    """
    outputs, inputs = codes.shape
    codes = F.pad(codes, (0, fitted(inputs) - inputs, 0, fitted(outputs) - outputs))
    fields = 4 if activations == "int8" else 2
    number = torch.arange(16, device=codes.device)
    shift = number % fields * (32 // fields) + number // fields * 2
    words = ((codes.unflatten(1, (-1, 16)).long() + _OFFSET) << shift).sum(dim=-1)
    if activations == "float16":
        words = words & 0xFF0000FF | (words & 0x00FF0000) >> 8 | (words & 0x0000FF00) << 8
    return torch.where(words > 0x7FFFFFFF, words - (1 << 32), words).int().view(torch.int8)
