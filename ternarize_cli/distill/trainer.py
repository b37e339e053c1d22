"""The training loop of student, teacher, data and optimiser, and the state from which it can be resumed.

The teacher runs on every batch together with the student. Only the ternary layers are in training mode, so dropout is
off everywhere. Arithmetic is bfloat16 autocast on CUDA, where batches are replayed as CUDA graphs, and float32 on the
CPU. All gradients are in one buffer, which several processes average after the backward pass.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ternarize_cli.arithmetic.cuda_graphs import Graphs, own_stream
from ternarize_cli.distill.batches import Batches
from ternarize_cli.distill.held_out import HeldOut
from ternarize_cli.distill.losses import loss_parts
from ternarize_cli.distill.options import Progress, Training
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.errors import InputError, TernarizeError, counted

__all__ = ["Trainer"]

_LOOKS, _LOOKS_UNTIL = 10, 20
_MOST_IN_A_ROW = 3  # steps without finite gradients, of which one is left out
_SMOOTH = 0.95
_SECONDS_BETWEEN_READINGS = 0.5
_LARGEST_GRADIENT = 1.0
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Without cuDNN's: its gradient is NaN for a query that sees no key, such as padding whose window is all padding."""
_UNRECORDED = (
    "; training goes on, but starts each of a step's thousands of kernels by itself: MiniLM is three times slower so"
)


class _Taught(NamedTuple):
    """The results of a batch besides gradients: the loss parts, and the teacher's embeddings `[batch, dim]`."""

    parts: dict[str, Tensor]
    pooled: Tensor


