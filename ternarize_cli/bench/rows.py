"""The rows of a report: every candidate timed at every point, beside the distance of its output from `reference`.

A point is a grid point, whose one batch is full, or a draw from a file of texts, whose batches are padded (`lengths`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean, median

from torch import Tensor

from ternarize_cli.bench.baselines import Forward
from ternarize_cli.bench.candidates import BACKEND, RIVAL, Candidate, relative_l2
from ternarize_cli.bench.measure import summarise, time_interleaved

__all__ = ["Feed", "Row", "rate", "time_feed"]


@dataclass(frozen=True)
class Feed:
    """What is timed at one point.

    Attributes:
        batches: ids and mask of each, both int64 [batch, tokens]; all have the same number of sequences.
        lengths: the file that their texts are from; None for a grid point.
    """

    batches: tuple[tuple[Tensor, Tensor], ...]
    lengths: str | None = None

    @property
    def batch(self) -> int:
        """Sequences of a batch."""
        return self.batches[0][0].shape[0]

    @property
    def tokens(self) -> int:
        """The mean width of the batches, padding included, rounded."""
        return round(fmean(ids.shape[1] for ids, _ in self.batches))


@dataclass(frozen=True)
class Row:
    """One candidate at one point.

    Attributes:
        name, kind: the candidate; `ran` is the backend that really ran (it differs from `name` for "auto").
        batch, tokens: the point; of texts from a file, `tokens` is the mean width of the padded batches, rounded.
        median_ms, p10_ms, p90_ms: of the calls, in milliseconds.
        tokens_per_s: tokens per second, padding not counted.
        repeats: timed calls.
        ratio: the fastest rival's median over this median, so above 1 is faster; None without rivals.
        best_rival: that rival's name.
        relative_l2: distance of a backend's output from `reference`, worst sentence; None for rivals.
        padded_tokens_per_s: tokens per second, padding counted; at a grid point there is none.
        lengths: the file that the texts are from; None at a grid point.
    """

    name: str
    kind: str
    ran: str
    batch: int
    tokens: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    tokens_per_s: float
    repeats: int
    ratio: float | None
    best_rival: str | None
    relative_l2: float | None
    padded_tokens_per_s: float
    lengths: str | None = None


def time_feed(
    feed: Feed,
    candidates: Sequence[Candidate],
    forwards: Mapping[str, Forward],
    ran: Mapping[str, str],
    reference: Forward,
    *,
    repeats: int,
    seconds: float,
    warmup: int,
) -> list[Row]:
    """The rows of one point; every round takes the next batch, the same for all candidates.

    Args:
        feed: the point.
        candidates: who takes part.
        forwards, ran: of each candidate, by name: what `Candidate.load` returned.
        reference: what backends are compared with.
        repeats, seconds: as for `measure.time_interleaved`.
        warmup: untimed calls with each batch before.
    """
    distance = {c.name: 0.0 for c in candidates if c.kind == BACKEND}
    for ids, mask in feed.batches:
        expected = reference(ids, mask)
        for name in distance:
            distance[name] = max(distance[name], relative_l2(forwards[name](ids, mask), expected, mask))
    calls = {name: _in_turn(forward, feed.batches) for name, forward in forwards.items()}
    times = time_interleaved(calls, repeats=repeats, seconds=seconds, warmup=warmup * len(feed.batches))
    timings = {name: summarise(measured) for name, measured in times.items()}
    rivals = [c.name for c in candidates if c.kind == RIVAL]
    best = min(rivals, key=lambda name: timings[name].median_ms) if rivals else None
    real = [int(mask.sum()) for _, mask in feed.batches]
    padded = [ids.numel() for ids, _ in feed.batches]
    return [
        Row(
            name=c.name,
            kind=c.kind,
            ran=ran[c.name],
            batch=feed.batch,
            tokens=feed.tokens,
            median_ms=timings[c.name].median_ms,
            p10_ms=timings[c.name].p10_ms,
            p90_ms=timings[c.name].p90_ms,
            tokens_per_s=rate(real, times[c.name]),
            repeats=timings[c.name].repeats,
            ratio=round(timings[best].median_ms / timings[c.name].median_ms, 4) if best else None,
            best_rival=best,
            relative_l2=distance.get(c.name),
            padded_tokens_per_s=rate(padded, times[c.name]),
            lengths=feed.lengths,
        )
        for c in candidates
    ]


def rate(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    """Tokens per second: those of all batches that were timed, over the sum of each one's median time.

    Args:
        tokens: of each batch.
        seconds: of each call; call i ran batch i modulo their number.
    """
    timed = min(len(tokens), len(seconds))
    return round(sum(tokens[:timed]) / sum(median(seconds[i :: len(tokens)]) for i in range(timed)), 1)


def _in_turn(forward: Forward, batches: Sequence[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
    """A call that runs the next batch each time."""
    turn = cycle(batches)
    return lambda: forward(*next(turn))
