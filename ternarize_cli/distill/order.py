"""Which inputs are seen when: a function of the seed, so that a run can be taken up again at any step.

Training goes in epochs. An epoch shows every text once (or as often as its source's weight says), in an order of its
own. Texts are inputs as they are, except that

- a share of the tokens comes as texts joined to longer ones, of any length up to the limit, since a model meets texts
  of all lengths; every epoch joins others;
- of a text that is too long, every other time a window is seen instead of its beginning.

Inputs of like length share a batch. A batch holds about the same number of tokens, whatever their length: few long
inputs or many short ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

__all__ = ["Mixture", "Piece", "epoch"]

_CHUNK = 32


class Piece(NamedTuple):
    """One input: the texts `rows` joined, from token `start` on, `length` tokens, after prompt number `prompt`."""

    rows: tuple[int, ...]
    start: int
    length: int
    prompt: int


@dataclass(frozen=True)
class Mixture:
    """How inputs are drawn.

    Attributes:
        limit: tokens of an input, special ones and prompts apart.
        prompts: how many prompts there are to choose from.
        joined: share of the tokens that come in joined texts.
        sources: for each text the number of its source; and
        weights: how often a source is seen relative to its size; None: all once.
    """

    limit: int
    prompts: int = 1
    joined: float = 0.0
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
    budget = batch_size * max(1, round(float(np.mean([p.length for p in pieces]))))
    shuffled = [pieces[i] for i in rng.permutation(len(pieces))]
    made: list[list[Piece]] = []
    for start in range(0, len(shuffled), batch_size * _CHUNK):
        chunk = sorted(shuffled[start : start + batch_size * _CHUNK], key=lambda piece: piece.length)
        groups = _cut(chunk, budget)
        made += [groups[i] for i in rng.permutation(len(groups))]
    return made


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
        over = int(lengths[row]) - limit
        start = int((2 * windows[place] - 1) * (over + 1)) if over > 0 and windows[place] >= 0.5 else 0
        made.append(Piece((row,), start, min(int(lengths[row]), limit), int(prompts[place])))
    return made


def _cut(pieces: Sequence[Piece], budget: int) -> list[list[Piece]]:
    """Consecutive groups of at most `budget` padded tokens (but at least one input); lengths rise."""
    groups: list[list[Piece]] = [[]]
    for piece in pieces:
        if groups[-1] and (len(groups[-1]) + 1) * max(1, piece.length) > budget:
            groups.append([])
        groups[-1].append(piece)
    return groups
