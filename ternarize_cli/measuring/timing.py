"""Timing candidates against each other fairly.

Two things spoil comparisons on a shared or warm machine: drift (clock speed, neighbours) and order (whoever runs
after a heavy candidate finds cold caches). So candidates are not timed one after the other but in rounds: in each
round each of them runs once, and the order rotates by one place from round to round. A disturbance then falls on all,
and everybody has been everybody else's successor equally often:

    round 0:  A B C      round 1:  B C A      round 2:  C A B      round 3:  A B C …

The median is reported with the 10th and 90th percentile: a wide gap between them says that the numbers of that
point are not to be trusted, whatever the median is.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

__all__ = ["MIN_ROUNDS", "Point", "Timing", "Watch", "summarise", "time_interleaved", "turns"]

MIN_ROUNDS = 3
"""A time budget never cuts the rounds below this."""


@dataclass(frozen=True, order=True)
class Point:
    """One shape of input: `batch` texts of `tokens` tokens each, no padding; or `batch` images, tokens not said."""

    batch: int
    tokens: int = 0


@dataclass(frozen=True)
class Timing:
    """What was timed at one point: milliseconds of the median, 10th and 90th percentile call, and how many calls."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int


class Watch(Protocol):
    """A second clock, for a device that works behind the host's back."""

    def begin(self) -> None:
        """Called before a call, before the host's clock starts."""

    def end(self) -> None:
        """Called after it; returns when its work is done. The host's clock runs."""

    def seconds(self) -> float:
        """Of the last call."""


def turns(names: Sequence[str], round_number: int) -> list[str]:
    """The order of one round: `names` rotated left by the round's number."""
    shift = round_number % len(names)
    return [*names[shift:], *names[:shift]]


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    repeats: int,
    seconds: float,
    warmup: int,
    clock: Callable[[], float] = time.perf_counter,
    watch: Watch | None = None,
    watched: dict[str, list[float]] | None = None,
) -> dict[str, list[float]]:
    """Times every call `repeats` times, in rounds.

    Args:
        calls: what to time, by name. A call returns when its work is done, or `watch` waits for it.
        repeats: rounds.
        seconds: no new round is begun once this much time is used, except that there are at least `MIN_ROUNDS`
            (or `repeats`, if that is less).
        warmup: untimed rounds before.
        clock: seconds, monotonic.
        watch: a second clock for the same calls.
        watched: takes its times, as those that are returned.

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
    """Median and percentiles (linear interpolation) of calls timed in seconds, in milliseconds."""
    p10, median, p90 = (1000 * float(q) for q in np.quantile(seconds, (0.1, 0.5, 0.9)))
    return Timing(round(median, 4), round(p10, 4), round(p90, 4), len(seconds))
