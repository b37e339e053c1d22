"""The rows of a report: every candidate timed at every point, beside the distance of its output from `reference`.

A point is a grid point, whose one batch is full of tokens or of images, or a draw from a file of texts, whose batches
are padded (`lengths`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from statistics import fmean, median
from typing import Any

from torch import Tensor

from ternarize_cli.bench.candidates import BACKEND, RIVAL, Candidate, relative_l2
from ternarize_cli.engines.baselines import Forward
from ternarize_cli.engines.inputs import Batch
from ternarize_cli.measuring.timing import Watch, summarise, time_interleaved

__all__ = ["Feed", "Row", "in_turn", "rate", "time_feed", "timed_rows"]

_UNRECORDED = 2


@dataclass(frozen=True)
class Feed:
    """What is timed at one point.

    Attributes:
        batches: each of the same number of texts or images.
        lengths: the file that their texts are from; None for a grid point.
    """

    batches: tuple[Batch, ...]
    lengths: str | None = None

    @property
    def batch(self) -> int:
        """Texts or images of a batch."""
        return self.batches[0][0].shape[0]

    @property
    def image(self) -> str | None:
        """Height and width of its images, `224x224`; None if it has texts."""
        first = self.batches[0][0]
        return "x".join(str(side) for side in first.shape[2:]) if first.ndim == 4 else None


@dataclass(frozen=True)
class Row:
    """One candidate at one point.

    Attributes:
        name, kind: the candidate; `ran` is the backend that really ran (it differs from `name` for "auto").
        batch, tokens: the point; of texts from a file, `tokens` is the mean width of the padded batches, rounded; of an
            image it is what the encoder makes of it; of texts that are encoded, their mean length.
        median_ms, p10_ms, p90_ms: of the calls, in milliseconds.
        tokens_per_s: tokens per second, padding not counted.
        inputs_per_s: texts or images per second.
        repeats: timed calls.
        ratio: the fastest rival's median over this median, so above 1 is faster; None without rivals.
        best_rival: that rival's name.
        relative_l2: distance of a backend's output from `reference`, worst sentence; None for rivals.
        padded_tokens_per_s: tokens per second, padding counted; at a grid point there is none.
        lengths: the file that the texts are from; None at a grid point.
        image: height and width of the images, `224x224`; None for texts.
        encoded: the texts that a call encoded, from strings to vectors (`end_to_end`); None: it was a forward pass.
        cosine: of these vectors to the full-precision model's, the mean; None for a forward pass.
        device_ms: the median between two events on the GPU around the same calls; None on the CPU.
        joules: of a pass, all of the GPU's board; None where it was not measured.
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
    inputs_per_s: float
    repeats: int
    ratio: float | None
    best_rival: str | None
    padded_tokens_per_s: float
    relative_l2: float | None = None
    lengths: str | None = None
    image: str | None = None
    encoded: str | None = None
    cosine: float | None = None
    device_ms: float | None = None
    joules: float | None = None


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
    watch: Watch | None = None,
) -> list[Row]:
    """The rows of one point; every round takes the next batch, the same for all candidates.

    Args:
        feed: the point.
        candidates: who takes part.
        forwards, ran: of each candidate, by name: what `Candidate.load` returned.
        reference: what backends are compared with.
        repeats, seconds: as for `timing.time_interleaved`.
        warmup: untimed calls with each batch before.
        watch: the GPU's clock; None on the CPU.
    """
    distance = {c.name: 0.0 for c in candidates if c.kind == BACKEND}
    real, padded = [], []
    for batch in feed.batches:
        for name in distance if watch else ():  # on a GPU the first pass of a shape is not yet the recorded one
            for _ in range(_UNRECORDED):
                forwards[name](*batch)
        expected = reference(*batch)
        mask = None if feed.image else batch[1]
        for name in distance:
            distance[name] = max(distance[name], relative_l2(forwards[name](*batch), expected, mask))
        padded.append(expected.shape[0] * expected.shape[1])
        real.append(padded[-1] if mask is None else int(mask.sum()))
    calls = {name: in_turn(forward, feed.batches) for name, forward in forwards.items()}
    watched: dict[str, list[float]] = {}
    times = time_interleaved(
        calls, repeats=repeats, seconds=seconds, warmup=warmup * len(feed.batches), watch=watch, watched=watched
    )
    on_device = {name: summarise(measured).median_ms for name, measured in watched.items()}
    rows = timed_rows(
        candidates,
        ran,
        times,
        inputs=[feed.batch] * len(feed.batches),
        real=real,
        padded=padded,
        batch=feed.batch,
        tokens=round(fmean(padded) / feed.batch),
        lengths=feed.lengths,
        image=feed.image,
    )
    return [replace(row, relative_l2=distance.get(row.name), device_ms=on_device.get(row.name)) for row in rows]


def timed_rows(
    candidates: Sequence[Candidate],
    ran: Mapping[str, str],
    times: Mapping[str, Sequence[float]],
    *,
    inputs: Sequence[int],
    real: Sequence[int],
    padded: Sequence[int],
    **point: Any,
) -> list[Row]:
    """A row for each candidate, with its rates and its ratio to the fastest rival.

    Args:
        candidates: who was timed.
        ran: what really ran, by name.
        times: the seconds of each call, by name.
        inputs, real, padded: texts or images, tokens, and tokens with padding, as `rate` takes them.
        point: the fields of `Row` that say what was timed.
    """
    timings = {name: summarise(measured) for name, measured in times.items()}
    rivals = [c.name for c in candidates if c.kind == RIVAL]
    best = min(rivals, key=lambda name: timings[name].median_ms) if rivals else None
    return [
        Row(
            name=c.name,
            kind=c.kind,
            ran=ran[c.name],
            **asdict(timings[c.name]),
            tokens_per_s=rate(real, times[c.name]),
            inputs_per_s=rate(inputs, times[c.name]),
            ratio=round(timings[best].median_ms / timings[c.name].median_ms, 4) if best else None,
            best_rival=best,
            padded_tokens_per_s=rate(padded, times[c.name]),
            **point,
        )
        for c in candidates
    ]


def rate(counts: Sequence[int], seconds: Sequence[float]) -> float:
    """Tokens (texts, images) per second: those of all batches that were timed, over the sum of each one's median time.

    Args:
        counts: of each batch.
        seconds: of each call; call i ran batch i modulo their number.
    """
    timed = min(len(counts), len(seconds))
    return round(sum(counts[:timed]) / sum(median(seconds[i :: len(counts)]) for i in range(timed)), 1)


def in_turn(forward: Forward, batches: Sequence[Batch]) -> Callable[[], Tensor]:
    """A call that runs the next batch each time."""
    turn = cycle(batches)
    return lambda: forward(*next(turn))
