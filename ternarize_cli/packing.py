r"""Codecs of packed format version 1: how codes lie in bytes.

**2bit**, four codes a byte, lowest bits first; byte j of a row holds inputs 4j … 4j+3:

     bit   7 6   5 4   3 2   1 0
         ┌─────┬─────┬─────┬─────┐
         │4j+3 │4j+2 │4j+1 │4j   │      value = code + 1:  0 → -1,  1 → 0,  2 → +1,  3 is invalid
         └─────┴─────┴─────┴─────┘

A row whose width is not a multiple of four is padded with value 1 (a zero weight); other padding is refused, so that
equal models have equal bytes.
"""

import torch
from torch import Tensor

__all__ = ["pack_2bit", "packed_width", "unpack_2bit"]

_PER_BYTE = 4


def packed_width(in_features: int) -> int:
    """Bytes of one packed row: ceil(in / 4)."""
    return -(-in_features // _PER_BYTE)


def pack_2bit(codes: Tensor) -> Tensor:
    """Codes `[out, in]` with values in {-1, 0, 1}, any dtype → uint8 `[out, ceil(in/4)]`."""
    out_features, in_features = codes.shape
    values = torch.ones(out_features, packed_width(in_features) * _PER_BYTE, dtype=torch.uint8, device=codes.device)
    values[:, :in_features] = (codes + 1).to(torch.uint8)
    quads = values.view(out_features, -1, _PER_BYTE)
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def unpack_2bit(packed: Tensor, in_features: int) -> Tensor:
    """uint8 `[out, ceil(in/4)]` → int8 codes `[out, in]`.

    Raises:
        ValueError: wrong dtype or width, an invalid code, or padding that is no zero weight.
    """
    if packed.dtype != torch.uint8 or packed.dim() != 2 or packed.shape[1] != packed_width(in_features):
        raise ValueError(
            f"expected uint8 [out, {packed_width(in_features)}] for {in_features} inputs, "
            f"got {str(packed.dtype).removeprefix('torch.')} {list(packed.shape)}"
        )
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device)
    values = ((packed.unsqueeze(-1) >> shifts) & 3).flatten(1)
    if (values == 3).any():
        row, column = (int(i) for i in (values == 3).nonzero()[0])
        raise ValueError(f"invalid code 3 at row {row}, input {column}")
    if (values[:, in_features:] != 1).any():
        raise ValueError("the padding at the end of a row is not zero weights")
    return values[:, :in_features].to(torch.int8) - 1
