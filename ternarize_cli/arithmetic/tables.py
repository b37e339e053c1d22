"""Quantises embedding tables to 8 or 4 bits, and lays out their rows for the packed file.

**8 bits**: each row has a scale max|row| / 127 and int8 codes, stored as int8.

**4 bits**: a row is cut into groups of 32 values (the last may be shorter), each with a scale that nearly minimises the
squared error of its codes -8 … 7 (`ternary.int4_scale`). Two codes lie in a byte, the first in the low nibble, as
value + 8: the layout of the codec `4bit`. With the scales that is 4.5 bits a value.

Scales are float16 before the codes are taken, so a table rounded in training is the packed one bit for bit. Only the
encoder's input embedding is quantised to 4 bits (`module_replacement.replace`): position and type tables are small, and
every token adds them.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.arithmetic import packing
from ternarize_cli.arithmetic.ternary import INT8_MAX, int4_scale, round_to_levels
from ternarize_cli.format.codecs import codec_for

__all__ = [
    "GROUP",
    "check_codes",
    "pack_codes",
    "quantize_table",
    "restore_rows",
    "round_rows",
    "stored_shapes",
    "unpack_codes",
]

GROUP = 32
_NIBBLES = codec_for("int4")
_CHUNK = 1 << 18  # values rounded at a time


def stored_shapes(rows: int, dim: int, bits: int) -> tuple[tuple[int, int], torch.dtype, tuple[int, int]]:
    """Gives the shape and dtype of a stored table, and the shape of its float16 scales."""
    if bits == 4:
        return (rows, _NIBBLES.width(dim)), torch.uint8, (rows, -(-dim // GROUP))
    return (rows, dim), torch.int8, (rows, 1)


def quantize_table(table: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Quantises the rows of a table, each independently of the others.

    Args:
        table: `[rows, dim]` float.
        bits: 8 or 4.

    Returns:
        codes: int8 `[rows, dim]`; scale: float16, `[rows, 1]` for 8 bits and `[rows, ceil(dim / 32)]` for 4.
    """
    rows = max(1, _CHUNK // max(1, table.shape[1]))
    parts = [_quantize(chunk.float(), bits) for chunk in table.split(rows)]
    return torch.cat([codes for codes, _ in parts]), torch.cat([scale for _, scale in parts])


def _quantize(table: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    if bits == 4:
        groups = F.pad(table, (0, -table.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        scale = int4_scale(groups.flatten(0, 1)).half().view(groups.shape[:2])
    else:
        scale = (table.abs().amax(dim=1, keepdim=True) / INT8_MAX).half()
    wide = _expand(scale.float(), table.shape[1])
    ratio = table / wide.clamp_min(torch.finfo(torch.float32).tiny)
    codes = round_to_levels(ratio, "int4") if bits == 4 else ratio.round_().clamp_(-INT8_MAX, INT8_MAX)
    return codes.mul_(wide > 0).to(torch.int8), scale


def restore_rows(codes: Tensor, scale: Tensor) -> Tensor:
    """Dequantises codes `[..., dim]` with the scales of their rows `[..., scales]`: float32 `[..., dim]`."""
    return codes.float() * _expand(scale.float(), codes.shape[-1])


def round_rows(rows: Tensor, bits: int) -> Tensor:
    """Rounds rows `[..., dim]` to the values that a packed table of 4, 8, 16 or 32 bits gives; keeps their dtype."""
    if bits == 32:
        return rows
    if bits == 16:
        return rows.half().to(rows.dtype)
    flat = rows.reshape(-1, rows.shape[-1])
    codes, scale = _quantize(flat.float(), 8) if bits == 8 else quantize_table(flat, bits)
    return restore_rows(codes, scale).view_as(rows).to(rows.dtype)


def _expand(scale: Tensor, dim: int) -> Tensor:
    return scale if scale.shape[-1] == 1 else scale.repeat_interleave(GROUP, dim=-1)[..., :dim]


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Packs int8 codes `[rows, dim]` as the file stores them: int8 `[rows, dim]`, or uint8 `[rows, ceil(dim / 2)]`."""
    return packing.pack(_NIBBLES, codes) if bits == 4 else codes.to(torch.int8)


def unpack_codes(stored: Tensor, dim: int, bits: int) -> Tensor:
    """Unpacks stored rows `[..., width]` to int8 codes `[..., dim]`."""
    return packing.decode(_NIBBLES, stored)[..., :dim] if bits == 4 else stored


def check_codes(stored: Tensor, dim: int, bits: int) -> None:
    """Raises ValueError if 4-bit rows have a wrong dtype or width, or if the unused last nibble is not zero."""
    if bits == 4:
        packing.unpack(_NIBBLES, stored, dim)
