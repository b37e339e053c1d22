"""Which of several ways is the fastest on this card: measured once, then remembered.

Times are those of a CUDA graph of the call, as short kernels take longer to start than to run. What was found is kept
in a file (~/.cache/ternarize/gpu/CARD-….json; see `caches.cache_folder`), so that only the first process of a
machine measures; another version of Triton or of this package measures anew. TERNARIZE_TUNE=0 measures nothing and
takes the first way.
"""

import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, TypeVar, cast

import torch

from ternarize_cli import __version__
from ternarize_cli.storage.caches import cache_folder, check_own, keep_file

__all__ = ["Choices", "bucket", "fastest", "found"]

Way = TypeVar("Way")

_LOG = logging.getLogger(__name__)


def bucket(rows: int) -> int:
    """Shapes with so many rows are measured as one: the next power of two, at least 16."""
    return max(16, 1 << (rows - 1).bit_length())


class _Found:
    """What is known of this card; read from the file, and written to it when something is added."""

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
        except (OSError, ValueError, AttributeError):  # none yet, or damaged: it is measured anew
            return {}

    def add(self, key: str, name: str) -> None:
        self.best = self._read() | self.best | {key: name}  # other processes add, too
        content = json.dumps(self.best, indent=1, sort_keys=True).encode()
        try:
            keep_file(self.path, lambda stream: stream.write(content))
        except OSError as e:
            if self._kept:
                _LOG.warning("what is fastest on this card can't be kept, and is measured in every run: %s", e)
            self._kept = False


@cache
def _found() -> _Found:
    return _Found()


def found() -> dict[str, str]:
    """All that was measured on this card: key → name of the fastest way."""
    return dict(_found().best)


def fastest(key: str, ways: Sequence[Way], call: Callable[[Way], object]) -> Way:
    """The fastest of several ways to call a function; ways that fail are left out.

    Args:
        key: names the question, shapes included.
        ways: the one to take unmeasured first; `str` tells them apart.
        call: what is measured.

    Raises:
        RuntimeError: none works.
    """
    if len(ways) == 1 or os.environ.get("TERNARIZE_TUNE") == "0" or not torch.cuda.is_available():
        return ways[0]
    known = _found().best.get(key)
    for way in ways:
        if str(way) == known:
            return way
    if torch.cuda.is_current_stream_capturing():
        return ways[0]
    times = [(taken, i) for i, way in enumerate(ways) if (taken := _milliseconds(partial(call, way))) is not None]
    if not times:
        raise RuntimeError(f"nothing that was tried for {key} works on this card")
    best = ways[min(times)[1]]
    _found().add(key, str(best))
    return best


class Choices:
    """What `fastest` said in this process, without asking it again.

    Attributes:
        made: kind, bucket of rows, inputs and outputs → the way.
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
        """The fastest way for a product of a shape: rows, inputs, outputs; `ways` are those for so many rows."""
        rows, inputs, outputs = shape
        key = (kind, bucket(rows), inputs, outputs)
        chosen: Way | None = self.made.get(key)
        if key not in self.made:
            chosen = fastest(f"{kind} {key[1]} x {inputs} -> {outputs}", ways(rows), call)
            if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
                return chosen
            self.made[key] = chosen
        return cast("Way", chosen)


def _milliseconds(call: Callable[[], object]) -> float | None:
    """The median of one call in a graph of many; None if it fails."""
    from triton.errors import TritonError
    from triton.testing import do_bench_cudagraph

    try:
        return float(do_bench_cudagraph(call, rep=4, return_mode="median"))
    except (TritonError, RuntimeError):  # RuntimeError: what torch refuses
        return None
