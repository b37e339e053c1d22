"""Which inputs are seen when: a function of the seed, so that a run can be taken up again at any step.

Training goes in epochs. An epoch shows every text once (or as often as its source's weight says), in an order of its
own. Texts are inputs as they are, except that

- a share of the tokens comes as texts joined to longer ones, of any length up to the limit, since a model meets texts
  of all lengths; every epoch joins others;
- of a text that is too long, every other time a window is seen instead of its beginning;
- from the second epoch on, a share of the inputs comes with some tokens in place of others: the teacher tells what is
  right for any input, so few texts need not be learnt by heart (data augmentation as in TinyBERT, arXiv 1909.10351, but
  with random words).

Inputs of like length share a batch. A batch holds about the same number of tokens, whatever their length: few long
inputs or many short ones. Widths go in steps, and all batches of a width have the same number of inputs, so that there
are few shapes, which CUDA graphs need (`graphs`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["Mixture", "Piece", "epoch", "width_of"]

_CHUNK = 32


class Piece(NamedTuple):
    """One input: the texts `rows` joined, from token `start` on, `length` tokens, after prompt number `prompt`.

    `change`, if it is not 0, is the seed from which some of its tokens are changed.
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
        changed: share of the inputs of which some tokens are changed, from the second epoch on.
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


def epoch(lengths: np.ndarray, mixture: Mixture, batch_size: int, seed: int, number: int) -> list[list[Piece]]:
    """The batches of an epoch.

    Args:
        lengths: tokens of each text, int `[texts]`.
        mixture: how they become inputs.
        batch_size: inputs in a batch of mean length; a batch holds that many times the mean length in tokens.
        seed, number: the epoch.
    """
    rng = np.random.default_rng([seed, number])
    order = _drawn(len(lengths), mixture, rng)
    pieces = _pieces(order, lengths, mixture, rng)
    if number and mixture.changed:
        seeds = np.where(rng.random(len(pieces)) < mixture.changed, rng.integers(1, 1 << 62, size=len(pieces)), 0)
        pieces = [piece._replace(change=int(change)) for piece, change in zip(pieces, seeds, strict=True)]
    budget = batch_size * round(float(np.mean([p.length + mixture.around for p in pieces])))
    shuffled = [pieces[i] for i in rng.permutation(len(pieces))]
    made: list[list[Piece]] = []
    chunk: list[Piece] = []
    for start in range(0, len(shuffled), batch_size * _CHUNK):
        chunk += shuffled[start : start + batch_size * _CHUNK]
        groups, chunk = _cut(chunk, budget, mixture.around)
        made += [groups[i] for i in rng.permutation(len(groups))]
    return [*made, chunk] if chunk else made


def width_of(length: int) -> int:
    """The tokens to which inputs of so many are padded: above 8 in steps of 8, or of an eighth if that is more."""
    step = 1 if length <= 8 else max(8, 1 << (length.bit_length() - 4))
    return -(-length // step) * step


def _drawn(count: int, mixture: Mixture, rng: np.random.Generator) -> np.ndarray:
    if mixture.weights is None or mixture.sources is None:
        return rng.permutation(count)
    drawn = []
    for source, weight in enumerate(mixture.weights):
        rows = np.flatnonzero(mixture.sources == source)
        whole, rest = divmod(weight * len(rows), max(1, len(rows)))
        drawn += [rows] * int(whole) + [rng.permutation(rows)[: max(round(rest), int(whole == 0))]]
    return rng.permutation(np.concatenate(drawn))


def _pieces(order: np.ndarray, lengths: np.ndarray, mixture: Mixture, rng: np.random.Generator) -> list[Piece]:
    limit = mixture.limit
    sizes = np.minimum(lengths[order], limit)
    apart = int(np.searchsorted(np.cumsum(sizes), mixture.joined * sizes.sum())) if mixture.joined else 0
    prompts = rng.integers(mixture.prompts, size=len(order))
    windows = rng.random(len(order))
    made: list[Piece] = []
    rows: list[int] = []
    length, wanted = 0, int(rng.integers(max(1, limit // 4), limit + 1))
    for place in range(apart):
        rows.append(int(order[place]))
        length += int(lengths[order[place]])
        if length >= wanted or place == apart - 1:
            made.append(Piece(tuple(rows), 0, min(length, wanted), int(prompts[place])))
            rows, length, wanted = [], 0, int(rng.integers(max(1, limit // 4), limit + 1))
    for place in range(apart, len(order)):
        row = int(order[place])
        over = int(lengths[row]) - limit if mixture.windows else 0
        start = int((2 * windows[place] - 1) * (over + 1)) if over > 0 and windows[place] >= 0.5 else 0
        made.append(Piece((row,), start, min(int(lengths[row]), limit), int(prompts[place])))
    return made


def _cut(pieces: Sequence[Piece], budget: int, around: int) -> tuple[list[list[Piece]], list[Piece]]:
    """Groups of like length with at most `budget` padded tokens (but at least one input), and what is left over."""
    ordered = sorted(pieces, key=lambda piece: -piece.length)
    groups, start = [], 0
    while start < len(ordered):
        count = max(1, budget // width_of(ordered[start].length + around))
        if start + count > len(ordered):
            break
        groups.append(ordered[start : start + count])
        start += count
    return groups, ordered[start:]
