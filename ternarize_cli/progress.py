"""Reports progress of library code, which does not know the terminal.

Long loops take a `track` argument: `for item in track(items, "encoding", total)`. The command line passes one that
draws a Rich bar; other callers get `silent`, which only iterates.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

__all__ = ["Track", "silent"]

T = TypeVar("T")


class Track(Protocol):
    """Wraps an iterable and reports its progress; `total` is the number of items if the iterable has no length."""

    def __call__(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]: ...


def silent(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields the items and reports nothing."""
    return iter(items)
