"""Computes the embedding of texts: the sum of rows of int8 tables, its norm, and that rounded, in one kernel."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.matmul import begin, launch_options, overlaps
from ternarize_cli.kernels.gpu.norm import Norm, normed
from ternarize_cli.kernels.gpu.rounding import Rounded, empty_rounded, row_ways, store_rounded

__all__ = ["Tables", "embed"]

Table = tuple[Tensor, Tensor]


class Tables(NamedTuple):
    """The tables of an embedding: int8 `[n, width]` with scales, float32 `[n]`; None where there is no such table."""

    words: Table
    types: Table | None
    positions: Table | None


@triton.jit
def _looked_up(table_ptr, scales_ptr, entry, k, inside, WIDTH: tl.constexpr):
    found = tl.load(table_ptr + entry[:, None] * WIDTH + k[None, :], inside, 0).to(tl.float32)
    return found * tl.load(scales_ptr + entry)[:, None]


@triton.jit(do_not_specialize=["rows", "tokens"])
def _embed(
    ids_ptr, kinds_ptr, places_ptr, words_ptr, word_scales_ptr, types_ptr, type_scales_ptr, positions_ptr,
    position_scales_ptr, gain_ptr, shift_ptr, kept_ptr, q_ptr, t_ptr, rows, tokens, words, types, positions, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, TYPES: tl.constexpr, KINDS: tl.constexpr,
    POSITIONS: tl.constexpr, PLACES: tl.constexpr, NORM: tl.constexpr, B: tl.constexpr, E4M3: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    here = row < rows
    inside = here[:, None] & (k < WIDTH)[None, :]
    begin(OVERLAP)
    word = tl.load(ids_ptr + row, here, 0)
    known = (word >= 0) & (word < words)
    x = _looked_up(words_ptr, word_scales_ptr, tl.where(known, word, 0), k, inside, WIDTH)
    if TYPES:
        kind = tl.zeros_like(row)
        if KINDS:
            kind = tl.load(kinds_ptr + row, here, 0)
            known &= (kind >= 0) & (kind < types)
        x += _looked_up(types_ptr, type_scales_ptr, tl.where(known, kind, 0), k, inside, WIDTH)
    if POSITIONS:
        place = row % tokens
        if PLACES:
            place = tl.load(places_ptr + row, here, 0)
        known &= (place >= 0) & (place < positions)
        x += _looked_up(positions_ptr, position_scales_ptr, tl.where(known, place, 0), k, inside, WIDTH)
    z = normed(x, gain_ptr, shift_ptr, eps, k, WIDTH, NORM)
    z = tl.where(known[:, None], z, float("nan"))
    tl.store(kept_ptr + row[:, None] * WIDTH + k[None, :], z.to(kept_ptr.dtype.element_ty), inside)
    store_rounded(z, q_ptr, t_ptr, row, here, WIDTH, BLOCK, ROWS, B, E4M3)


def embed(
    ids: Tensor, kinds: Tensor | None, places: Tensor | None, tables: Tables, by: Norm | None, *, dtype: torch.dtype,
    kept: torch.dtype, b: int = 0,
) -> tuple[Tensor, Rounded]:  # fmt: skip
    """Computes the embedding of texts.

    Args:
        ids: int64 `[texts, tokens]`, ids of words.
        kinds: int64 `[texts, tokens]`, token types; None means that all are 0.
        places: int64 `[texts, tokens]`, positions; None counts them from 0 in each text.
        tables: the tables.
        by: the norm of the sum; None for none.
        dtype: int8 or e4m3.
        kept: dtype of the residual.
        b: block size of the order of the weights' inputs (`matmul`); 0 is natural order.

    Returns:
        The residual `[texts · tokens, width]`, NaN for ids beyond a table, and that rounded.
    """
    (words, word_scales), types, positions = tables
    rows, width = ids.numel(), words.shape[1]
    residual = torch.empty(rows, width, dtype=kept, device=ids.device)
    rounded = empty_rounded(rows, width, dtype, b, ids.device)
    block = triton.next_power_of_2(max(width, 4 * b))
    each, warps = row_ways(rows, width)[0]
    overlap = overlaps()
    _embed[(triton.cdiv(rows, each),)](
        ids, kinds, places, words, word_scales, *(types or (None, None)), *(positions or (None, None)),
        by and by.gain, by and by.shift, residual, *rounded,
        rows, ids.shape[1], len(words), len(types[0]) if types else 0, len(positions[0]) if positions else 0,
        by.eps if by else 0.0,
        WIDTH=width, BLOCK=block, ROWS=each, TYPES=types is not None, KINDS=kinds is not None,
        POSITIONS=positions is not None, PLACES=places is not None, NORM=by.kind if by else None, B=b,
        E4M3=dtype == torch.float8_e4m3fn, OVERLAP=overlap, num_warps=warps, **launch_options(overlap),
    )  # fmt: skip
    return residual, rounded
