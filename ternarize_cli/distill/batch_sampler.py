"""Which inputs are seen when: a function of the seed, so that a run can be taken up again at any step.

Training goes in epochs. An epoch shows every text once (or as often as its source's weight says), in an order of its
own; a few of the shortest come twice, where the last batch would be small. Texts are inputs as they are, except that

- a share of the tokens comes as texts joined to longer ones, of any length up to the limit, since a model meets texts
  of all lengths; every epoch joins others;
- of a text that is too long, every other time a window is seen instead of its beginning;
- from the second epoch on, a share of the inputs comes changed, texts with some tokens in place of others, images
  cropped and mirrored: the teacher tells what is right for any input, so few texts need not be learnt by heart (data
  augmentation as in TinyBERT, arXiv 1909.10351, but with random words).

Inputs of like length share a batch. A batch holds about the same number of tokens, whatever their length: few long
inputs or many short ones. Widths go in steps, and all batches of a width have the same number of inputs, so that there
are few shapes, which CUDA graphs need (`cuda_graphs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ternarize_cli.data.length_buckets import by_length, width_of

__all__ = ["Mixture", "Piece", "Plan", "epoch"]

_CHUNK = 32


class Piece(NamedTuple):
    """One input: the texts `rows` joined, from token `start` on, `length` tokens, after prompt number `prompt`.

    `change`, if it is not 0, is the seed by which its tokens or pixels are changed (`corpus`).
    """

    rows: tuple[int, ...]
    start: int
    length: int
    prompt: int
    change: int = 0


@dataclass(frozen=True)
class Mixture:
    """How inputs are drawn.

    Attributes:
        limit: tokens of an input, special ones and prompts apart.
        around: special tokens and those of the longest prompt.
        prompts: how many prompts there are to choose from.
        joined: share of the tokens that come in joined texts.
        windows: whether of texts over the limit other parts than the beginning are seen.
        changed: share of the inputs that are changed, from the second epoch on.
        sources: for each text the number of its source; and
        weights: how often a source is seen relative to its size; None: all once.
    """

    limit: int
    around: int = 0
    prompts: int = 1
    joined: float = 0.0
    windows: bool = True
    changed: float = 0.0
    sources: np.ndarray | None = None
    weights: tuple[float, ...] | None = None


class Plan(Sequence[list[Piece]]):
    """The batches of an epoch, as arrays: there may be millions of pieces, which become objects a batch at a time."""

    def __init__(self, drawn: "_Drawn", batches: Sequence[np.ndarray]) -> None:
        """`batches` hold numbers of pieces."""
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


def epoch(lengths: np.ndarray, mixture: Mixture, batch_size: int, seed: int, number: int) -> Plan:
    """The batches of an epoch.

    Args:
        lengths: tokens of each text, int `[texts]`.
        mixture: how they become inputs.
        batch_size: inputs in a batch of mean length; a batch holds that many times the mean length in tokens.
        seed, number: the epoch.
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
    return Plan(drawn, made)


class _Drawn(NamedTuple):
    """The pieces of an epoch: `rows` has the first text of each, `joined` all texts of those that have several."""

    rows: np.ndarray
    joined: dict[int, tuple[int, ...]]
    start: np.ndarray
    length: np.ndarray
    prompt: np.ndarray
    change: np.ndarray

    def pieces(self, numbers: np.ndarray) -> list[Piece]:
        """Those of some numbers."""
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
    """Texts joined until they have the tokens that were drawn for them, and the lengths to which they are cut."""
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
    """What is left of an epoch, the shortest inputs; where it is less than half a batch, with the next longer ones.

    They are then seen twice. A batch of a few words would weigh as much as any other.
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
    """Groups of like length with at most `budget` padded tokens (but at least one input), and what is left over."""
    wide = lengths[chunk] + around
    groups = by_length(wide, budget)
    last = groups.pop()
    if len(last) >= budget // width_of(int(wide[last[0]])):
        groups.append(last)
        last = last[:0]
    return [chunk[group] for group in groups], chunk[last]
