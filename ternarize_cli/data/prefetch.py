"""Reads and prepares chunks in threads while the model runs, so that neither waits for the other.

    items ──thread──▶ at most one chunk ──thread──▶ one chunk, prepared ──▶ the caller, whose model runs

A GPU works while the thread that started it goes on. There one more thread starts the model on each chunk, and the
caller waits for the vectors of a chunk while the card has the next one.

Every stage holds one chunk at most and then waits for the next stage. So memory does not grow with the input, and a
program that writes to stdin faster than the model runs has to wait (backpressure). A chunk of a stream does not wait
until it is full: it goes on `linger` seconds after its first item came, so that lines of a slow program (`tail -f`) are
answered soon.

The thread that reads is a daemon, because it may still wait for a line that never comes when everything else is done.
"""

import sys
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Generic, TypeVar

__all__ = ["ReadAhead", "in_chunks", "one_behind", "overlapped"]

T = TypeVar("T")
U = TypeVar("U")
_SWITCH = 5e-4  # seconds


def in_chunks(
    items: Iterable[T], count: int, *, room: int | None = None, size: Callable[[T], int] = lambda _: 1
) -> Iterator[list[T]]:
    """Cuts items into chunks (lists, in order).

    Args:
        items: the items. An error in it is raised after the items before it.
        count: the most items of a chunk.
        room: the sum of sizes of items at which a chunk is full too; None for any sum.
        size: a function that gives the size of an item.
    """
    chunk: list[T] = []
    held = 0
    try:
        for item in items:
            chunk.append(item)
            held += 0 if room is None else size(item)
            if len(chunk) >= count or (room is not None and held >= room):
                yield chunk
                chunk, held = [], 0
    except Exception:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


class ReadAhead(Generic[T]):
    """Iterates over items in chunks (`in_chunks`), while a thread reads the next chunk.

    Args:
        items: the items, which the thread reads. An error in it is raised to the caller, after all earlier items.
        count, room, size: as `in_chunks` takes them.
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
        read = self._read if linger is not None else self._read_whole
        threading.Thread(target=read, args=(items,), name="read ahead", daemon=True).start()

    def __iter__(self) -> Iterator[list[T]]:
        return self

    def __next__(self) -> list[T]:
        with self._changed:
            self._changed.wait_for(lambda: self._chunk or self._ended)
            if self._linger is not None:
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
        with self._ending():
            for item in items:
                with self._changed:
                    self._changed.wait_for(lambda: not self._full() or self._ended)
                    if self._ended:
                        return
                    self._chunk.append(item)
                    self._held += self._size(item)
                    if len(self._chunk) == 1 or self._full():
                        self._changed.notify_all()

    def _read_whole(self, items: Iterable[T]) -> None:
        """Hands over whole chunks, which takes less time than to hand over each item."""
        with self._ending():
            for chunk in in_chunks(items, self._count, room=self._room, size=self._size):
                with self._changed:
                    if self._ended:
                        return
                    self._chunk = chunk
                    self._changed.notify_all()
                    self._changed.wait_for(lambda: not self._chunk or self._ended)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Tells the caller that reading has ended, with the error that ended it."""
        error: BaseException | None = None
        try:
            yield
        except BaseException as e:  # raised to the caller
            error = e
        finally:
            with self._changed:
                if not self._ended:
                    self._error, self._ended = error, True
                self._changed.notify_all()


def overlapped(chunks: ReadAhead[T], *stages: Callable[[Any], Any]) -> Generator[Any, None, None]:
    """Yields what the last of some stages makes of each chunk.

    Each stage runs in a thread of its own, and takes what the stage before it made: while the caller works on one
    chunk, the last stage makes the next, and the stage before it the one after that. Closes `chunks` when it ends or is
    closed.
    """
    with ExitStack() as stack:
        following: Callable[[], Any] = partial(next, chunks, None)
        if len(stages) > 1:
            stack.enter_context(_quick_switches())
        for stage in stages:
            pool = stack.enter_context(ThreadPoolExecutor(1, getattr(stage, "__name__", "stage")))
            following = _ahead(pool, following, stage)
        stack.callback(chunks.close)  # before threads are waited for that wait for a chunk
        while (made := following()) is not None:
            yield made


def one_behind(work: Callable[[T], U], chunks: Iterable[T]) -> Generator[U, None, None]:
    """Yields what some work makes of each chunk, while a thread does it and the next chunk is awaited.

    If the next chunk can't be had, the work on the one before is finished first.
    """
    with ThreadPoolExecutor(1, getattr(work, "__name__", "work")) as pool:
        under_way: Future[U] | None = None
        for chunk in chunks:
            if under_way is not None:
                yield under_way.result()
            under_way = pool.submit(work, chunk)
        if under_way is not None:
            yield under_way.result()


def _ahead(pool: ThreadPoolExecutor, source: Callable[[], T | None], stage: Callable[[T], U]) -> Callable[[], U | None]:
    """Returns a function that gives the next result of a stage, None at the end; the pool makes the one after it."""

    def coming() -> U | None:
        chunk = source()
        return None if chunk is None else stage(chunk)

    future = pool.submit(coming)

    def following() -> U | None:
        nonlocal future
        made = future.result()
        if made is not None:
            future = pool.submit(coming)
        return made

    return following


@contextmanager
def _quick_switches() -> Iterator[None]:
    """Lets threads wait less than Python's usual 5 ms for one that computes: a card may be waiting for them."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(usual, _SWITCH))
    try:
        yield
    finally:
        sys.setswitchinterval(usual)
