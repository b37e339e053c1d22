"""Tokenises many texts to one array of tokens, here or in a process of its own.

A tokenizer works on all processors, but what it takes and gives are Python's objects: for short texts this takes half
of its time, in which no other thread of the process runs. In a process of its own (`measuring.child`) it holds up
nothing, and what comes back are a few arrays.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import tokenizers

__all__ = ["FlatTokens", "open_here", "tokens_here", "tokens_of"]


class FlatTokens(NamedTuple):
    """Texts as their tokens, one text after the other.

    Attributes:
        ids: int32 `[tokens]`.
        types: uint8 `[tokens]`, the tokens' types; None if all are 0.
        lengths: int64 `[texts]`, numbers of tokens.
        truncated: number of texts that were cut.
    """

    ids: np.ndarray
    types: np.ndarray | None
    lengths: np.ndarray
    truncated: int


def tokens_of(tokenizer: Any, texts: Sequence[str], limit: int, *, with_types: bool) -> FlatTokens:
    """Tokenises texts.

    Args:
        tokenizer: a `tokenizers.Tokenizer` that cuts texts at `limit` tokens and pads none.
        texts: the texts.
        limit: the most tokens of a text.
        with_types: whether types are wanted.
    """
    found = tokenizer.encode_batch_fast(list(texts))
    ids = [one.ids for one in found]
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    total = int(lengths.sum())
    types = chain.from_iterable(one.type_ids for one in found) if with_types else None
    return FlatTokens(
        np.fromiter(chain.from_iterable(ids), np.int32, total),
        None if types is None else np.fromiter(types, np.uint8, total),
        lengths,
        sum(bool(found[i].overflowing) for i in np.flatnonzero(lengths >= limit)),
    )


_OPENED: dict[str, Any] = {}


def open_here(described: str, limit: int, with_types: bool) -> None:
    """Opens a tokenizer, of which `described` is the JSON, for calls of `tokens_here` in this process."""
    _OPENED["tokenizer"] = tokenizers.Tokenizer.from_str(described)
    _OPENED["limit"], _OPENED["with_types"] = limit, with_types


def tokens_here(texts: list[str]) -> FlatTokens:
    """Tokenises texts with the tokenizer that `open_here` opened."""
    return tokens_of(_OPENED["tokenizer"], texts, _OPENED["limit"], with_types=_OPENED["with_types"])
