"""The batches that a run sees, one after the other, made ahead in other threads."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ternarize_cli.distill.corpus import Corpus
from ternarize_cli.distill.data import Sources, mixture_of
from ternarize_cli.distill.order import Piece, Plan, epoch
from ternarize_cli.distill.pair import TAUGHT
from ternarize_cli.distill.training import Training

__all__ = ["Batches"]


class Batches:
    """Steps of one or more batches each, from the present position on; `go_to` sets it.

    Attributes:
        epoch, position: where the run is; `position` counts batches.
    """

    def __init__(
        self, corpus: Corpus, sources: Sources, training: Training, on: Any, vectors: np.ndarray | None = None
    ) -> None:
        """`on` is the accelerator; `vectors` `[prompts, texts, dim]` the teacher's, if they are known already."""
        self._corpus, self._training, self._on, self._vectors = corpus, training, on, vectors
        self._lengths = corpus.lengths
        changed = training.chosen.changed if vectors is None else 0.0
        self._mixture = mixture_of(corpus, sources, training.share_joined, changed, windows=vectors is None)
        self._cuda = on.device.type == "cuda"
        self.go_to(0, 0)

    def go_to(self, number: int, position: int) -> None:
        """Takes up epoch `number` at a batch."""
        self.epoch, self.position = number, position
        self._plan = self._planned(number)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._plan)

    def few(self) -> dict[str, Any]:
        """A batch of up to three inputs."""
        return self._made(self._plan[0][:3])

    def heaviest(self) -> Iterator[dict[str, Any]]:
        """Of this epoch the batch with the longest inputs and the one with most inputs."""
        for pieces in (self._plan.longest(), self._plan.largest()):
            yield self._made(self._mine(pieces))

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """The batches of each step, without end."""
        workers = min(8, os.cpu_count() or 1) if self._cuda else 1
        with ThreadPoolExecutor(workers) as pool:
            group: list[dict[str, Any]] = []
            while True:
                next_plan = pool.submit(self._planned, self.epoch + 1)
                ahead: deque[Future[dict[str, Any]]] = deque()
                following = self.position
                while self.position < len(self._plan):
                    while following < len(self._plan) and len(ahead) < 2 * workers:
                        ahead.append(pool.submit(self._made, self._mine(self._plan[following])))
                        following += 1
                    group.append(ahead.popleft().result())
                    self.position += 1
                    if len(group) == self._training.accumulate:
                        yield group
                        group = []
                self.epoch, self.position = self.epoch + 1, 0
                self._plan = next_plan.result()

    def _planned(self, number: int) -> Plan:
        size = self._training.batch * self._on.num_processes
        return epoch(self._lengths, self._mixture, size, self._training.seed, number)

    def _mine(self, pieces: list[Piece]) -> list[Piece]:
        return pieces[self._on.process_index :: self._on.num_processes] or pieces[:1]

    def _made(self, pieces: Sequence[Piece]) -> dict[str, Any]:
        """The features of a batch; for CUDA in widths that come again, and in memory that is copied at once."""
        made = self._corpus.features(pieces, even=self._cuda)
        if self._vectors is not None:
            prompts, rows = zip(*((piece.prompt, piece.rows[0]) for piece in pieces), strict=True)
            made[TAUGHT] = torch.from_numpy(self._vectors[list(prompts), list(rows)])
        if not self._cuda:
            return made
        return {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in made.items()}
