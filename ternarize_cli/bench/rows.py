"""Makes the rows of a report: the timing of every candidate at every point, and its distance to `reference`.

A point is a grid point, with one batch of texts without padding or of images, or a draw from a file of texts, with
padded batches (`lengths`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from statistics import fmean, median
from typing import Any

from torch import Tensor

from ternarize_cli.bench.candidates import RIVAL, BenchCandidate
from ternarize_cli.bench.feeds import Feed
from ternarize_cli.bench.output_check import Loaded, compare_outputs
from ternarize_cli.engines.baselines import Forward
from ternarize_cli.engines.inputs import Batch
from ternarize_cli.measuring.timing import DeviceClock, pause_on, summarise, time_interleaved

__all__ = ["BenchRow", "in_turn", "rate", "time_feed", "timed_rows"]


@dataclass(frozen=True)
class BenchRow:
    """The measurements of one candidate at one point.

    Attributes:
        name, kind: name and kind of the candidate.
        ran: the backend that ran, which differs from `name` for "auto".
        batch: number of texts or images in a batch.
        tokens: number of tokens of each text. For texts from a file, it is the mean padded length of the batches,
            rounded; for an image, the tokens that the encoder makes of it; for encoded texts, their mean length.
        median_ms, p10_ms, p90_ms: median and percentiles of the calls, in milliseconds.
        tokens_per_s: tokens per second, without padding.
        inputs_per_s: texts or images per second.
        repeats: number of timed calls.
        ratio: the fastest rival's median divided by this median, so above 1 is faster; None without rivals.
        best_rival: name of the fastest rival.
        relative_l2: relative L2 distance of the output, for the worst text: of a backend's to `reference`, of a rival's
            to the full-precision model's in fp32 (`output_check`); None for encoded texts.
        padded_tokens_per_s: tokens per second, with padding; None at a grid point, which has no padding.
        lengths: the file of the texts; None at a grid point.
        image: height and width of the images, such as `224x224`; None for texts.
        encoded: the texts that a call encoded, from strings to vectors (`end_to_end`); None for a forward pass.
        cosine: mean cosine of these vectors to the full-precision model's; None for a forward pass.
        device_ms: median between two events on the GPU around these calls, in milliseconds; None on the CPU.
        joules: energy of a pass of the whole GPU board; None if it was not measured.
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
    loaded: Loaded,
    *,
    repeats: int,
    seconds: float,
    warmup: int,
    watch: DeviceClock | None = None,
) -> list[BenchRow]:
    """Makes the rows of one point; every round takes the next batch, for all candidates.

    Args:
        feed: the batches of the point.
        loaded: the candidates; rivals that compute something else are taken out.
        repeats, seconds: number of rounds and time budget, as in `timing.time_interleaved`.
        warmup: number of untimed calls with each batch before.
        watch: the GPU's clock; None on the CPU.
    """
    compared = compare_outputs(feed, loaded, recording=watch is not None)
    calls = {c.name: in_turn(loaded.forwards[c.name], feed.batches) for c in loaded.candidates}
    watched: dict[str, list[float]] = {}
    times = time_interleaved(
        calls,
        repeats=repeats,
        seconds=seconds,
        warmup=warmup * len(feed.batches),
        pause=pause_on(loaded.candidates[0].device),
        watch=watch,
        watched=watched,
    )
    on_device = {name: summarise(measured).median_ms for name, measured in watched.items()}
    rows = timed_rows(
        loaded.candidates,
        loaded.ran,
        times,
        inputs=[feed.batch] * len(feed.batches),
        real=compared.real,
        padded=compared.padded,
        batch=feed.batch,
        tokens=round(fmean(compared.padded) / feed.batch),
        lengths=feed.lengths,
        image=feed.image,
    )
    return [replace(row, relative_l2=compared.distance[row.name], device_ms=on_device.get(row.name)) for row in rows]


def timed_rows(
    candidates: Sequence[BenchCandidate],
    ran: Mapping[str, str],
    times: Mapping[str, Sequence[float]],
    *,
    inputs: Sequence[int],
    real: Sequence[int],
    padded: Sequence[int],
    **point: Any,
) -> list[BenchRow]:
    """Makes a row for each candidate, with its rates and its ratio to the fastest rival.

    Args:
        candidates: the timed candidates.
        ran: for each candidate by name, the backend that ran.
        times: for each candidate by name, the seconds of each call.
        inputs, real, padded: for each batch, the number of texts or images, of tokens, and of tokens with padding.
        point: the fields of `BenchRow` that describe the point.
    """
    timings = {name: summarise(measured) for name, measured in times.items()}
    rivals = [c.name for c in candidates if c.kind == RIVAL]
    best = min(rivals, key=lambda name: timings[name].median_ms) if rivals else None
    return [
        BenchRow(
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
    """Computes tokens (texts, images) per second: the sum over timed batches, divided by the sum of median times.

    Args:
        counts: number of tokens (texts, images) of each batch.
        seconds: seconds of each call; call i ran batch i modulo the number of batches.
    """
    timed = min(len(counts), len(seconds))
    return round(sum(counts[:timed]) / sum(median(seconds[i :: len(counts)]) for i in range(timed)), 1)


def in_turn(forward: Forward, batches: Sequence[Batch]) -> Callable[[], Tensor]:
    """Makes a function that runs the next batch each time it is called."""
    turn = cycle(batches)
    return lambda: forward(*next(turn))
