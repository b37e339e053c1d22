"""Counts the real tokens of a batch, moves them to rows side by side, and their hidden states back.

One kernel each, since PyTorch needs some forty for it, and a pass that is replayed waits for their start.
"""

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ternarize_cli.kernels.gpu.pass_sizes import sizes

__all__ = ["TokenCounts", "TokenRows", "count_tokens", "spread", "token_rows"]

_TOKENS = 128  # of a text, or added rows, that a program takes at a time
_SPREAD = 4  # tokens of a program that moves hidden states


class TokenCounts(NamedTuple):
    """What the host knows of the mask of a batch.

    Attributes:
        lengths: int64 `[texts]`, the number of real tokens of each text.
        begins_real: whether the first token of each text that has any is real.
        has_hole: whether a text has padding between real tokens.
    """

    lengths: np.ndarray
    begins_real: bool = True
    has_hole: bool = False


class TokenRows(NamedTuple):
    """The real tokens of a batch `[texts, tokens]`, text after text.

    The sizes are rounded up (`pass_sizes.sizes`), and what is added are texts, too: rows behind the real tokens are
    texts of repeated tokens, whose results nobody reads, and further texts are empty.

    Attributes:
        inputs: int64 `[2 or 3, rows]`: ids of words, positions and, if there are any, token types.
        places: int32 `[3, rows]`: the row where the text of a row starts, the row behind its end, and the number of
            tokens before it in its text.
        starts: int32 `[texts + 1]`, the row where each text starts, then the number of rows.
        longest: no text has more tokens.
        row_of: int32 `[texts · tokens]`, the row of each token of the batch; -1 at padding.
    """

    inputs: Tensor
    places: Tensor
    starts: Tensor
    longest: int
    row_of: Tensor


@triton.jit(do_not_specialize=["texts", "tokens"])
def _count(mask_ptr, made_ptr, texts, tokens, BLOCK: tl.constexpr):
    text = tl.program_id(0)
    row_ptr = mask_ptr + text.to(tl.int64) * tokens
    count = tl.zeros((BLOCK,), tl.int32)
    runs = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, tokens, BLOCK):
        at = start + tl.arange(0, BLOCK)
        real = tl.load(row_ptr + at, at < tokens, 0) != 0
        before = tl.load(row_ptr + at - 1, (at > 0) & (at < tokens), 0) != 0
        count += real.to(tl.int32)
        runs += (real & (before == 0)).to(tl.int32)
    tl.store(made_ptr + text, tl.sum(count, axis=0))
    tl.store(made_ptr + texts + text, tl.sum(runs, axis=0))
    tl.store(made_ptr + 2 * texts + text, (tl.load(row_ptr) != 0).to(tl.int32))


