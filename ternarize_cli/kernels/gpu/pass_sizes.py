"""Rounds the sizes of a pass over the real tokens of a batch, so that a recorded pass serves many batches.

What rounding adds are texts, too (`token_rows`). So every row has a value, and a pass needs no other kernels.
"""

from typing import NamedTuple

__all__ = ["MOST", "Sizes", "sizes"]

MOST = 1 << 15
"""The most real tokens of a pass that is recorded, since the hidden states of each size are kept."""

_FEW, _ROWS = 1024, 8192
"""Numbers of rows are multiples of 1,024 up to 8,192, of 2,048 up to 16,384, and of 8,192 beyond. On an H200 BERT-base
takes 2 ms for 8,192 rows, and Python more to start a pass that is not recorded."""
_TEXTS = 4096  # of short texts there are at least so many; an empty one costs little


class Sizes(NamedTuple):
    """The sizes of a pass over real tokens: numbers of rows and texts, and of tokens that a text may have."""

    rows: int
    texts: int
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
    step = _FEW if count <= _ROWS else 2 * _FEW if count <= 2 * _ROWS else _ROWS
    rows = -(-count // step) * step
    longest = max(16, _power_of_two(longest))
    longest = 128 if longest == 64 else longest
    texts += -(-(rows - count) // longest)
    least = min(_TEXTS, (8 if longest <= 128 else 2) * rows // longest)
    return Sizes(rows, max(_power_of_two(texts), least), longest)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()
