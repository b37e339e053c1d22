"""Counts what the server does, and writes the counts in Prometheus' text format.

Names and buckets are those of text-embeddings-inference, so that dashboards made for it work here. All values are
changed by the thread of the event loop only, and need no lock.
"""

from bisect import bisect_left
from collections.abc import Iterator

__all__ = ["Counter", "Gauge", "Histogram", "Metrics"]

_SECONDS = tuple(0.00001 * 1.5**i for i in range(1, 36))
_LENGTHS = tuple(2.0**i for i in range(17))
_BATCHES = tuple(2.0**i for i in range(13))
_TOKENS = tuple(2.0**i for i in range(21))


class Counter:
    """A number that grows, or one such number for each value of a label.

    Attributes:
        name: its name.
        values: the number for each value of the label.
    """

    kind = "counter"

    def __init__(self, name: str, help: str, label: str | None = None) -> None:
        self.name, self.help, self._label = name, help, label
        self.values: dict[str, float] = {} if label else {"": 0}

    def add(self, number: float = 1, value: str = "") -> None:
        """Adds a number for a value of the label."""
        self.values[value] = self.values.get(value, 0) + number

    def lines(self) -> Iterator[str]:
        """Yields the samples."""
        for value, number in self.values.items():
            label = f'{{{self._label}="{value}"}}' if self._label else ""
            yield f"{self.name}{label} {number:.15g}"


class Gauge(Counter):
    """A number that may also shrink."""

    kind = "gauge"


class Histogram:
    """The distribution of a number over buckets.

    Attributes:
        name: its name.
    """

    kind = "histogram"

    def __init__(self, name: str, help: str, bounds: tuple[float, ...]) -> None:
        self.name, self.help, self._bounds = name, help, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, number: float) -> None:
        """Adds a number to the bucket that it belongs to."""
        self._counts[bisect_left(self._bounds, number)] += 1
        self._sum += number

    def lines(self) -> Iterator[str]:
        """Yields the samples: each bucket with all below it, the sum, and the count."""
        below = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            yield f'{self.name}_bucket{{le="{"+Inf" if bound == float("inf") else f"{bound:.15g}"}"}} {below}'
        yield f"{self.name}_sum {self._sum:.15g}"
        yield f"{self.name}_count {below}"


class Metrics:
    """All that a server counts."""

    def __init__(self) -> None:
        self.requests = Counter("te_request_count", "Requests that began, for one input or for a list.", "method")
        self.successes = Counter("te_request_success", "Those of them that were answered with a result.", "method")
        self.failures = Counter("te_request_failure", "Requests that were refused or failed, by the reason.", "err")
        self.texts = Counter("te_embed_count", "Texts and images that were accepted.")
        self.finished = Counter("te_embed_success", "Texts and images that were computed.")
        self.waiting = Gauge("te_queue_size", "Texts and images that are waiting or being computed.")
        self.seconds = Histogram("te_request_duration", "Seconds from a request to its answer.", _SECONDS)
        self.tokenizing = Histogram("te_request_tokenization_duration", "Seconds of tokenising.", _SECONDS)
        self.queueing = Histogram("te_request_queue_duration", "Seconds in the queue.", _SECONDS)
        self.computing = Histogram("te_request_inference_duration", "Seconds in passes of the model.", _SECONDS)
        self.lengths = Histogram("te_request_input_length", "Tokens of a request.", _LENGTHS)
        self.batch_size = Histogram("te_batch_next_size", "Texts and images in a pass of the model.", _BATCHES)
        self.batch_tokens = Histogram("te_batch_next_tokens", "Tokens in a pass of the model.", _TOKENS)

    def text(self) -> str:
        """Writes all metrics in Prometheus' text format, version 0.0.4."""
        lines: list[str] = []
        for metric in vars(self).values():
            lines += (f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}", *metric.lines())
        return "\n".join(lines) + "\n"
