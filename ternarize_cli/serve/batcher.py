"""Lets the items of many requests share passes of a model.

    event loop   submit ──▶ arrived ──▶ inbox ─┐                      ┌──▶ futures
    thread                                     └──▶ prepare ──▶ pass ─┘

The thread forms a pass of the items of one group (`Task.group`) that are waiting, up to a number of tokens. Every
request gets a quarter of a pass first, in turn, and what is left goes to whoever is next: a request of thousands of
texts does not hold up those of one. Requests that arrive in one turn of the event loop are handed to the thread
together, so that the first of them does not begin a pass of its own.

If a pass fails, its requests run again one by one, and only those that fail alone get the error.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, NamedTuple

from ternarize_cli.errors import InputError
from ternarize_cli.serve.answers import Fault, Refusal
from ternarize_cli.serve.jobs import Job
from ternarize_cli.serve.metrics import Metrics
from ternarize_cli.serve.tasks import Prepared, Task

__all__ = ["Batcher"]

_log = logging.getLogger(__name__)
_SHARE = 4
_LONGEST_RETRY = 60


class _Report(NamedTuple):
    """What the thread tells the event loop of a pass.

    Attributes:
        done: the jobs that need no more.
        size, tokens: the items in the pass, and their cost.
        seconds: what the pass took.
    """

    done: list[Job]
    size: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Batcher:
    """The queue of a server, and the thread that computes.

    Args:
        batch_tokens: the most tokens in a pass; a single longer item has a pass of its own.
        most: the most items that wait or are being computed.
        metrics: where it counts.

    Attributes:
        held: the items that wait or are being computed.
    """

    def __init__(self, batch_tokens: int, most: int, metrics: Metrics) -> None:
        self._room, self._most, self._metrics = batch_tokens, most, metrics
        self._inbox: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._arrived: list[Job] = []
        self.held = 0
        self._per_item = 0.0  # seconds, over the last passes
        self._groups: dict[Hashable, deque[Job]] = {}
        self._thread = Thread(target=self._work, name="encoding", daemon=True)

    def start(self) -> None:
        """Starts the thread; to be called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    async def stop(self) -> None:
        """Ends the thread when all that was submitted has been computed."""
        self._hand_over()
        self._inbox.put(None)
        await asyncio.to_thread(self._thread.join)

    def submit(self, task: Task, items: Sequence[Any]) -> Job:
        """Queues the items of a request.

        Raises:
            Refusal: too many items are waiting.
        """
        count = len(items)
        if self.held + count > self._most:
            seconds = min(max(math.ceil(self.held * self._per_item), 1), _LONGEST_RETRY)
            what = f"{self.held:,} texts are waiting, and with {count:,} more there would be more than {self._most:,}"
            raise Refusal(Fault.OVERLOADED, what, headers=[(b"retry-after", b"%d" % seconds)])
        job = Job(task, items, self._loop.create_future())
        self.held += count
        self._metrics.texts.add(count)
        self._metrics.waiting.add(count)
        if not self._arrived:
            self._loop.call_soon(self._hand_over)
        self._arrived.append(job)
        return job

    def _hand_over(self) -> None:
        if self._arrived:
            self._inbox.put(self._arrived)
            self._arrived = []

    def _deliver(self, report: _Report) -> None:
        """Tells the futures of jobs, in the event loop."""
        if report.size:
            self._per_item += (report.seconds / report.size - self._per_item) / 8
            self._metrics.batch_size.observe(report.size)
            self._metrics.batch_tokens.observe(report.tokens)
        for job in report.done:
            count = len(job.items)
            self.held -= count
            self._metrics.waiting.add(-count)
            if job.future.cancelled():
                continue
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                self._metrics.finished.add(count)
                job.future.set_result(job)

    # What follows runs in the thread.

    def _work(self) -> None:
        stopping = False
        while not (stopping and not self._groups):
            arrived: list[Job] = []
            try:
                while True:
                    jobs = self._inbox.get(block=not (arrived or self._groups or stopping))
                    stopping = stopping or jobs is None
                    arrived += jobs or ()
            except Empty:
                pass
            if arrived or self._groups:
                try:
                    report = self._turn(arrived)
                except Exception as e:
                    report = self._given_up(arrived, e)
                self._loop.call_soon_threadsafe(self._deliver, report)
                del arrived, report  # results need not be kept while the thread waits

    def _turn(self, arrived: list[Job]) -> _Report:
        """Takes jobs in, and runs a pass."""
        wanted, done = _parted(arrived)
        done += self._prepare(wanted)
        if not self._groups:
            return _Report(done)
        group = next(iter(self._groups))
        jobs = self._groups[group]
        taken = self._fill(jobs)
        began = time.perf_counter()
        if taken:
            self._run(taken)
        seconds = time.perf_counter() - began
        left, finished = _parted(jobs)
        del self._groups[group]
        if left:
            self._groups[group] = deque(left)  # behind the other groups
        items = [item for _, some in taken for item in some]
        return _Report(done + finished, len(items), sum(item.cost for item in items), seconds)

    def _given_up(self, arrived: list[Job], error: Exception) -> _Report:
        """Fails all jobs after an error that is no single job's, so that no client waits for ever."""
        jobs = {id(job): job for some in (arrived, *self._groups.values()) for job in some}
        self._groups.clear()
        told = _told(error)
        for job in jobs.values():
            job.error = job.error or told
        return _Report(list(jobs.values()))

    def _prepare(self, jobs: list[Job]) -> list[Job]:
        """Prepares the first items of new jobs, those of one task in one call; returns those that failed."""
        by_task: dict[Task, list[Job]] = {}
        for job in jobs:
            by_task.setdefault(job.task, []).append(job)
        for task, alike in by_task.items():
            chunks = [job.next_chunk() for job in alike]
            began = time.perf_counter()
            try:
                prepared = iter(task.prepare([item for chunk in chunks for item in chunk]))
            except Exception:
                for job, chunk in zip(alike, chunks, strict=True):
                    self._prepare_alone(job, chunk)
                continue
            seconds = time.perf_counter() - began
            for job, chunk in zip(alike, chunks, strict=True):
                job.add_prepared([next(prepared) for _ in chunk], seconds)
        for job in jobs:
            if job.error is None:
                self._groups.setdefault(job.task.group, deque()).append(job)
        return [job for job in jobs if job.error is not None]

    def _prepare_alone(self, job: Job, chunk: Sequence[Any]) -> None:
        began = time.perf_counter()
        try:
            job.add_prepared(job.task.prepare(chunk), time.perf_counter() - began)
        except Exception as e:
            job.error = _told(e)

    def _fill(self, jobs: deque[Job]) -> list[tuple[Job, list[Prepared]]]:
        """Takes items for a pass, and moves the jobs that gave some to the end."""
        room = self._room
        taken: dict[int, tuple[Job, list[Prepared]]] = {}
        for share in (max(room // _SHARE, 1), room):
            for job in list(jobs):
                if room <= 0:
                    break
                if job.is_done:
                    continue
                try:
                    items = job.take(min(share, room), at_least_one=not taken)
                except Exception as e:
                    job.error = _told(e)
                    taken.pop(id(job), None)
                    continue
                if items:
                    taken.setdefault(id(job), (job, []))[1].extend(items)
                    room -= sum(item.cost for item in items)
        for job, _ in taken.values():
            jobs.remove(job)
            jobs.append(job)
        return list(taken.values())

    def _run(self, taken: list[tuple[Job, list[Prepared]]]) -> None:
        """Runs a pass, and gives each job its results."""
        task = taken[0][0].task
        began = time.perf_counter()
        try:
            results = task.run([item.content for _, items in taken for item in items])
        except Exception as e:
            if len(taken) > 1:
                for one in taken:
                    self._run([one])
            else:
                taken[0][0].error = _told(e)
            return
        seconds = time.perf_counter() - began
        first = 0
        for job, items in taken:
            last = first + len(items)
            try:
                job.add_results(results[first:last], len(items), seconds)
            except Exception as e:
                job.error = _told(e)
            first = last


def _parted(jobs: Iterable[Job]) -> tuple[list[Job], list[Job]]:
    """Parts jobs into those that go on and those that are done. Each is asked once: a client may leave anytime."""
    parts: tuple[list[Job], list[Job]] = ([], [])
    for job in jobs:
        parts[job.is_done].append(job)
    return parts


def _told(error: Exception) -> Refusal:
    """Returns what the client is told of an error; one that is no fault of the client is logged."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, InputError):
        return Refusal(Fault.INVALID, str(error))
    _log.error("a pass of the model failed", exc_info=error)
    return Refusal(Fault.FAILED, "the model failed; the server's log says how")
