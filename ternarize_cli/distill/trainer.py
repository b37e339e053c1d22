"""The training loop: student, teacher, data and optimiser, and the state from which it can be taken up again.

The teacher runs online on the same batch; only the ternary layers are in training mode, so dropout is off everywhere.
Embedding tables stay frozen: int8 costs them nothing, and their gradients would double the cost of a step. Devices and
processes are accelerate's business; arithmetic is bfloat16 autocast on CUDA, float32 on the CPU.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.distill.data import Corpus, Sources, mixture_of
from ternarize_cli.distill.losses import loss_parts
from ternarize_cli.distill.order import Piece, epoch
from ternarize_cli.distill.pair import Pair
from ternarize_cli.distill.training import Progress, Training
from ternarize_cli.errors import InputError, TernarizeError

__all__ = ["Trainer"]

_LOOKS = 10
_SMOOTH = 0.95
_SECONDS_BETWEEN_READINGS = 0.5


class Trainer:
    """Trains a student; `state` and `load_state` let another process go on where this one stopped.

    Attributes:
        step: optimiser steps so far.
        seconds: of training so far, over all runs.
        count: inputs seen, over all processes.
        losses: the last smoothed loss parts.
    """

    def __init__(
        self,
        pair: Pair,
        corpus: Corpus,
        held: Corpus,
        sources: Sources,
        training: Training,
        on: Any,
        *,
        settle: bool = False,
    ) -> None:
        """`on` is the accelerator; `settle` whether the student was calibrated."""
        self.pair, self.corpus, self.held, self.training, self.on = pair, corpus, held, training, on
        self.lengths = corpus.lengths
        self.mixture = mixture_of(corpus, sources, training.share_joined)
        self.step = self.count = self.epoch = self.batch = 0
        self.seconds = 0.0
        self.losses: dict[str, float] = {}
        self.cosine: float | None = None
        self.agreement: float | None = None
        self._queue = torch.zeros(0, pair.student.get_embedding_dimension() or 0, device=on.device)
        self._sums: dict[str, Tensor] = {}
        self._looked = self._look_took = 0.0
        if settle:
            for _, layer in pair.linears():
                layer.settle(training.chosen.settle)
        self._plan = self._pieces(0)
        pair.freeze_idle(self._put(corpus.features(self._plan[0][:3])), training.parts)
        self.total = training.steps or (
            math.ceil(training.epochs * len(self._plan) / training.accumulate) if training.epochs else None
        )
        self._scales: list[Tensor] = [layer.weight_scale for _, layer in pair.linears()]
        self.parameters = [p for p in pair.student.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=training.learning_rate, weight_decay=0.0, fused=True)
        if on.num_processes > 1:
            pair.run = on.prepare_model(pair.student)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "step": self.step,
            "count": self.count,
            "epoch": self.epoch,
            "batch": self.batch,
            "seconds": self.seconds,
            "losses": self.losses,
            "sums": self._sums,
            "held": (self._looked, self.cosine, self.agreement),
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "queue": self._queue,
            "random": torch.get_rng_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Takes up what `state` gave.

        Raises:
            KeyError, ValueError, RuntimeError: it is not this run's.
        """
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.count, self.seconds = state["step"], state["count"], state["seconds"]
        self.epoch, self.batch = state["epoch"], state["batch"]
        self.losses = dict(state["losses"])
        self._sums = {name: value.to(self.on.device) for name, value in state["sums"].items()}
        self._looked, self.cosine, self.agreement = state["held"]
        self._queue = state["queue"].to(self.on.device)
        torch.set_rng_state(state["random"].cpu())
        self._plan = self._pieces(self.epoch)

    # -- loop ----------------------------------------------------------------------------------------------------------

    def run(self, on_step: Callable[[Progress], None], stop: Callable[[], bool] = lambda: False) -> bool:
        """Spends the budget; False if `stop` ended it early.

        Raises:
            TernarizeError: the loss stopped being finite.
            InputError: the GPU's memory does not hold a batch.
        """
        before, counted, started = self.seconds, self.count, time.monotonic()
        read = 0.0
        with self.pair.training():
            for features in self._features():
                self.seconds = self._agreed(before + time.monotonic() - started)
                done = self._done()
                if done >= 1:
                    break
                self._set_rate(done)
                self._one_step(features)
                now = time.monotonic() - started
                self.seconds = self._agreed(before + now)
                done = self._done()
                stopped = bool(self._agreed(float(stop())))
                due = self.on.device.type == "cpu" or now - read >= _SECONDS_BETWEEN_READINGS
                if not (due or stopped or done >= 1):
                    continue
                read = now
                self._read_losses()
                if int(done * _LOOKS) > int(self._looked * _LOOKS) and done < 1:
                    self._look(done, now)
                speed = (self.count - counted) / max(now, 1e-9)
                left = self.seconds * (1 / max(done, 1e-9) - 1)
                losses = dict(self.losses)
                on_step(Progress(self.step, min(done, 1.0), losses, speed, left, self.cosine, self.agreement))
                if stopped:
                    return False
        return True

    def is_finite(self) -> bool:
        """Whether all weights are numbers, and all scales fit the float16 of the packed format."""
        largest = torch.finfo(torch.float16).max
        fits = all(bool((scale <= largest).all()) for scale in self._scales)
        return fits and all(bool(p.isfinite().all()) for p in self.parameters)

    def _look(self, done: float, now: float) -> None:
        """Looks at held-out data, unless that would take more than a twentieth of the time."""
        self._looked = done
        if now < 20 * self._look_took:
            return
        self.cosine, self.agreement = self.held_out()

    def _done(self) -> float:
        if self.total is not None:
            return self.step / self.total
        return self.seconds / (60 * (self.training.minutes or math.inf))

    def _agreed(self, value: float) -> float:
        """The main process's value, in all of them."""
        if self.on.num_processes == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.on.device)
        torch.distributed.broadcast(told, 0)
        return float(told)

    def _set_rate(self, done: float) -> None:
        rate = self.training.rate(done, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _one_step(self, batches: list[dict[str, Any]]) -> None:
        weights = self.training.parts
        for i, batch in enumerate(batches):
            try:
                with self._synchronised(i == len(batches) - 1):
                    features = self._put(batch)
                    with self._autocast():
                        taught = self.pair.teacher_outputs(features)
                        learnt = self.pair.student_outputs(features)
                    parts = loss_parts(weights, learnt, taught, self._queue if len(self._queue) else None)
                    loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
                    (loss / len(batches)).backward()
            except torch.cuda.OutOfMemoryError as e:
                size = max(1, self.training.batch_size // 2)
                times = self.training.accumulate * 2
                raise InputError(
                    f"the GPU's memory does not hold a batch of {self.training.batch_size}",
                    hint=f"as many inputs a step: --batch-size {size} --accumulate {times}",
                ) from e
            self._push(taught.pooled)
            self.count += len(taught.pooled) * self.on.num_processes
            for name, part in parts.items():
                value = part.detach()
                old = self._sums.get(name)
                self._sums[name] = value if old is None else old.lerp(value, 1 - _SMOOTH)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        with torch.no_grad():
            torch._foreach_clamp_min_(self._scales, 0.0)

    def _read_losses(self) -> None:
        self.losses = {name: float(value) for name, value in self._sums.items()}
        bad = [name for name, value in self.losses.items() if not math.isfinite(value)]
        if bad:
            broken = next((n for n, p in self.pair.student.named_parameters() if not p.isfinite().all()), None)
            where = f"; {broken} is the first weight that is not finite" if broken else ""
            raise TernarizeError(
                f"the loss ({bad[0]}) is {self.losses[bad[0]]} after step {self.step}{where}",
                hint="a lower --learning-rate; with --resume from the last checkpoint, if there is one",
            )

    def _push(self, pooled: Tensor) -> None:
        size = self.training.chosen.queue
        if not size:
            return
        unit = F.normalize(pooled.float(), dim=-1)
        if self.on.num_processes > 1:  # whose batches may differ by a row
            unit = self.on.gather(self.on.pad_across_processes(unit))
            unit = unit[unit.any(dim=1)]
        self._queue = torch.cat([unit, self._queue])[:size]

    def _autocast(self) -> Any:
        return torch.autocast(self.on.device.type, torch.bfloat16, enabled=self.on.device.type == "cuda")

    def _synchronised(self, last: bool) -> Any:
        if last or self.on.num_processes == 1:
            return nullcontext()
        return self.on.no_sync(self.pair.run)

    # -- data ----------------------------------------------------------------------------------------------------------

    def _pieces(self, number: int) -> list[list[Piece]]:
        size = self.training.batch_size * self.on.num_processes
        return epoch(self.lengths, self.mixture, size, self.training.seed, number)

    def _features(self) -> Iterator[list[dict[str, Any]]]:
        """The batches of each step, from the present position on, made ahead in other threads."""
        workers = min(8, os.cpu_count() or 1) if self.on.device.type == "cuda" else 1
        with ThreadPoolExecutor(workers) as pool:
            group: list[dict[str, Any]] = []
            while True:
                ahead: deque[Future[dict[str, Any]]] = deque()
                following = self.batch
                while self.batch < len(self._plan):
                    while following < len(self._plan) and len(ahead) < 2 * workers:
                        pieces = self._plan[following]
                        mine = pieces[self.on.process_index :: self.on.num_processes] or pieces[:1]
                        ahead.append(pool.submit(self.corpus.features, mine))
                        following += 1
                    group.append(ahead.popleft().result())
                    self.batch += 1
                    if len(group) == self.training.accumulate:
                        yield group
                        group = []
                self.epoch, self.batch = self.epoch + 1, 0
                self._plan = self._pieces(self.epoch)

    def _put(self, features: dict[str, Any]) -> dict[str, Any]:
        moved = {k: v.to(self.on.device, non_blocking=True) for k, v in features.items() if isinstance(v, Tensor)}
        return {**features, **moved}

    # -- held-out data -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def held_out(self) -> tuple[float, float]:
        """Mean cosine to the teacher, and agreement of similarities (`Progress`), as the packed student will be."""
        started = time.monotonic()
        layers = [layer for _, layer in self.pair.linears()]
        modes = [layer.training for layer in layers]
        self.pair.student.eval()
        vectors: list[list[Tensor]] = [[], []]
        lengths = self.held.lengths.clip(max=self.held.limit)
        rows = self.held.lengths.argsort(kind="stable").tolist()
        for start in range(0, len(rows), 32):
            pieces = [Piece((i,), 0, int(lengths[i]), 0) for i in rows[start : start + 32]]
            features = self._put(self.held.features(pieces))
            run, self.pair.run = self.pair.run, self.pair.student
            vectors[0].append(self.pair.student_outputs(features).pooled.float())
            self.pair.run = run
            vectors[1].append(self.pair.teacher_outputs(features).pooled.float())
        for layer, mode in zip(layers, modes, strict=True):
            layer.train(mode)
        student, teacher = (F.normalize(torch.cat(v), dim=-1) for v in vectors)
        self._look_took = time.monotonic() - started
        return float((student * teacher).sum(dim=-1).mean()), _agreement(student, teacher)


def _agreement(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation between the similarities of all pairs, `[n, dim]` twice."""
    rows, columns = torch.triu_indices(len(a), len(a), offset=1, device=a.device)
    ranks = [x.argsort().argsort().double() for x in ((a @ a.T)[rows, columns], (b @ b.T)[rows, columns])]
    if len(ranks[0]) < 2:
        return 1.0
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
