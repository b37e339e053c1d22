"""What the paths of a server share: its models, its queue, and its counts."""

from collections.abc import Sequence
from typing import Any

from ternarize_cli.serve.batcher import Batcher
from ternarize_cli.serve.jobs import Job
from ternarize_cli.serve.metrics import Metrics
from ternarize_cli.serve.models import Models, Served
from ternarize_cli.serve.options import ServeOptions
from ternarize_cli.serve.request import Request
from ternarize_cli.serve.tasks import Task

__all__ = ["Service"]


class Service:
    """The models of a server, and what computes for them.

    Attributes:
        models: the models.
        options: the bounds.
        metrics: the counts.
        batcher: the queue.
    """

    def __init__(self, models: Sequence[Served], options: ServeOptions) -> None:
        self.models, self.options, self.metrics = Models(models), options, Metrics()
        self.batcher = Batcher(options.batch_tokens, options.max_queue, self.metrics)

    def begin(self, request: Request, *, single: bool) -> None:
        """Counts a request whose inputs are known but not checked yet.

        Args:
            request: the request.
            single: whether it has one input, and not a list.
        """
        request.counted = "single" if single else "batch"
        self.metrics.requests.add(value=request.counted)

    async def compute(self, request: Request, task: Task, items: Sequence[Any]) -> Job:
        """Computes the items of a request; returns the job with its result.

        Raises:
            Refusal: an item can't be computed, or too many are waiting.
            ClientGoneError: the client closed the connection.
        """
        job = await request.while_wanted(self.batcher.submit(task, items).future)
        metrics = self.metrics
        metrics.lengths.observe(job.tokens)
        metrics.tokenizing.observe(job.preparing)
        metrics.queueing.observe(job.queued)
        metrics.computing.observe(job.computing)
        return job
