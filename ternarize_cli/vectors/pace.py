"""Measures how fast a corpus is encoded, apart from the start, which does not grow with the corpus."""

import time

__all__ = ["Pace"]


class Pace:
    """Notes when chunks are done: encoded and written.

    On a GPU the first chunk waits for kernels that are compiled, and chunks that come after it are prepared meanwhile.

    Attributes:
        count: number of texts or images that are done.
        start_seconds: from the beginning to the end of the first chunk; None if nothing is done.
        rest_count: number of texts or images after the first chunk.
        rest_seconds: from the end of the first chunk to that of the last.
    """

    def __init__(self, began: float | None = None) -> None:
        """Takes the time of the beginning, as `time.time` gives it; None is now."""
        self._began = time.time() if began is None else began
        self._first = self._last = self._began
        self.count = self.rest_count = 0

    def done(self, count: int) -> None:
        """Notes that a chunk of `count` texts or images is done."""
        self._last = time.time()
        if not self.count:
            self._first = self._last
        else:
            self.rest_count += count
        self.count += count

    @property
    def start_seconds(self) -> float | None:
        """Seconds from the beginning to the end of the first chunk; None if nothing is done."""
        return round(self._first - self._began, 3) if self.count else None

    @property
    def rest_seconds(self) -> float:
        """Seconds from the end of the first chunk to that of the last."""
        return round(self._last - self._first, 3)

    @property
    def per_second(self) -> float | None:
        """Texts or images per second after the first chunk; None if there was only one."""
        return round(self.rest_count / (self._last - self._first), 1) if self._last > self._first else None

    @property
    def summary(self) -> str:
        """The numbers in words, for example `start 4.2 s, then 51,200/s`; empty if nothing is done."""
        if not self.count:
            return ""
        then = f", then {self.per_second:,.0f}/s" if self.per_second else ""
        return f"start {self.start_seconds:.1f} s{then}"

    @property
    def numbers(self) -> dict[str, float | None]:
        """The numbers by the names that --json has."""
        return {
            "start_seconds": self.start_seconds,
            "rest_count": self.rest_count,
            "rest_seconds": self.rest_seconds,
            "per_second": self.per_second,
        }
