"""Lays the real tokens of a batch side by side, in one of few sizes, so that a recorded pass serves many batches.

What rounding adds are texts, too: rows behind the real tokens are texts of repeated tokens, whose results nobody reads,
and further texts are empty. So every row has a value, and a pass needs no other kernels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["MOST", "RealTokens", "Sizes", "real_tokens", "sizes", "spans_of"]

MOST = 1 << 15
"""The most real tokens of a pass that is recorded, since the hidden states of each size are kept."""

_FEW, _ROWS = 2048, 8192
"""Rows of a pass are a multiple of the second number, up to twice as many of the first. On an H200 BERT-base takes 2 ms
for 8,192, and Python more to start a pass that is not recorded."""
_TEXTS = 4096  # of short texts there are at least so many; an empty one costs little


class Sizes(NamedTuple):
    """The sizes of a pass over real tokens: numbers of rows and texts, and of tokens that a text may have."""

    rows: int
    texts: int
    longest: int


class RealTokens(NamedTuple):
    """The real tokens of a batch `[texts, tokens]`, text after text.

    Attributes:
        at: int64 `[rows]`, where the token of a row stands in the flat batch; the first token behind the real ones.
        places: int64 `[rows]`, the position of the token in its text.
        starts: int32 `[texts + 1]`, the row where each text starts, then the number of rows; texts that were added by
            rounding stand behind those of the batch.
        longest: no text has more tokens.
    """

    at: Tensor
    places: Tensor
    starts: Tensor
    longest: int


def sizes(count: int, texts: int, longest: int) -> Sizes:
    """Rounds the sizes of a pass up.

    Batches of a corpus then have few sizes, since most have nearly as many real tokens as `gpu_batches` allows. The
    number of texts follows from the number of tokens of the longest, unless there are more; long texts have fewer empty
    ones beside them, since attention starts more programs for each.

    Args:
        count: number of real tokens.
        texts: number of texts.
        longest: number of tokens of the longest text.
    """
    step = _FEW if count <= 2 * _ROWS else _ROWS
    rows = -(-count // step) * step
    longest = max(16, _power_of_two(longest))
    longest = 128 if longest == 64 else longest
    texts += -(-(rows - count) // longest)
    least = min(_TEXTS, (8 if longest <= 128 else 2) * rows // longest)
    return Sizes(rows, max(_power_of_two(texts), least), longest)


def real_tokens(mask: Tensor, count: int, longest: int | None = None) -> RealTokens:
    """Finds the real tokens of a batch.

    Args:
        mask: int `[texts, tokens]`, 0 at padding.
        count: number of real tokens, at least 1.
        longest: number of tokens of the longest text, if that is known and the real tokens of a text are its first; on
            a GPU the host then waits for nothing. None reads it.
    """
    batch, tokens = mask.shape
    lengths = (mask != 0).sum(dim=1)
    ends = lengths.cumsum(0)
    row = torch.arange(count, device=mask.device)
    if longest is None:
        at, longest = mask.flatten().nonzero().squeeze(1), int(lengths.max())
        places = row - (ends - lengths)[at // tokens]
    else:
        text = torch.repeat_interleave(torch.arange(batch, device=mask.device), lengths, output_size=count)
        places = row - (ends - lengths)[text]
        at = text * tokens + places
    rows, texts, longest = sizes(count, batch, longest)
    added = (count + longest * torch.arange(1, texts - batch + 1, device=mask.device)).clamp(max=rows)
    starts = F.pad(torch.cat([ends, added]), (1, 0)).int()
    return RealTokens(F.pad(at, (0, rows - count)), F.pad(places, (0, rows - count)), starts, longest)


def spans_of(starts: Tensor, rows: int) -> Tensor:
    """Finds the first row of each row's text, and the row behind its last: int32 `[2, rows]`.

    Args:
        starts: int32 `[texts + 1]`, as in `RealTokens`.
        rows: number of rows.
    """
    row = torch.arange(rows, dtype=torch.int32, device=starts.device)
    behind = torch.searchsorted(starts, row, right=True)  # empty texts start where the next one does
    return torch.stack([starts.index_select(0, behind - 1), starts.index_select(0, behind)])


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
