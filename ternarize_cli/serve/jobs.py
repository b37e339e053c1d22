"""The part of the queue that belongs to one request: its items, and what has been computed of them."""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from ternarize_cli.serve.answers import Fault, Refusal
from ternarize_cli.serve.tasks import Prepared, Task

__all__ = ["Job"]

_CHUNK_ITEMS, _CHUNK_LETTERS = 64, 32_768
"""A large request is prepared in chunks, so that smaller ones need not wait for all of it."""


class Job:
    """Items of one request that wait for the model.

    Only `future` belongs to the event loop; after the job is queued, all else belongs to the thread that computes.

    Attributes:
        task: what is computed.
        items: the items.
        future: gets this job when all results are there, or an error; a cancelled one tells that nobody waits.
        result: the results of all items.
        error: why there are none.
        tokens: the tokens of all items.
        arrived: when it was queued, by `time.perf_counter`.
        queued, preparing, computing: the seconds that it waited, was prepared, and took part in passes.
    """

    __slots__ = (
        *("arrived", "computing", "error", "future", "items", "preparing", "queued", "result", "task", "tokens"),
        *("_begun", "_prepared", "_parts", "_computed"),
    )

    def __init__(self, task: Task, items: Sequence[Any], future: "asyncio.Future[Job]") -> None:
        self.task, self.items, self.future = task, items, future
        self.result: Any = None
        self.error: BaseException | None = None
        self.arrived = time.perf_counter()
        self.queued = self.preparing = self.computing = 0.0
        self.tokens = 0
        self._begun = 0
        self._prepared: deque[Prepared] = deque()
        self._parts: list[Any] = []
        self._computed = 0

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to compute: all results are there, it failed, or nobody waits."""
        return self._computed == len(self.items) or self.error is not None or self.future.cancelled()

    @property
    def seconds(self) -> tuple[float, float, float]:
        """The seconds of preparing, waiting, and computing."""
        return self.preparing, self.queued, self.computing

    def next_chunk(self) -> Sequence[Any]:
        """Returns the items that are to be prepared next, and counts them as begun."""
        first = last = self._begun
        letters = 0
        while last < len(self.items) and last - first < _CHUNK_ITEMS and letters < _CHUNK_LETTERS:
            letters += self.task.size(self.items[last])
            last += 1
        self._begun = last
        return self.items[first:last]

    def add_prepared(self, prepared: Sequence[Prepared], seconds: float) -> None:
        """Takes items that have been prepared, in their order; too many tokens in all are an error of the job."""
        self._prepared.extend(prepared)
        self.tokens += sum(one.tokens for one in prepared)
        self.preparing += seconds
        if self.tokens > self.task.most_tokens:
            what = f"the inputs have more than the {self.task.most_tokens:,} tokens that are answered at once"
            self.error = Refusal(Fault.TOO_LARGE, what)

    def take(self, room: int, *, at_least_one: bool) -> list[Prepared]:
        """Takes items for a pass, as many as fit.

        Args:
            room: the most tokens.
            at_least_one: whether an item is taken that has more tokens than that.

        Raises:
            Refusal: an item can't be prepared.
        """
        taken: list[Prepared] = []
        while True:
            if not self._prepared:
                if self._begun == len(self.items):
                    return taken
                began = time.perf_counter()
                chunk = self.task.prepare(self.next_chunk())
                self.add_prepared(chunk, time.perf_counter() - began)
                if self.error is not None:
                    return []
            cost = self._prepared[0].cost
            if cost > room and (taken or not at_least_one):
                return taken
            taken.append(self._prepared.popleft())
            room -= cost

    def add_results(self, part: Any, count: int, seconds: float) -> None:
        """Takes the results of items that were taken, in their order."""
        if not self._parts:
            self.queued = time.perf_counter() - self.arrived - seconds
        self._parts.append(part)
        self._computed += count
        self.computing += seconds
        if self._computed == len(self.items):
            self.result = self.task.join(self._parts)
            self._parts = []
