"""One step of training: the gradients of student and teacher's batches, and the optimiser that they move.

The teacher runs on every batch together with the student. Only the ternary layers are in training mode, so dropout is
off everywhere. Arithmetic is bfloat16 autocast on CUDA, where batches are replayed as CUDA graphs, and float32 on the
CPU; one with AMX multiplies in bfloat16, many times as fast. All gradients are in one buffer, which several processes
average after the backward pass.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ternarize_cli.arithmetic.cuda_graphs import Graphs, own_stream
from ternarize_cli.arithmetic.trained_linear import products_in
from ternarize_cli.distill.learning_rate import share_for_levels
from ternarize_cli.distill.losses import loss_parts
from ternarize_cli.distill.options import Training
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.errors import InputError, TernarizeError, counted
from ternarize_cli.layers import SimulatedEmbedding
from ternarize_cli.measuring import machine

__all__ = ["Optimisation"]

_MOST_IN_A_ROW = 3  # steps without finite gradients, of which one is left out
_SMOOTH = 0.95
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


class Optimisation:
    """The trained weights of a student, their optimiser, and the steps that change them.

    Attributes:
        parameters: the weights that train, in the order of the optimiser's groups.
        optimizer: AdamW; `share` of a group is what its weights get of the learning rate.
        shares: what linears of some levels get of the learning rate, by their levels; others get all of it.
    """

    def __init__(self, pair: Pair, training: Training, on: Any, group: Any = None) -> None:
        """Prepares the optimiser.

        Args:
            pair: student and teacher.
            training: hyper-parameters.
            on: the accelerator.
            group: the process group that connects the CPUs of all processes.
        """
        self._pair, self._training, self._on, self._by_cpu = pair, training, on, group
        self._queue = torch.zeros(training.chosen.queue, pair.width, device=on.device)
        self._queued = 0
        self._sums: dict[str, Tensor] = {}
        self._broken = torch.zeros(2, device=on.device)  # steps that were left out, in all and since the last other one
        self._scales: list[Tensor] = [layer.weight_scale for _, layer in pair.linears()]
        trained = [p for p in pair.student.parameters() if p.requires_grad]
        shares = {
            p: share_for_levels(layer.scheme.levels)
            for _, layer in pair.linears()
            for p in (layer.weight, layer.weight_scale)
        }
        tables = (m.weight for m in pair.student.modules() if isinstance(m, nn.Embedding))
        shares |= dict.fromkeys(tables, training.chosen.tables)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if shares.get(p, 1.0) == share], "share": share}
            for share in sorted({1.0, *shares.values()}, reverse=True)
        ]
        self.shares = {
            levels: share
            for levels in sorted({layer.scheme.levels for _, layer in pair.linears()})
            if (share := share_for_levels(levels)) != 1
        }
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
        self._gradients = _in_one_buffer(self.parameters)
        on_cpu = on.device.type == "cpu"
        self._products = torch.bfloat16 if on_cpu and "amx_bf16" in machine.instruction_sets() else None
        for module in pair.student.modules():
            if on_cpu and isinstance(module, SimulatedEmbedding):
                module.in_place = True
        self._run = Graphs(self._gradients_of, cost=_UNRECORDED) if on.device.type == "cuda" else self._gradients_of

    def state(self) -> dict[str, Any]:
        """Collects what the next step depends on."""
        return {
            "sums": self._sums,
            "broken": self._broken,
            "parameters": [p.detach() for p in self.parameters],
            "optimizer": self.optimizer.state_dict(),
            "queue": (self._queue, self._queued),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned; other entries are ignored.

        Raises:
            AttributeError, KeyError, RuntimeError, TypeError, ValueError: the state is of another run, or damaged.
        """
        for parameter, value in zip(self.parameters, state["parameters"], strict=True):
            parameter.data.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        self._sums = {name: value.to(self._on.device) for name, value in state["sums"].items()}
        if not bool((state["broken"] >= 0).all()):
            raise ValueError(f"{state['broken'].tolist()} are no counts of steps")
        self._broken.copy_(state["broken"])
        queue, self._queued = state["queue"]
        self._queue.copy_(queue)

    def step(self, batches: list[dict[str, Any]], rate: float) -> int:
        """Changes the student by the gradients of some batches, and returns how many inputs all processes have seen.

        Args:
            batches: the batches of this process whose gradients make one step.
            rate: the learning rate, of which embedding tables (`LossRecipe.tables`) and linears with a fine grid
                (`share_for_levels`) get a part.

        Raises:
            InputError: the GPU's memory does not hold a batch.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        seen = 0
        share = 1 - _SMOOTH ** (1 / len(batches))
        for batch in batches:
            try:
                taught = self._run(batch)
            except torch.cuda.OutOfMemoryError as e:
                smaller = self._training.halved()
                again = "" if self._training.gradient_checkpointing else "--gradient-checkpointing, "
                raise InputError(
                    f"the GPU's memory does not hold a batch of {self._training.batch}",
                    hint=f"keep the inputs of a step: {again}--batch-size {smaller.batch} "
                    f"--accumulate {smaller.accumulate}, or --auto-batch",
                ) from e
            self._push(taught.pooled)
            seen += len(taught.pooled) * self._on.num_processes
            for name, value in taught.parts.items():
                old = self._sums.get(name)
                self._sums[name] = (
                    value.clone() if old is None else torch.where(value.isfinite(), old.lerp(value, share), old)
                )
        count = len(batches) * self._on.num_processes
        if self._on.num_processes > 1:
            torch.distributed.all_reduce(self._gradients)
        norm = _norm(self._gradients) / count
        broken = (~norm.isfinite()).float()
        # A fused AdamW divides the gradients by the first, and changes nothing if the second is 1.
        self.optimizer.grad_scale = (norm / _LARGEST_GRADIENT).clamp(min=1.0) * count  # type: ignore[attr-defined]
        self.optimizer.found_inf = broken  # type: ignore[attr-defined]
        self.optimizer.step()
        self._broken.add_(broken)[1].mul_(broken)
        self._gradients.zero_()
        with torch.no_grad():
            torch._foreach_clamp_min_(self._scales, 0.0)
        return seen

    def losses(self, step: int) -> dict[str, float]:
        """Returns the smoothed parts of the loss, after the step of this number.

        Raises:
            TernarizeError: a part is not finite, or the gradients of three steps in a row were not.
        """
        losses = {name: float(value) for name, value in self._sums.items()}
        in_a_row = int(self._broken[1])
        if in_a_row < _MOST_IN_A_ROW and all(math.isfinite(value) for value in losses.values()):
            return losses
        broken = next((n for n, p in self._pair.student.named_parameters() if not p.isfinite().all()), None)
        where = f"; {broken} is the first weight that is not finite" if broken else ""
        raise TernarizeError(
            f"the gradients are not finite {counted(max(in_a_row, 1), 'step')} in a row, after step {step}{where}",
            hint="choose a lower --learning-rate; --resume goes on from the last checkpoint, if there is one",
        )

    def fits(self, batches: Iterable[dict[str, Any]]) -> bool:
        """Whether the GPU's memory holds the gradients of each of some batches, in every process."""
        fits = True
        try:
            with self._pair.training(), own_stream(self._on.device):
                for batch in batches:
                    self._gradients_of(batch)
        except torch.cuda.OutOfMemoryError:
            fits = False
        self._gradients.zero_()
        if self._on.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._on.num_processes == 1:
            return fits
        told = torch.tensor([float(fits)], device=self._on.device)
        torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MIN)
        return bool(told)

    def is_finite(self) -> bool:
        """Whether all weights are finite, and all scales fit the float16 of the packed format."""
        largest = torch.finfo(torch.float16).max
        fits = all(bool((scale <= largest).all()) for scale in self._scales)
        return fits and all(bool(p.isfinite().all()) for p in self.parameters)

    @property
    def left_out(self) -> int:
        """How many steps changed nothing, since their gradients were not finite."""
        return int(self._broken[0])

    def _gradients_of(self, batch: dict[str, Any]) -> _Taught:
        """Adds the gradients of a batch to the buffer."""
        features, weights = self._pair.put(batch), self._training.parts
        with _tensor_cores(), sdpa_kernel(_ATTENTION), products_in(self._products):
            with self._autocast(of_teacher=True):
                taught = self._pair.teacher_outputs(features)
            with self._autocast():
                learnt = self._pair.student_outputs(features)
            parts = loss_parts(weights, learnt, taught, self._queue if len(self._queue) else None)
            torch.stack([weights[name] * part for name, part in parts.items()]).sum().backward()
        return _Taught({name: part.detach() for name, part in parts.items()}, taught.pooled)

    def _push(self, pooled: Tensor) -> None:
        """Puts embeddings `[batch, dim]` into the queue, in place of the oldest."""
        if not len(self._queue):
            return
        unit = F.normalize(pooled.float(), dim=-1)
        if self._on.num_processes > 1:
            unit = self._of_all(unit)
        unit = unit[-len(self._queue) :]
        before = min(len(unit), len(self._queue) - self._queued)
        self._queue[self._queued : self._queued + before] = unit[:before]
        self._queue[: len(unit) - before] = unit[before:]
        self._queued = (self._queued + len(unit)) % len(self._queue)

    def _of_all(self, rows: Tensor) -> Tensor:
        """Gathers the rows of all processes, `[n, dim]`; the first process must have the most rows."""
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self._on.num_processes)]
        torch.distributed.all_gather(counts, torch.tensor([len(rows)]), group=self._by_cpu)
        most = int(counts[0])
        gathered = [rows.new_empty(most, rows.shape[1]) for _ in counts]
        torch.distributed.all_gather(gathered, F.pad(rows, (0, 0, 0, most - len(rows))))
        return torch.cat([part[: int(n)] for part, n in zip(gathered, counts, strict=True)])

    def _autocast(self, *, of_teacher: bool = False) -> Any:
        # Without its cache: a graph must not use the cast weights of another graph. On a CPU the student's products are
        # in bfloat16 by themselves: the gradient of PyTorch's attention in bfloat16 takes ten times as long there.
        on = self._on.device.type
        enabled = on == "cuda" or (of_teacher and self._products is not None)
        return torch.autocast(on, torch.bfloat16, enabled=enabled, cache_enabled=False)


def _norm(x: Tensor) -> Tensor:
    """Computes the length of a vector; on a CPU by a product, which takes a third of the time of PyTorch's norm."""
    return torch.dot(x, x).sqrt() if x.device.type == "cpu" else x.norm()


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
