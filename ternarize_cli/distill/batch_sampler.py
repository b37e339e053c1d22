"""Draws the batches of each epoch from the seed alone, so that a run can be resumed at any step.

Training runs in epochs. An epoch has every text once (or as often as its source's weight says), in an order of its own;
a few of the shortest texts come twice if the last batch would be small. A text is an input by itself, except that

- a share of the tokens comes in texts that are joined to longer inputs, of any length up to the limit, because models
  have to encode texts of all lengths; every epoch joins other texts;
- every other time, a text that is too long is cut to a random window instead of its beginning;
- from the second epoch on, a share of the inputs is changed: some tokens of a text are replaced, images are cropped and
  mirrored. The teacher gives the right embedding of any input, so this keeps a student from learning few texts by heart
  (data augmentation as in TinyBERT, arXiv 1909.10351, but with random words).

Inputs of similar length share a batch. All batches hold about equally many tokens: few long inputs or many short ones.
Padded lengths go in steps, and all batches of one padded length have equally many inputs. So there are few shapes,
which CUDA graphs need (`cuda_graphs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ternarize_cli.data.length_buckets import by_length, width_of

__all__ = ["Mixture", "Piece", "SamplingPlan", "epoch"]

_CHUNK = 32


class Piece(NamedTuple):
    """One input: the joined texts `rows`, cut to `length` tokens from token `start` on, after prompt number `prompt`.

    `change`, if it is not 0, is the seed by which the input's tokens or pixels are changed (`corpus`).
    """

    rows: tuple[int, ...]
    start: int
    length: int
    prompt: int
    change: int = 0


@dataclass(frozen=True)
class Mixture:
    """Settings for drawing inputs.

    Attributes:
        limit: the most tokens of an input, without special tokens and prompt.
        around: number of special tokens and of tokens of the longest prompt.
        prompts: number of prompts to choose from.
        joined: share of the tokens that come in joined texts, from 0 to 1.
        windows: whether texts over the limit are also cut to other parts than their beginning.
        changed: share of the inputs that are changed, from the second epoch on, from 0 to 1.
        sources: int `[texts]`, the number of each text's source.
        weights: how often each source is seen, relative to its size; None sees every text once.
    """

    limit: int
    around: int = 0
    prompts: int = 1
    joined: float = 0.0
    windows: bool = True
    changed: float = 0.0
    sources: np.ndarray | None = None
    weights: tuple[float, ...] | None = None


class SamplingPlan(Sequence[list[Piece]]):
    """The batches of an epoch, held as arrays; the pieces of a batch, of millions, become objects when it is read."""

    def __init__(self, drawn: "_Drawn", batches: Sequence[np.ndarray]) -> None:
        """`batches` holds, for each batch, the numbers of its pieces."""
        self._drawn, self._batches = drawn, batches

    def __len__(self) -> int:
        """The number of batches."""
        return len(self._batches)

    def __getitem__(self, number: Any) -> Any:
        """The pieces of a batch."""
        if isinstance(number, slice):
            return [self._drawn.pieces(batch) for batch in self._batches[number]]
        return self._drawn.pieces(self._batches[number])

    def longest(self) -> list[Piece]:
        """The batch with the longest input."""
        return self[int(np.argmax([self._drawn.length[batch].max() for batch in self._batches]))]

    def largest(self) -> list[Piece]:
        """The batch with the most inputs."""
        return self[int(np.argmax([len(batch) for batch in self._batches]))]


def epoch(lengths: np.ndarray, mixture: Mixture, batch_size: int, seed: int, number: int) -> SamplingPlan:
    """Draws the batches of an epoch.

    Args:
        lengths: number of tokens of each text, int `[texts]`.
        mixture: settings for drawing inputs.
        batch_size: number of inputs in a batch of mean length; every batch holds about this times the mean length in
            tokens.
        seed: seed of the run.
        number: number of the epoch.
    """
    rng = np.random.default_rng([seed, number])
    drawn = _drawn(_order(len(lengths), mixture, rng), lengths, mixture, rng)
    count = len(drawn.length)
    if number and mixture.changed:
        drawn.change[:] = np.where(rng.random(count) < mixture.changed, rng.integers(1, 1 << 62, size=count), 0)
    budget = batch_size * round(float(drawn.length.mean()) + mixture.around)
    shuffled = rng.permutation(count)
    made: list[np.ndarray] = []
    left = shuffled[:0]
    for start in range(0, count, batch_size * _CHUNK):
        chunk = np.concatenate([left, shuffled[start : start + batch_size * _CHUNK]])
        groups, left = _cut(chunk, drawn.length, budget, mixture.around)
        made += [groups[i] for i in rng.permutation(len(groups))]
    if len(left):
        made.append(_filled_up(left, drawn.length, budget, mixture.around) if made else left)
    return SamplingPlan(drawn, made)


class _Drawn(NamedTuple):
    """The pieces of an epoch: `rows` holds the first text of each, `joined` all texts of pieces with several."""

    rows: np.ndarray
    joined: dict[int, tuple[int, ...]]
    start: np.ndarray
    length: np.ndarray
    prompt: np.ndarray
    change: np.ndarray

    def pieces(self, numbers: np.ndarray) -> list[Piece]:
        """Makes the pieces with these numbers."""
        columns = (
            column[numbers].tolist() for column in (self.rows, self.start, self.length, self.prompt, self.change)
        )
        return [
            Piece(self.joined.get(number) or (row,), *rest)
            for number, row, *rest in zip(numbers.tolist(), *columns, strict=True)
        ]


def _order(count: int, mixture: Mixture, rng: np.random.Generator) -> np.ndarray:
    if mixture.weights is None or mixture.sources is None:
        return rng.permutation(count)
    drawn = []
    for source, weight in enumerate(mixture.weights):
        rows = np.flatnonzero(mixture.sources == source)
        whole, rest = divmod(weight * len(rows), max(1, len(rows)))
        drawn += [rows] * int(whole) + [rng.permutation(rows)[: max(round(rest), int(whole == 0))]]
    return rng.permutation(np.concatenate(drawn))


def _drawn(order: np.ndarray, lengths: np.ndarray, mixture: Mixture, rng: np.random.Generator) -> _Drawn:
    limit = mixture.limit
    sizes = np.minimum(lengths[order], limit)
    apart = int(np.searchsorted(np.cumsum(sizes), mixture.joined * sizes.sum())) if mixture.joined else 0
    joined, joined_lengths = _joined(order[:apart].tolist(), lengths[order[:apart]].tolist(), limit, rng)
    alone, own = order[apart:], sizes[apart:]
    rows = np.concatenate([np.array([texts[0] for texts in joined], dtype=np.int64), alone])
    over = lengths[alone] - limit if mixture.windows else np.zeros(len(alone), dtype=np.int64)
    windows = rng.random(len(alone))
    start = np.where((over > 0) & (windows >= 0.5), ((2 * windows - 1) * (over + 1)).astype(np.int64), 0)
    return _Drawn(
        rows,
        {number: texts for number, texts in enumerate(joined) if len(texts) > 1},
        np.concatenate([np.zeros(len(joined), dtype=np.int64), start]),
        np.concatenate([np.array(joined_lengths, dtype=np.int64), own]),
        rng.integers(mixture.prompts, size=len(rows)),
        np.zeros(len(rows), dtype=np.int64),
    )


def _joined(
    rows: list[int], lengths: list[int], limit: int, rng: np.random.Generator
) -> tuple[list[tuple[int, ...]], list[int]]:
    """Joins texts until each input has its drawn number of tokens; returns them and the lengths to cut them to."""
    made: list[tuple[int, ...]] = []
    cut: list[int] = []
    texts: list[int] = []
    length, wanted = 0, int(rng.integers(max(1, limit // 4), limit + 1))
    for row, size in zip(rows, lengths, strict=True):
        texts.append(row)
        length += size
        if length >= wanted:
            made.append(tuple(texts))
            cut.append(min(length, wanted))
            texts, length, wanted = [], 0, int(rng.integers(max(1, limit // 4), limit + 1))
    if texts:
        made.append(tuple(texts))
        cut.append(min(length, wanted))
    return made, cut


def _filled_up(left: np.ndarray, lengths: np.ndarray, budget: int, around: int) -> np.ndarray:
    """Makes the last batch of the shortest inputs; if that is less than half a batch, adds the next longer inputs.

    The added inputs are seen twice. Without them, a batch of a few words would weigh as much as any other.
    """

    def fits(count: int, length: int) -> bool:
        return count * width_of(length + around) <= budget

    longest = int(lengths[left].max())
    if not fits(2 * len(left), longest):
        return left
    others = np.setdiff1d(np.argsort(lengths, kind="stable")[: budget + len(left)], left, assume_unique=True)
    others = others[np.argsort(lengths[others], kind="stable")]
    count = 0
    while count < len(others) and fits(len(left) + count + 1, max(longest, int(lengths[others[count]]))):
        count += 1
    return np.concatenate([left, others[:count]])


def _cut(chunk: np.ndarray, lengths: np.ndarray, budget: int, around: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Cuts inputs into groups of similar length with at most `budget` padded tokens, or one input; and the rest."""
    wide = lengths[chunk] + around
    groups = by_length(wide, budget)
    last = groups.pop()
    if len(last) >= budget // width_of(int(wide[last[0]])):
        groups.append(last)
        last = last[:0]
    return [chunk[group] for group in groups], chunk[last]
