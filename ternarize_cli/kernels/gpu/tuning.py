"""Measures once which of several configurations of a kernel is the fastest on this GPU, and remembers it.

Calls are timed inside a CUDA graph, because short kernels take longer to start than to run. Results are kept in a file
(~/.cache/ternarize/gpu/CARD-….json; see `storage.cache_folder`), so that only the first process of a machine measures;
another version of Triton or of this package measures anew. TERNARIZE_TUNE=0 measures nothing and takes the first
configuration that works.
"""

import json
import logging
import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch

from ternarize_cli import __version__
from ternarize_cli.arithmetic.cuda_graphs import RECORDING
from ternarize_cli.storage.cache_folder import cache_folder, check_own, keep_file

__all__ = ["Choices", "bucket", "fastest", "first_that_works", "found", "paused"]

Way = TypeVar("Way")

_MILLISECONDS, _MOST_CALLS, _REPLAYS = 2.0, 200, 5  # of a graph, calls in it, and how often it runs
_LOG = logging.getLogger(__name__)


_PAUSED: ContextVar[bool] = ContextVar("paused", default=False)


@contextmanager
def paused() -> Iterator[None]:
    """Takes the first configurations that work meanwhile, and measures and remembers nothing."""
    before = _PAUSED.set(True)
    try:
        yield
    finally:
        _PAUSED.reset(before)


def bucket(rows: int) -> int:
    """Rounds a number of rows up to a power of two, at least 16; such shapes share one measurement."""
    return max(16, 1 << (rows - 1).bit_length())


class _Found:
    """The results for this GPU, read from the file and written to it when one is added."""

    def __init__(self) -> None:
        import triton

        card = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-")
        self.path = cache_folder("gpu") / f"{card}-triton{triton.__version__}-{__version__}.json"
        self.best = self._read()
        self._kept = True

    def _read(self) -> dict[str, str]:
        if not all(check_own(path) for path in (self.path.parent, self.path)):
            return {}
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            return {str(key): str(name) for key, name in known.items()}
        except (OSError, ValueError, AttributeError):  # the file is missing or damaged: everything is measured anew
            return {}

    def add(self, key: str, name: str) -> None:
        self.best = self._read() | self.best | {key: name}  # other processes may have added results
        content = json.dumps(self.best, indent=1, sort_keys=True).encode()
        try:
            keep_file(self.path, lambda stream: stream.write(content))
        except OSError as e:
            if self._kept:
                _LOG.warning("the fastest kernels on this GPU can't be stored, and are measured in every run: %s", e)
            self._kept = False


@cache
def _found() -> _Found:
    return _Found()


def found() -> dict[str, str]:
    """Gives all results for this GPU: a dict from key to the name of the fastest configuration."""
    return dict(_found().best)


def fastest(key: str, ways: Sequence[Way], call: Callable[[Way], object]) -> Way:
    """Finds the fastest of several configurations of a call; configurations that fail are left out.

    Args:
        key: names the measurement, with its shapes.
        ways: the configurations; the first is used if nothing is measured. `str` must tell them apart.
        call: the function that is timed with each.

    Raises:
        RuntimeError: no configuration works.
    """
    if len(ways) == 1 or not torch.cuda.is_available():
        return ways[0]
    if os.environ.get("TERNARIZE_TUNE") == "0":
        return first_that_works(key, ways, call)
    known = _found().best.get(key)
    for way in ways:
        if str(way) == known:
            return way
    if torch.cuda.is_current_stream_capturing():
        return ways[0]
    times = [(taken, i) for i, way in enumerate(ways) if (taken := _milliseconds(partial(call, way))) is not None]
    if not times:
        raise RuntimeError(f"no configuration for {key} works on this GPU")
    best = ways[min(times)[1]]
    _found().add(key, str(best))
    return best


def first_that_works(key: str, ways: Sequence[Way], call: Callable[[Way], object]) -> Way:
    """Finds the first configuration that this GPU can run: a tile may need more shared memory than it has.

    Args:
        key: names the call, with its shapes.
        ways: the configurations.
        call: the function that is run with each, until one works.

    Raises:
        RuntimeError: no configuration works.
    """
    from triton.errors import TritonError

    for way in ways:
        with suppress(TritonError):
            call(way)
            return way
    raise RuntimeError(f"no configuration for {key} works on this GPU")


class Choices:
    """Remembers the results of `fastest` in this process.

    Attributes:
        made: a dict from kind, bucket of rows, inputs and outputs to the configuration.
    """

    def __init__(self) -> None:
        self.made: dict[tuple[str, int, int, int], Any] = {}

    def of(
        self,
        kind: str,
        shape: tuple[int, int, int],
        ways: Callable[[int], Sequence[Way]],
        call: Callable[[Way], object],
    ) -> Way:
        """Finds the fastest configuration for a product.

        Args:
            kind: kind of the product.
            shape: rows, inputs, outputs.
            ways: a function from a number of rows to the configurations.
            call: the function that is timed with each.
        """
        rows, inputs, outputs = shape
        if _PAUSED.get():
            found = ways(rows)
            return first_that_works(kind, found, call) if len(found) > 1 and torch.cuda.is_available() else found[0]
        key = (kind, bucket(rows), inputs, outputs)
        chosen: Way | None = self.made.get(key)
        if key not in self.made:
            chosen = fastest(f"{kind} {key[1]} x {inputs} -> {outputs}", ways(rows), call)
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return chosen
            self.made[key] = chosen
        return cast("Way", chosen)


def _milliseconds(call: Callable[[], object]) -> float | None:
    """Measures a call in a CUDA graph of many: median milliseconds of one call; None if it fails.

    Triton's `do_bench_cudagraph` does the same, but records in a mode in which no other thread may allocate memory.
    """
    from triton.errors import TritonError

    def timed(run: Callable[[], object]) -> float:
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))

    outside, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            call()  # which compiles
            once = min(timed(call) for _ in range(3))
            count = max(1, min(_MOST_CALLS, int(_MILLISECONDS / max(once, 1e-3))))
            graph = torch.cuda.CUDAGraph()
            with RECORDING, torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                for _ in range(count):
                    call()
            return statistics.median(timed(graph.replay) for _ in range(_REPLAYS)) / count
    except (TritonError, RuntimeError):  # torch raises RuntimeError
        return None
    finally:
        outside.wait_stream(stream)