@triton.jit(do_not_specialize=["texts", "tokens", "count", "rows", "longest"])
def _lay_out(
    ids_ptr, positions_ptr, types_ptr, mask_ptr, starts_ptr, inputs_ptr, places_ptr, row_of_ptr, texts, tokens, count,
    rows, longest, POSITIONS: tl.constexpr, TYPES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    text = tl.program_id(0)
    if text < texts:
        begins = tl.load(starts_ptr + text)
        ends = tl.load(starts_ptr + text + 1)
        done = begins
        for start in range(0, tokens, BLOCK):
            token = start + tl.arange(0, BLOCK)
            at = text.to(tl.int64) * tokens + token
            real = tl.load(mask_ptr + at, token < tokens, 0) != 0
            row = done + tl.cumsum(real.to(tl.int32), axis=0) - 1
            real = real & (row < ends)
            tl.store(row_of_ptr + at, tl.where(real, row, -1), token < tokens)
            tl.store(inputs_ptr + row, tl.load(ids_ptr + at, real, 0), real)
            if POSITIONS:
                tl.store(inputs_ptr + rows + row, tl.load(positions_ptr + at, real, 0), real)
            else:
                tl.store(inputs_ptr + rows + row, token.to(tl.int64), real)
            if TYPES:
                tl.store(inputs_ptr + 2 * rows + row, tl.load(types_ptr + at, real, 0), real)
            tl.store(places_ptr + row, tl.zeros_like(row) + begins, real)
            tl.store(places_ptr + rows + row, tl.zeros_like(row) + ends, real)
            tl.store(places_ptr + 2 * rows + row, row - begins, real)
            done += tl.sum(real.to(tl.int32), axis=0)
    else:  # rows that are added: copies of the first token
        row = count + (text - texts) * BLOCK + tl.arange(0, BLOCK)
        here = row < rows
        begin = row - (row - count) % longest
        nothing = tl.zeros_like(row).to(tl.int64)
        tl.store(inputs_ptr + row, nothing + tl.load(ids_ptr), here)
        tl.store(inputs_ptr + rows + row, nothing + (tl.load(positions_ptr) if POSITIONS else 0), here)
        if TYPES:
            tl.store(inputs_ptr + 2 * rows + row, nothing + tl.load(types_ptr), here)
        tl.store(places_ptr + row, begin, here)
        tl.store(places_ptr + rows + row, tl.minimum(begin + longest, rows), here)
        tl.store(places_ptr + 2 * rows + row, tl.zeros_like(row), here)


@triton.jit(do_not_specialize=["tokens"])
def _spread(hidden_ptr, row_of_ptr, made_ptr, tokens, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    token = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    row = tl.load(row_of_ptr + token, token < tokens, -1).to(tl.int64)
    inside = (k < WIDTH)[None, :]
    x = tl.load(hidden_ptr + row[:, None] * WIDTH + k[None, :], (row >= 0)[:, None] & inside, 0.0)
    tl.store(made_ptr + token[:, None] * WIDTH + k[None, :], x, (token < tokens)[:, None] & inside)


def count_tokens(mask: Tensor) -> TokenCounts:
    """Counts the real tokens of each text; the host waits for the card once.

    Args:
        mask: numbers or bool `[texts, tokens]`, 0 at padding; contiguous, and at least one token wide.
    """
    texts, tokens = mask.shape
    made = torch.empty(3, texts, dtype=torch.int32, device=mask.device)
    _count[(texts,)](mask, made, texts, tokens, BLOCK=_TOKENS, num_warps=1)
    lengths, runs, begins = made.cpu().numpy()
    return TokenCounts(lengths.astype(np.int64), bool((begins[lengths > 0] != 0).all()), bool((runs > 1).any()))


def token_rows(
    ids: Tensor, mask: Tensor, types: Tensor | None, positions: Tensor | None, lengths: np.ndarray
) -> TokenRows:
    """Lays the real tokens of a batch side by side; the host waits for nothing.

    Args:
        ids, types, positions: int64 `[texts, tokens]`, contiguous; positions None are the columns.
        mask: numbers or bool `[texts, tokens]`, 0 at padding; contiguous.
        lengths: int64 `[texts]`, the numbers of real tokens of the texts in the mask; their sum is at least 1. Where
            the mask has fewer, the rows that are left have id 0 and are in a text of no rows, and where it has more,
            these are left out.
    """
    texts, tokens = ids.shape
    ends = np.cumsum(lengths)
    count = int(ends[-1])
    rows, all_texts, longest = sizes(count, texts, int(lengths.max()))
    added = np.minimum(count + longest * np.arange(1, all_texts - texts + 1), rows)
    starts = torch.from_numpy(np.concatenate([[0], ends, added]).astype(np.int32))
    starts = (starts.pin_memory() if ids.is_cuda else starts).to(ids.device, non_blocking=True)
    # zeros, since a mask that has fewer tokens than were noted at it writes no more
    inputs = torch.zeros(2 + (types is not None), rows, dtype=torch.int64, device=ids.device)
    places = torch.zeros(3, rows, dtype=torch.int32, device=ids.device)
    row_of = torch.empty(ids.numel(), dtype=torch.int32, device=ids.device)
    _lay_out[(texts + triton.cdiv(rows - count, _TOKENS),)](
        ids, positions, types, mask, starts, inputs, places, row_of, texts, tokens, count, rows, longest,
        POSITIONS=positions is not None, TYPES=types is not None, BLOCK=_TOKENS, num_warps=1,
    )  # fmt: skip
    return TokenRows(inputs, places, starts, longest, row_of)


def spread(hidden: Tensor, row_of: Tensor) -> Tensor:
    """Moves hidden states back to where their tokens stand in the batch, with zeros at padding.

    Args:
        hidden: float32 `[rows, width]`, contiguous.
        row_of: int32 `[texts · tokens]`, as in `TokenRows`.

    Returns:
        Float32 `[texts · tokens, width]`.
    """
    width = hidden.shape[1]
    made = torch.empty(len(row_of), width, device=hidden.device)
    _spread[(triton.cdiv(len(row_of), _SPREAD),)](
        hidden, row_of, made, len(row_of), WIDTH=width, BLOCK=triton.next_power_of_2(width), ROWS=_SPREAD, num_warps=4
    )
    return made
