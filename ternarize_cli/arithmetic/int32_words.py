"""Codes of 2 or 4 bits in int32 words, as the format `pack-quantized` of compressed-tensors lays them.

A code c of b bits becomes the digit c + 2^(b-1), and the digits of a row fill words from the lowest bits on: 16 of 2
bits in a word, or 8 of 4. A row that does not fill its last word is padded with zero bits.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pack_words", "unpack_words", "words_in"]

_WORD = 32


def words_in(columns: int, bits: int) -> int:
    """Number of words that hold a row of `columns` codes."""
    return -(-columns * bits // _WORD)


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """Packs codes: `[out, in]`, integers in -2^(bits-1) … 2^(bits-1)-1, to int32 `[out, words]`."""
    per_word = _WORD // bits
    digits = codes.long() + (1 << (bits - 1))
    digits = F.pad(digits, (0, words_in(codes.shape[1], bits) * per_word - codes.shape[1]))
    words = (digits.unflatten(1, (-1, per_word)) << _places(bits)).sum(dim=-1)
    return torch.where(words >= 1 << (_WORD - 1), words - (1 << _WORD), words).to(torch.int32)


def unpack_words(words: Tensor, bits: int, columns: int) -> Tensor:
    """Unpacks int32 `[out, words]` to int8 `[out, columns]`; bits beyond the last code are ignored."""
    digits = (words.long()[..., None] >> _places(bits)) & ((1 << bits) - 1)
    return (digits.flatten(1)[:, :columns] - (1 << (bits - 1))).to(torch.int8)


def _places(bits: int) -> Tensor:
    return torch.arange(0, _WORD, bits)
