"""Prepares the batches of a run ahead of training, in order.

Texts are token ids already, and threads put them together. Decoding and resizing an image holds Python's lock much of
the time, and torch starts a team of threads for every thread. So images for a GPU are prepared by processes with one
thread each, those of torch's DataLoader. They are forked: they share the opened images, start at once, and never use
the GPU.
"""

import ctypes
import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ternarize_cli.distill.batch_sampler import Piece, SamplingPlan, epoch
from ternarize_cli.distill.data import Sources, mixture_of
from ternarize_cli.distill.options import Training
from ternarize_cli.distill.student_teacher import TAUGHT
from ternarize_cli.distill.training_corpus import ImageCorpus, TrainingCorpus
from ternarize_cli.errors import TernarizeError

__all__ = ["Batches"]

_MOST_PROCESSES = 16
_PR_SET_PDEATHSIG = 1


class Batches:
    """The steps of a run, each of one or more batches, from the present position on; `go_to` sets the position.

    Attributes:
        epoch: number of the present epoch.
        position: number of batches of this epoch that the run has seen.
    """

    def __init__(
        self,
        corpus: TrainingCorpus,
        sources: Sources,
        training: Training,
        on: Any,
        vectors: np.ndarray | None = None,
        *,
        processes: int | None = None,
    ) -> None:
        """Starts at the beginning of the first epoch.

        Args:
            corpus: the training data.
            sources: the weights of its sources.
            training: settings of the training.
            on: the accelerator.
            vectors: the teacher's embeddings `[prompts, texts, dim]`, if they are known already.
            processes: number of processes that prepare batches; 0 uses threads; None takes as many as there are CPUs
                for images on a GPU.
        """
        self._corpus, self._training, self._on, self._vectors = corpus, training, on, vectors
        self._lengths = corpus.lengths
        changed = training.chosen.changed if vectors is None else 0.0
        self._mixture = mixture_of(corpus, sources, training.share_joined, changed, windows=vectors is None)
        self._cuda = on.device.type == "cuda"
        images_wait = self._cuda and isinstance(corpus, ImageCorpus)
        self._processes = (_processes(on) if images_wait else 0) if processes is None else processes
        self.go_to(0, 0)

    def go_to(self, number: int, position: int) -> None:
        """Moves to batch `position` of epoch `number`."""
        self.epoch, self.position = number, position
        self._plan = self._planned(number)

    def __len__(self) -> int:
        """Number of batches in an epoch."""
        return len(self._plan)

    def few(self) -> dict[str, Any]:
        """Makes a batch of up to three inputs."""
        return self._made(self._plan[0][:3])

    def heaviest(self) -> Iterator[dict[str, Any]]:
        """Makes the two batches of this epoch with the longest inputs and with the most inputs."""
        for pieces in (self._plan.longest(), self._plan.largest()):
            yield self._made(self._mine(pieces))

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """Yields the batches of each step, without end.

        Raises:
            DataError: an image can't be decoded; the message names it.
            RuntimeError: a process that prepares batches was killed; a container may have too little shared memory.
        """
        places: deque[tuple[int, int]] = deque()
        pieces = self._pieces(places)
        group: list[dict[str, Any]] = []
        for made in self._by_processes(pieces) if self._processes else self._by_threads(pieces):
            group.append(made)
            self.epoch, self.position = places.popleft()
            if len(group) == self._training.accumulate:
                yield group
                group = []

    def _pieces(self, places: deque[tuple[int, int]]) -> Iterator[list[Piece]]:
        """Yields the pieces of each batch from the present position on; appends the position after it to `places`."""
        number, first, plan = self.epoch, self.position, self._plan
        with ThreadPoolExecutor(1) as planner:
            while True:
                next_plan = planner.submit(self._planned, number + 1)
                for position in range(first, len(plan)):
                    places.append((number, position + 1))
                    yield self._mine(plan[position])
                number, first, plan = number + 1, 0, next_plan.result()

    def _by_threads(self, pieces: Iterator[list[Piece]]) -> Iterator[dict[str, Any]]:
        workers = min(8, os.cpu_count() or 1) if self._cuda else 1
        with ThreadPoolExecutor(workers) as pool:
            ahead: deque[Future[dict[str, Any]]] = deque()
            for batch in pieces:
                ahead.append(pool.submit(self._pinned, batch))
                if len(ahead) == 2 * workers:
                    yield ahead.popleft().result()

    def _by_processes(self, pieces: Iterator[list[Piece]]) -> Iterator[dict[str, Any]]:
        loader: DataLoader[dict[str, Any] | TernarizeError] = DataLoader(
            _Made(self),
            sampler=pieces,
            batch_size=None,
            num_workers=self._processes,
            multiprocessing_context="fork",
            pin_memory=self._cuda,
            worker_init_fn=_serve,
            generator=torch.Generator(),  # torch's own generator would not be restored on resuming
        )
        for made in _forked(loader):
            if isinstance(made, TernarizeError):
                raise made
            yield made

    def _planned(self, number: int) -> SamplingPlan:
        size = self._training.batch * self._on.num_processes
        return epoch(self._lengths, self._mixture, size, self._training.seed, number)

    def _mine(self, pieces: list[Piece]) -> list[Piece]:
        return pieces[self._on.process_index :: self._on.num_processes] or pieces[:1]

    def _made(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Makes the features of a batch; for CUDA, pads them to one of few lengths."""
        made = self._corpus.features(pieces, even=self._cuda)
        if self._vectors is not None:
            prompts, rows = zip(*((piece.prompt, piece.rows[0]) for piece in pieces), strict=True)
            made[TAUGHT] = torch.from_numpy(self._vectors[list(prompts), list(rows)])
        return made

    def _pinned(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """Makes the features of a batch; for CUDA, in pinned memory, which is copied without waiting."""
        made = self._made(pieces)
        if not self._cuda:
            return made
        return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in made.items()}


class _Made(Dataset[dict[str, Any] | TernarizeError]):
    """Maps the pieces of a batch to its features. Returns errors, since a DataLoader adds a traceback to messages."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, pieces: Any) -> dict[str, Any] | TernarizeError:
        try:
            return self._batches._made(pieces)
        except TernarizeError as e:
            return e


def _processes(on: Any) -> int:
    """Chooses how many processes prepare batches for one that trains; 0 where fork is missing or unsafe."""
    if sys.platform != "linux":
        return 0
    return max(1, min(_MOST_PROCESSES, len(os.sched_getaffinity(0)) // int(on.num_processes)))


def _forked(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yields the batches that a loader's processes prepare.

    The garbage collector of these processes skips objects of this process: some own threads (sessions of ONNX Runtime),
    which a fork does not have, and waiting for such a thread would never end.
    """
    gc.collect()
    gc.freeze()
    try:
        return iter(loader)
    finally:
        gc.unfreeze()


def _serve(worker: int) -> None:
    """Ignores signals of the terminal: the training process ends this process, or its death does."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(
        _PR_SET_PDEATHSIG, signal.SIGKILL
    )  # a process that outlived it would hold the output's lock
