"""Reads and prepares chunks in threads while the model runs, so that neither waits for the other.

    items ──thread──▶ at most one chunk ──thread──▶ one chunk, prepared ──▶ the caller, whose model runs

Every stage holds one chunk at most and then waits for the next stage. So memory does not grow with the input, and a
program that writes to stdin faster than the model runs has to wait (backpressure). A chunk does not wait until it is
full: it goes on `linger` seconds after its first item came, so that lines of a slow program (`tail -f`) are answered
soon.

The thread that reads is a daemon, because it may still wait for a line that never comes when everything else is done.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

__all__ = ["ReadAhead", "overlapped"]

T = TypeVar("T")
U = TypeVar("U")


class ReadAhead(Generic[T]):
    """Iterates over items in chunks (lists, in order), while a thread reads the next chunk.

    Args:
        items: the items, which the thread reads. An error in it is raised to the caller, after all earlier items.
        count: the most items of a chunk.
        room: the sum of sizes of items at which a chunk is full too.
        size: a function that gives the size of an item.
        linger: seconds after a chunk's first item at which the chunk goes on; None waits until it is full.
    """

    def __init__(
        self,
        items: Iterable[T],
        count: int,
        *,
        room: int | None = None,
        size: Callable[[T], int] = lambda _: 1,
        linger: float | None = None,
    ) -> None:
        self._count, self._room, self._size, self._linger = count, room, size, linger
        self._chunk: list[T] = []
        self._held = 0
        self._ended = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        threading.Thread(target=self._read, args=(items,), name="read ahead", daemon=True).start()

    def __iter__(self) -> Iterator[list[T]]:
        return self

    def __next__(self) -> list[T]:
        with self._changed:
            self._changed.wait_for(lambda: self._chunk or self._ended)
            self._changed.wait_for(lambda: self._full() or self._ended, timeout=self._linger)
            chunk, self._chunk, self._held = self._chunk, [], 0
            self._changed.notify_all()
        if chunk:
            return chunk
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Ends the iteration, even if it is waiting; the thread ends after the item that it is reading."""
        with self._changed:
            self._chunk, self._error, self._ended = [], None, True
            self._changed.notify_all()

    def _full(self) -> bool:
        return len(self._chunk) >= self._count or (self._room is not None and self._held >= self._room)

    def _read(self, items: Iterable[T]) -> None:
        error: BaseException | None = None
        try:
            for item in items:
                with self._changed:
                    self._changed.wait_for(lambda: not self._full() or self._ended)
                    if self._ended:
                        return
                    self._chunk.append(item)
                    self._held += self._size(item)
                    if len(self._chunk) == 1 or self._full():
                        self._changed.notify_all()
        except BaseException as e:  # raised to the caller
            error = e
        finally:
            with self._changed:
                if not self._ended:
                    self._error, self._ended = error, True
                self._changed.notify_all()


def overlapped(chunks: ReadAhead[T], prepare: Callable[[list[T]], U]) -> Generator[U, None, None]:
    """Yields `prepare(chunk)` of each chunk; while the caller works on one, a thread prepares the next.

    Closes `chunks` when it ends or is closed.
    """

    def coming() -> U | None:
        chunk = next(chunks, None)
        return None if chunk is None else prepare(chunk)

    with ThreadPoolExecutor(1, "prepare") as pool:
        try:
            future = pool.submit(coming)
            while (prepared := future.result()) is not None:
                future = pool.submit(coming)
                yield prepared
        finally:
            chunks.close()
