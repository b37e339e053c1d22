"""Timing candidates against each other fairly.

Two things spoil comparisons on a shared or warm machine: drift (clock speed, other processes) and order (a candidate
that runs after a heavy one finds cold caches). So candidates are timed in rounds: each candidate runs once in each
round, and the order rotates by one place from round to round. A disturbance then affects all candidates, and each
candidate runs first, second, … equally often:

    round 0:  A B C      round 1:  B C A      round 2:  C A B      round 3:  A B C …

Threads of a candidate may look for work for some milliseconds after its call has ended, as OpenMP's do, and would take
processors from the next candidate. So there is a pause before each call, in which they go to sleep.

The median is reported with the 10th and 90th percentile. A wide gap between these means that the numbers of that point
can't be trusted.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = [
    "MIN_ROUNDS",
    "PAUSE",
    "DeviceClock",
    "GridPoint",
    "Timing",
    "leave_out",
    "pause_on",
    "summarise",
    "time_interleaved",
    "turns",
    "working_time",
]

MIN_ROUNDS = 3
"""The least number of rounds, even if the time budget is spent."""

PAUSE = 0.015
"""Seconds between two calls on a CPU: libgomp's threads look for work for up to 14 milliseconds after a call."""


def pause_on(device: str) -> float:
    """Returns the pause in seconds for candidates on a device: none on a GPU, which lowers its clock while it waits."""
    return PAUSE if device == "cpu" else 0.0


_left_out = 0.0


def leave_out(seconds: float) -> None:
    """Takes seconds that just passed out of `working_time`, such as those of the way to another process and back."""
    global _left_out
    _left_out += seconds


def working_time() -> float:
    """A monotonic clock, in seconds, without those that `leave_out` took out."""
    return time.perf_counter() - _left_out


@dataclass(frozen=True, order=True)
class GridPoint:
    """A shape of input: `batch` texts of `tokens` tokens each, without padding; or `batch` images, without tokens."""

    batch: int
    tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """The timing of one point: median, 10th and 90th percentile in milliseconds, and the number of calls."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


class DeviceClock(Protocol):
    """A second clock, for a device that works asynchronously."""

    def begin(self) -> None:
        """Runs before a timed call, before the host's clock starts."""

    def end(self) -> None:
        """Runs after a timed call, while the host's clock runs; returns when the device's work is done."""

    def seconds(self) -> float:
        """Seconds of the last call on the device."""


def turns(names: Sequence[str], round_number: int) -> list[str]:
    """Orders the candidates of a round: `names` rotated left by the round's number."""
    shift = round_number % len(names)
    return [*names[shift:], *names[:shift]]


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    seconds: float,
    warmup: int,
    pause: float = PAUSE,
    clock: Callable[[], float] = working_time,
    watch: DeviceClock | None = None,
    watched: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Times every call `repeats` times, in rounds.

    Args:
        calls: the calls to time, by name. A call returns when its work is done, or `watch` waits for it.
        repeats: number of rounds.
        seconds: time budget. After it no new round begins, but there are at least `MIN_ROUNDS` rounds (or `repeats`, if
            that is less).
        warmup: number of untimed rounds before.
        pause: seconds before each timed call, which `seconds` includes.
        clock: a monotonic clock, in seconds.
        watch: a second clock for these calls.
        watched: a dict that gets the times of `watch`, in the form of the result.

    Returns:
        The seconds of each call, in the order of the rounds.
    """
    names = list(calls)
    for i in range(warmup):
        for name in turns(names, i):
            calls[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    begun = clock()
    for i in range(repeats):
        if i >= MIN_ROUNDS and clock() - begun >= seconds:
            break
        for name in turns(names, i):
            time.sleep(pause)
            if watch is not None:
                watch.begin()
            start = clock()
            calls[name]()
            if watch is not None:
                watch.end()
            times[name].append(clock() - start)
            if watch is not None and watched is not None:
                watched.setdefault(name, []).append(watch.seconds())
    return times


def summarise(seconds: Sequence[float]) -> Timing:
    """Computes median and percentiles (linear interpolation) in milliseconds from times in seconds."""
    p10, median, p90 = (1000 * float(q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
    return Timing(round(median, 4), round(p10, 4), round(p90, 4), len(seconds))
