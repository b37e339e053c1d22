"""How library code reports progress without knowing a terminal.

Long loops take a `track` argument: `for item in track(items, "encoding", total)`. The command line passes one that
draws a Rich bar; everybody else gets `silent`, which just iterates.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

__all__ = ["Track", "silent"]

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable and reports how far it is; `total` counts items when the iterable has no length."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


def silent(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """The tracker that reports nothing."""
    return iter(items)
