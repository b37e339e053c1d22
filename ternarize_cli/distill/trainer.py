"""The training loop: its budget, its readings of losses and held-out data, and the state from which it is resumed."""

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ternarize_cli.arithmetic.cuda_graphs import own_stream
from ternarize_cli.distill.batches import Batches
from ternarize_cli.distill.held_out import HeldOut
from ternarize_cli.distill.optimisation import Optimisation
from ternarize_cli.distill.options import Progress, Training
from ternarize_cli.distill.student_teacher import Pair

__all__ = ["Trainer"]

_LOOKS, _LOOKS_UNTIL = 10, 20
_SECONDS_BETWEEN_READINGS = 0.5


class Trainer:
    """Trains a student; with `state` and `load_state` another process can go on where this one stopped.

    Attributes:
        step: number of optimiser steps so far.
        seconds: seconds of training so far, over all runs.
        count: number of inputs seen so far, over all processes.
        losses: the last smoothed loss parts.
        training: budget and hyper-parameters, with the learning rate.
        optimisation: the trained weights and their optimiser.
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
        self.optimisation = Optimisation(pair, self.training, on, group)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Collects everything that the next step depends on."""
        return {
            "step": self.step,
            "count": self.count,
            "position": (self.batches.epoch, self.batches.position),
            "seconds": self.seconds,
            "losses": self.losses,
            "held": (self._looked, self.cosine, self.agreement),
            "looked_at": self._looked_at,
            "random": torch.get_rng_state(),
            **self.optimisation.state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError, ValueError: the state is of another run, or damaged.
        """
        self.optimisation.load_state(state)
        epoch, position = state["position"]
        for count in (state["step"], state["count"], epoch, position):
            if not isinstance(count, int) or count < 0:
                raise ValueError(f"{count!r} is no count of steps, inputs, epochs or batches")
        if not 0 <= state["seconds"] < math.inf:
            raise ValueError(f"{state['seconds']!r} is no number of seconds")
        self.step, self.count, self.seconds = state["step"], state["count"], state["seconds"]
        self.batches.go_to(epoch, position)
        self.losses = {name: float(value) for name, value in state["losses"].items()}
        looked, *readings = state["held"]
        self.cosine, self.agreement = (None if value is None else float(value) for value in readings)
        self._looked = min(looked, self._done())  # a longer budget than before puts the step nearer to the start
        self._looked_at = state.get("looked_at", 0)  # checkpoints of older versions have none
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
                self.count += self.optimisation.step(features, self.training.rate(done, self.step))
                self.step += 1
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
                self.losses = self.optimisation.losses(self.step)
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
        peak = self.training.peak
        less = "".join(f", {levels} linears {_scientific(s * peak)}" for levels, s in self.optimisation.shares.items())
        return f"learning rate {_scientific(peak)}{by}{less}, batches of {self.training.batch}"

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

    def start(self, before: tuple[float, float]) -> None:
        """Takes the reading of held-out data before the first step: the student may be near enough already."""
        self.cosine, self.agreement = self._agreed(before[0]), before[1]

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


def _seconds_between_readings(device: torch.device) -> float:
    """Reading a loss waits for the GPU, and costs nothing on a CPU."""
    return 0.0 if device.type == "cpu" else _SECONDS_BETWEEN_READINGS


def _scientific(rate: float) -> str:
    return np.format_float_scientific(rate, precision=3, trim="-", exp_digits=1)