class Trainer:
    """Trains a student; with `state` and `load_state` another process can go on where this one stopped.

    Attributes:
        step: number of optimiser steps so far.
        seconds: seconds of training so far, over all runs.
        count: number of inputs seen so far, over all processes.
        losses: the last smoothed loss parts.
        training: budget and hyper-parameters, with the learning rate.
        width: size of the hidden states, by which the learning rate was chosen; None if it was not.
    """

    def __init__(
        self,
        pair: Pair,
        batches: Batches,
        held: HeldOut,
        training: Training,
        on: Any,
        *,
        group: Any = None,
        settle: bool = False,
    ) -> None:
        """Prepares a training run.

        Args:
            pair: student and teacher.
            batches: the training data.
            held: the held-out data.
            training: budget and hyper-parameters.
            on: the accelerator.
            group: the process group that connects the CPUs of all processes.
            settle: whether the student was calibrated, so that its weights start near their codes.
        """
        self.pair, self.batches, self.on = pair, batches, on
        self.training = training.for_width(pair.hidden_width)
        self.width = pair.hidden_width if training.is_rate_by_width else None
        self._looks = _LOOKS if training.until is None else _LOOKS_UNTIL
        self.step = self.count = 0
        self.seconds = 0.0
        self.losses: dict[str, float] = {}
        self.cosine: float | None = None
        self.agreement: float | None = None
        self._queue = torch.zeros(training.chosen.queue, pair.width, device=on.device)
        self._queued = 0
        self._sums: dict[str, Tensor] = {}
        self._broken = torch.zeros(2, device=on.device)  # steps that were left out, in all and since the last other one
        self._looked = self._look_took = 0.0
        self._looked_at = 0  # the step
        self._held, self._by_cpu = held, group
        if settle:
            for _, layer in pair.linears():
                layer.settle(training.chosen.settle)
        pair.recompute(training.gradient_checkpointing)
        pair.freeze_idle(pair.put(batches.few()), training.parts)
        self.total = training.steps or (
            math.ceil(training.epochs * len(batches) / training.accumulate) if training.epochs else None
        )
        self._scales: list[Tensor] = [layer.weight_scale for _, layer in pair.linears()]
        trained = [p for p in pair.student.parameters() if p.requires_grad]
        tables = {m.weight for m in pair.student.modules() if isinstance(m, nn.Embedding)}
        groups = [[p for p in trained if (p in tables) == of_tables] for of_tables in (False, True)]
        self.parameters = [p for group in groups for p in group]
        self.optimizer = torch.optim.AdamW([{"params": group} for group in groups], weight_decay=0.0, fused=True)
        self._gradients = _in_one_buffer(self.parameters)
        self._run = Graphs(self._gradients_of, cost=_UNRECORDED) if on.device.type == "cuda" else self._gradients_of

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Collects everything that the next step depends on."""
        return {
            "step": self.step,
            "count": self.count,
            "position": (self.batches.epoch, self.batches.position),
            "seconds": self.seconds,
            "losses": self.losses,
            "sums": self._sums,
            "broken": self._broken,
            "held": (self._looked, self.cosine, self.agreement),
            "looked_at": self._looked_at,
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "queue": (self._queue, self._queued),
            "random": torch.get_rng_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned.

        Raises:
            KeyError, ValueError, RuntimeError: the state is of another run.
        """
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.count, self.seconds = state["step"], state["count"], state["seconds"]
        self.batches.go_to(*state["position"])
        self.losses = dict(state["losses"])
        self._sums = {name: value.to(self.on.device) for name, value in state["sums"].items()}
        self._broken.copy_(state["broken"])
        looked, self.cosine, self.agreement = state["held"]
        self._looked = min(looked, self._done())  # a longer budget than before puts the step nearer to the start
        self._looked_at = state.get("looked_at", 0)  # checkpoints of older versions have none
        queue, self._queued = state["queue"]
        self._queue.copy_(queue)
        torch.set_rng_state(state["random"].cpu())

    # -- loop ----------------------------------------------------------------------------------------------------------

    def run(self, on_step: Callable[[Progress], None], stop: Callable[[], bool] = lambda: False) -> bool:
        """Trains until the budget is spent or `until` is reached; returns False if `stop` ended the training early.

        Raises:
            TernarizeError: the loss stopped being finite.
            InputError: the GPU's memory does not hold a batch.
        """
        if self.is_near:  # an earlier run was killed after its last reading
            return True
        before, counted, started = self.seconds, self.count, time.monotonic()
        read = before
        with self.pair.training(), own_stream(self.on.device):
            for features in self.batches:
                done = self._done()  # by the clock at the end of the last step, whose reading then says 1
                if done >= 1:
                    break
                self._set_rate(done)
                self._one_step(features)
                now = time.monotonic() - started
                self.seconds = self._agreed(before + now)
                done = self._done()
                stopped = bool(self._agreed(float(stop())))
                # by the agreed time: a process that looks at held-out data while another trains waits for ever
                due = self.seconds - read >= _seconds_between_readings(self.on.device)
                look = int(done * self._looks) > int(self._looked * self._looks) and done < 1
                decisive = look and self.training.until is not None  # at the same step whatever the speed
                if not (due or stopped or done >= 1 or decisive):
                    continue
                read = self.seconds
                self._read_losses()
                if look:
                    self._look(done, now)
                speed = (self.count - counted) / max(now, 1e-9)
                left = self.seconds * (1 / max(done, 1e-9) - 1)
                losses = dict(self.losses)
                on_step(
                    Progress(
                        self.step,
                        min(done, 1.0),
                        losses,
                        speed,
                        left,
                        self.cosine,
                        self.agreement,
                        self.pair.scores,
                        self.chosen,
                    )
                )
                if stopped or self.is_near:
                    return not stopped
        return True

    def fits(self) -> bool:
        """Whether the GPU's memory holds the heaviest batches of an epoch, in every process."""
        fits = True
        try:
            with self.pair.training(), own_stream(self.on.device):
                for batch in self.batches.heaviest():
                    self._gradients_of(batch)
        except torch.cuda.OutOfMemoryError:
            fits = False
        self._gradients.zero_()
        if self.on.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.on.num_processes == 1:
            return fits
        told = torch.tensor([float(fits)], device=self.on.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MIN)
        return bool(told)

    def is_finite(self) -> bool:
        """Whether all weights are finite, and all scales fit the float16 of the packed format."""
        largest = torch.finfo(torch.float16).max
        fits = all(bool((scale <= largest).all()) for scale in self._scales)
        return fits and all(bool(p.isfinite().all()) for p in self.parameters)

    @property
    def is_near(self) -> bool:
        """Whether the student was measured at this very step, and is as near to its teacher as `until` asks for."""
        wanted = self.training.until
        measured = self.cosine is not None and self._looked_at == self.step
        return measured and wanted is not None and self.cosine >= wanted  # type: ignore[operator]

    @property
    def chosen(self) -> str:
        """What was chosen for this student, in words."""
        by = "" if self.width is None else f" for width {self.width}"
        rate = np.format_float_scientific(self.training.peak, trim="-", exp_digits=1)
        return f"learning rate {rate}{by}, batches of {self.training.batch}"

    def _look(self, done: float, now: float) -> None:
        """Measures the student on held-out data, unless that would take more than a twentieth of the time.

        Where the measurement decides when training ends and the budget is no time, it is always done, so that another
        run ends at the same step.
        """
        self._looked = done
        by_time = self.total is None or self.training.until is None
        if by_time and self._agreed(float(now < 20 * self._look_took)):  # all processes measure together
            return
        cosine, self.agreement = self.held_out()
        self.cosine, self._looked_at = self._agreed(cosine), self.step

    def held_out(self) -> tuple[float, float]:
        """Measures mean cosine to the teacher and agreement of similarities on held-out data (`HeldOut.look`)."""
        started = time.monotonic()
        found = self._held.look()
        self._look_took = time.monotonic() - started
        return found

    def _done(self) -> float:
        if self.total is not None:
            return self.step / self.total
        return self.seconds / (60 * (self.training.minutes or math.inf))

    def _agreed(self, value: float) -> float:
        """Sends the main process's value to all processes, and returns it."""
        if self.on.num_processes == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64)
        torch.distributed.broadcast(told, 0, group=self._by_cpu)
        return float(told)

    def _set_rate(self, done: float) -> None:
        rate = self.training.rate(done, self.step)
        others, tables = self.optimizer.param_groups
        others["lr"], tables["lr"] = rate, rate * self.training.chosen.tables

    def _one_step(self, batches: list[dict[str, Any]]) -> None:
        share = 1 - _SMOOTH ** (1 / len(batches))
        for batch in batches:
            try:
                taught = self._run(batch)
            except torch.cuda.OutOfMemoryError as e:
                smaller = self.training.halved()
                again = "" if self.training.gradient_checkpointing else "--gradient-checkpointing, "
                raise InputError(
                    f"the GPU's memory does not hold a batch of {self.training.batch}",
                    hint=f"keep the inputs of a step: {again}--batch-size {smaller.batch} "
                    f"--accumulate {smaller.accumulate}, or --auto-batch",
                ) from e
            self._push(taught.pooled)
            self.count += len(taught.pooled) * self.on.num_processes
            for name, value in taught.parts.items():
                old = self._sums.get(name)
                self._sums[name] = (
                    value.clone() if old is None else torch.where(value.isfinite(), old.lerp(value, share), old)
                )
        count = len(batches) * self.on.num_processes
        if self.on.num_processes > 1:
            torch.distributed.all_reduce(self._gradients)
        norm = self._gradients.norm() / count
        self._gradients.mul_((_LARGEST_GRADIENT / (norm + 1e-6)).clamp(max=1.0) / count)
        broken = (~norm.isfinite()).float()
        self.optimizer.found_inf = broken  # type: ignore[attr-defined]  # with 1, a fused AdamW changes nothing
        self.optimizer.step()
        self._broken.add_(broken)[1].mul_(broken)
        self._gradients.zero_()
        self.step += 1
        with torch.no_grad():
            torch._foreach_clamp_min_(self._scales, 0.0)

    def _gradients_of(self, batch: dict[str, Any]) -> _Taught:
        """Adds the gradients of a batch to the buffer."""
        features, weights = self.pair.put(batch), self.training.parts
        with _tensor_cores(), sdpa_kernel(_ATTENTION):
            with self._autocast():
                taught = self.pair.teacher_outputs(features)
                learnt = self.pair.student_outputs(features)
            parts = loss_parts(weights, learnt, taught, self._queue if len(self._queue) else None)
            torch.stack([weights[name] * part for name, part in parts.items()]).sum().backward()
        return _Taught({name: part.detach() for name, part in parts.items()}, taught.pooled)

    @property
    def left_out(self) -> int:
        """How many steps changed nothing, since their gradients were not finite."""
        return int(self._broken[0])

    def _read_losses(self) -> None:
        self.losses = {name: float(value) for name, value in self._sums.items()}
        in_a_row = int(self._broken[1])
        if in_a_row < _MOST_IN_A_ROW and all(math.isfinite(value) for value in self.losses.values()):
            return
        broken = next((n for n, p in self.pair.student.named_parameters() if not p.isfinite().all()), None)
        where = f"; {broken} is the first weight that is not finite" if broken else ""
        raise TernarizeError(
            f"the gradients are not finite {counted(max(in_a_row, 1), 'step')} in a row, after step {self.step}{where}",
            hint="choose a lower --learning-rate; --resume goes on from the last checkpoint, if there is one",
        )

    def _push(self, pooled: Tensor) -> None:
        """Puts embeddings `[batch, dim]` into the queue, in place of the oldest."""
        if not len(self._queue):
            return
        unit = F.normalize(pooled.float(), dim=-1)
        if self.on.num_processes > 1:
            unit = self._of_all(unit)
        unit = unit[-len(self._queue) :]
        before = min(len(unit), len(self._queue) - self._queued)
        self._queue[self._queued : self._queued + before] = unit[:before]
        self._queue[: len(unit) - before] = unit[before:]
        self._queued = (self._queued + len(unit)) % len(self._queue)

    def _of_all(self, rows: Tensor) -> Tensor:
        """Gathers the rows of all processes, `[n, dim]`; the first process must have the most rows."""
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.on.num_processes)]
        torch.distributed.all_gather(counts, torch.tensor([len(rows)]), group=self._by_cpu)
        most = int(counts[0])
        gathered = [rows.new_empty(most, rows.shape[1]) for _ in counts]
        torch.distributed.all_gather(gathered, F.pad(rows, (0, 0, 0, most - len(rows))))
        return torch.cat([part[: int(n)] for part, n in zip(gathered, counts, strict=True)])

    def _autocast(self) -> Any:
        # autocast without its cache: a graph must not use the cast weights of another graph
        on = self.on.device.type
        return torch.autocast(on, torch.bfloat16, enabled=on == "cuda", cache_enabled=False)


def _seconds_between_readings(device: torch.device) -> float:
    """Reading a loss waits for the GPU, and costs nothing on a CPU."""
    return 0.0 if device.type == "cpu" else _SECONDS_BETWEEN_READINGS


@contextmanager
def _tensor_cores() -> Iterator[None]:
    """Turns on TF32 for products of float32 matrices, which occur only in losses."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _in_one_buffer(parameters: Sequence[nn.Parameter]) -> Tensor:
    """Allocates one buffer of zeros for all gradients; each parameter's `grad` becomes a view of its part."""
    buffer = torch.zeros(sum(p.numel() for p in parameters), device=parameters[0].device)
    start = 0
    for parameter in parameters:
        parameter.grad = buffer[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return buffer
