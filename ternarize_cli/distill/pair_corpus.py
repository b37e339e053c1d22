"""Reads and holds the training data of a cross-encoder: pairs of texts, tokenised as the model takes them.

`data.pairs` reads them. No scores are read: the teacher gives them.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ternarize_cli.data.length_buckets import width_of
from ternarize_cli.data.pairs import pairs_of
from ternarize_cli.distill.batch_sampler import Piece
from ternarize_cli.errors import DataError
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage.bounds import Held

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

__all__ = ["PairCorpus", "tokenised_pairs"]

_TOKENISED = 1024
_LONGEST = 512
_MOST_CHANGED = 0.3


@dataclass(frozen=True)
class PairCorpus:
    """Tokenised pairs, with their special tokens, cut to the model's length; a `training_corpus.TrainingCorpus`.

    Attributes:
        ids: for each pair, its ids, int32 `[tokens]`.
        types: for each pair, the type of each token, 0 or 1, int32 `[tokens]`; None if the model reads no types.
        sources: the number of each pair's source, int `[pairs]`.
        limit: the most tokens of a pair.
        pad: the id for padding.
        left: whether padding comes before the pair.
        special: ids of special tokens, which are never changed.
    """

    ids: Sequence[np.ndarray] = field(repr=False)
    types: Sequence[np.ndarray] | None = field(repr=False)
    sources: np.ndarray = field(repr=False)
    limit: int
    pad: int
    left: bool
    special: tuple[int, ...]
    around: int = 0
    prompts: int = 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each pair, special tokens included: int `[pairs]`."""
        return np.array([len(ids) for ids in self.ids])

    @cached_property
    def digest(self) -> str:
        """A hash of the pairs."""
        made = hashlib.sha256()
        for row in (*self.ids, self.lengths, self.sources):
            made.update(np.ascontiguousarray(row).tobytes())
        return made.hexdigest()

    @cached_property
    def _flat(self) -> np.ndarray:
        tokens = np.concatenate(self.ids)
        return tokens[~np.isin(tokens, self.special)]

    def features(self, pieces: Sequence[Piece], *, even: bool = False) -> dict[str, Any]:
        """Makes input_ids, attention_mask and, if the model reads them, token_type_ids: int64 `[pieces, tokens]` each.

        In pairs to be changed, up to 30% of the tokens are replaced by random tokens of the corpus, by frequency.
        """
        rows = [piece.rows[0] for piece in pieces]
        width = int(self.lengths[rows].max())
        width = width_of(width) if even else width
        ids = np.full((len(rows), width), self.pad, dtype=np.int64)
        mask, types = np.zeros_like(ids), np.zeros_like(ids)
        for i, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            tokens = self.ids[row]
            if piece.change and len(self._flat):
                rng = np.random.default_rng(piece.change)
                chosen = (rng.random(len(tokens)) < rng.uniform(0, _MOST_CHANGED)) & ~np.isin(tokens, self.special)
                tokens = tokens.copy()
                tokens[chosen] = self._flat[rng.integers(len(self._flat), size=int(chosen.sum()))]
            place = slice(width - len(tokens), width) if self.left else slice(0, len(tokens))
            ids[i, place], mask[i, place] = tokens, 1
            if self.types is not None:
                types[i, place] = self.types[row]
        made = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
        return made if self.types is None else made | {"token_type_ids": torch.from_numpy(types)}

    def take(self, rows: Sequence[int]) -> "PairCorpus":
        """Selects some of the pairs."""
        types = None if self.types is None else [self.types[i] for i in rows]
        return replace(self, ids=[self.ids[i] for i in rows], types=types, sources=self.sources[list(rows)])


def tokenised_pairs(
    model: "CrossEncoder",
    sources: Sequence[str | Path],
    most: int,
    *,
    max_length: int | None,
    seed: int,
    track: Track = silent,
) -> PairCorpus:
    """Reads the pairs of all sources, drops duplicates, and tokenises them as the model does.

    Args:
        model: the cross-encoder.
        sources: the sources.
        most: the most pairs of a source.
        max_length: the most tokens of a pair; None takes the model's limit, at most 512.
        seed: the seed by which texts without a partner get one.
        track: reports progress.

    Raises:
        DataError: a source can't be read, or the pairs don't fit in memory.
    """
    found: dict[tuple[str, str], int] = {}
    held = Held("the data to train on", DataError)
    for number, source in enumerate(sources):
        for pair in track(pairs_of(source, most, seed), f"reading {source}"):
            if pair not in found:
                held.add(pair[0] + pair[1])
                found[pair] = number
    limit = min(max_length or _LONGEST, model.max_seq_length or _LONGEST)
    own, model.max_seq_length = model.max_seq_length, limit
    prompt = model.prompts.get(model.default_prompt_name or "") or None
    ids: list[np.ndarray] = []
    types: list[np.ndarray] = []
    names = list(found)
    for start in track(range(0, len(names), _TOKENISED), "tokenising"):
        features = model.preprocess(names[start : start + _TOKENISED], prompt=prompt)
        inside = features["attention_mask"].bool()
        for key, made in (("input_ids", ids), ("token_type_ids", types)):
            if key in features:
                rows = zip(features[key], inside, strict=True)
                made.extend(row[kept].numpy().astype(np.int32) for row, kept in rows)
    model.max_seq_length = own
    tokenizer = model.tokenizer
    left = getattr(tokenizer, "padding_side", "right") == "left"
    numbers = np.array(list(found.values()))
    special = tuple(tokenizer.all_special_ids)
    return PairCorpus(ids, types or None, numbers, limit, tokenizer.pad_token_id or 0, left, special)
