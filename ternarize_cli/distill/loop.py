"""The training loop.

The teacher runs online on the same batch; only the ternary layers are in training mode, so dropout is off everywhere.
Embedding tables stay frozen: int8 costs them nothing, and their gradients would double the cost of a step. Devices and
precision are accelerate's business (bfloat16 autocast on CUDA, float32 on the CPU).
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternarize_cli import __version__, checkpoint, files, vision, weights
from ternarize_cli.distill.data import batches, split
from ternarize_cli.distill.losses import RECIPES, Outputs
from ternarize_cli.errors import CheckpointError, InputError, TernarizeError
from ternarize_cli.layers import SimulatedEmbedding, TernaryLinear
from ternarize_cli.models import load_encoder, model_name
from ternarize_cli.parts import Part, parts_of
from ternarize_cli.tokenization import teacher_ids

__all__ = ["DistillReport", "Progress", "Training", "distill"]

_WARM_UP = 0.05


@dataclass(frozen=True)
class Training:
    """The choices of `ternarize distill`.

    Attributes:
        minutes: budget of training time; or `steps`: budget of optimiser steps (exactly one is given). Only `steps`
            gives the same bytes again.
        recipe: a name in `losses.RECIPES`.
        batch_size: texts per step.
        learning_rate: AdamW's peak; linear warm-up over 5% of the budget, then cosine to 0.
        max_length: tokens per text; longer ones are cut.
        seed: order of the texts.
    """

    minutes: float | None = None
    steps: int | None = None
    recipe: str = "full"
    batch_size: int = 64
    learning_rate: float = 3e-4
    max_length: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise InputError("the budget is either minutes or steps", hint="--minutes 10, or --steps 1000")
        if self.recipe not in RECIPES:
            raise InputError(f"there is no recipe {self.recipe!r}", hint=f"one of {', '.join(sorted(RECIPES))}")
        for name in ("minutes", "steps", "batch_size", "learning_rate", "max_length"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} is {value}; it must be positive")


@dataclass(frozen=True)
class Progress:
    """Where training is: `done` is the fraction of the budget, `losses` the parts, smoothed over recent steps."""

    step: int
    done: float
    losses: dict[str, float]
    texts_per_second: float
    seconds_left: float

    def line(self) -> str:
        """One line for a meter."""
        losses = " ".join(f"{name} {value:.3f}" for name, value in self.losses.items())
        minutes, seconds = divmod(round(self.seconds_left), 60)
        return f"step {self.step}  {losses}  {self.texts_per_second:.0f} texts/s  {minutes}:{seconds:02} left"


@dataclass(frozen=True)
class DistillReport:
    """What training achieved.

    Attributes:
        steps, texts, seconds: how long it took; `texts` counts with repetition.
        cosine_before, cosine_after: mean cosine between student (eval mode, as packed) and teacher, held-out texts.
        losses: the last smoothed loss parts.
        held_out: number of held-out texts.
    """

    steps: int
    texts: int
    seconds: float
    cosine_before: float
    cosine_after: float
    held_out: int
    losses: dict[str, float] = field(default_factory=dict)


def distill(
    student: Path,
    teacher: Path,
    texts: Sequence[str],
    output: Path,
    training: Training,
    *,
    force: bool = False,
    device: str | None = None,
    threads: int | None = None,
    on_step: Callable[[Progress], None] = lambda _: None,
) -> DistillReport:
    """Trains the ternary checkpoint `student` on `texts` and writes the result to `output`, atomically.

    Args:
        student: a ternary checkpoint.
        teacher: the full-precision model it came from.
        texts: training texts; up to 256 are held out.
        output: the folder to write; tensors keep the student's names.
        training: budget and hyper-parameters.
        device, threads: as `models.load_encoder`.
        on_step: called after every step.

    Raises:
        CheckpointError: the student is not a ternary checkpoint, reads no text, or teacher and student don't match.
        DataError: too few texts.
        TernarizeError: the loss stopped being finite.
        OutputError, OutputExistsError: the output can't be written.
    """
    inputs = [student, teacher]
    files.check_output(output, force=force, inputs=inputs)
    for folder in inputs:
        vision.require(folder, "text", folder)
    artifact = checkpoint.artifact_of(student)
    if artifact is None:
        raise CheckpointError(f"{student} is not ternary yet", hint=f"ternarize convert {student}")
    if artifact.stage != "latent":
        raise CheckpointError(
            f"{student} is packed and can't train", hint="distill the ternary checkpoint it came from"
        )
    if checkpoint.stage(teacher) is not None:
        raise CheckpointError(f"the teacher {teacher} is ternary itself", hint="--teacher is the full-precision model")
    seen, held = split(texts, training.seed)
    torch.manual_seed(training.seed)
    with files.atomic_folder(output, force=force, inputs=inputs) as partial:
        learner = _Learner(student, teacher, training, device, threads)
        before = learner.cosine(held)
        report = learner.train(seen, on_step)
        after = learner.cosine(held)
        checkpoint.copy_companions(student, partial)
        for part in parts_of(student):
            _save(part, partial, learner.student[part.index] if part.subfolder else learner.transformer)
        new = replace(artifact, seed=training.seed, tool_version=__version__)
        checkpoint.write_config(student, partial, new)
        record = {
            "teacher": model_name(teacher),
            "teacher_sha256": files.content_hash(teacher),
            **asdict(training),
            "steps_done": report.steps,
            "training_texts": len(seen),
        }
        (partial / "distillation.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return replace(report, cosine_before=before, cosine_after=after, held_out=len(held))


class _Learner:
    """Student, teacher and optimiser on their device."""

    def __init__(
        self, student: Path, teacher: Path, training: Training, device: str | None, threads: int | None
    ) -> None:
        from accelerate import Accelerator

        self.training = training
        self.student = load_encoder(student, device=device, threads=threads)
        self.teacher = load_encoder(teacher, device=device)
        on_gpu = self.student.device.type == "cuda"
        self.accelerator = Accelerator(cpu=not on_gpu, mixed_precision="bf16" if on_gpu else "no")
        self.transformer = self.student[0].auto_model
        width, other = (e.get_embedding_dimension() for e in (self.student, self.teacher))
        layers, others = (e[0].auto_model.config.num_hidden_layers for e in (self.student, self.teacher))
        if (width, layers) != (other, others):
            raise CheckpointError(
                f"the student has {layers} layers of width {width}, the teacher {others} of {other}",
                hint="--teacher is the full-precision model that the student was converted from",
            )
        self.ids = teacher_ids(self.student.tokenizer, self.teacher.tokenizer).to(self.student.device)
        for encoder in (self.student, self.teacher):
            encoder.max_seq_length = min(training.max_length, encoder.max_seq_length or training.max_length)
            encoder[0].auto_model.config.output_hidden_states = True
        self.teacher.requires_grad_(False)
        self.student.requires_grad_(True)
        tables = [m for m in self.student.modules() if isinstance(m, nn.Embedding)]
        for table in tables:
            table.requires_grad_(False)
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, weight_decay=0.0, fused=True)
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)
        self.parameters = parameters

    def train(self, texts: Sequence[str], on_step: Callable[[Progress], None]) -> DistillReport:
        """Runs the budget; the numbers of the report that need held-out texts are 0."""
        recipe, budget = RECIPES[self.training.recipe], self.training
        for module in self.student.modules():
            if isinstance(module, TernaryLinear | SimulatedEmbedding):
                module.train()
        scales = [m.weight_scale for m in self.student.modules() if isinstance(m, TernaryLinear)]
        started, step, count = time.monotonic(), 0, 0
        smooth: dict[str, float] = {}
        for batch in batches(texts, budget.batch_size, budget.seed):
            elapsed = time.monotonic() - started
            done = step / budget.steps if budget.steps else elapsed / (60 * (budget.minutes or math.inf))
            if done >= 1:
                break
            self._set_rate(done, step)
            parts = recipe(*self._outputs(batch))
            loss = torch.stack(list(parts.values())).sum()
            if not torch.isfinite(loss):
                raise TernarizeError(
                    f"the loss is {float(loss.detach())} at step {step}", hint="a lower --learning-rate"
                )
            self.accelerator.backward(loss)
            self.accelerator.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            with torch.no_grad():
                for scale in scales:
                    scale.clamp_(min=0)
            step, count = step + 1, count + len(batch)
            for name, part in parts.items():
                value = float(part.detach())
                smooth[name] = 0.95 * smooth.get(name, value) + 0.05 * value
            elapsed = time.monotonic() - started
            done = step / budget.steps if budget.steps else elapsed / (60 * (budget.minutes or math.inf))
            on_step(Progress(step, min(done, 1.0), dict(smooth), count / elapsed, elapsed * (1 / done - 1)))
        self.student.eval()
        return DistillReport(step, count, time.monotonic() - started, 0.0, 0.0, 0, smooth)

    @torch.inference_mode()
    def cosine(self, texts: Sequence[str]) -> float:
        """Mean cosine between student and teacher embeddings."""
        vectors = [
            e.encode(list(texts), batch_size=self.training.batch_size, convert_to_tensor=True, show_progress_bar=False)
            for e in (self.student, self.teacher)
        ]
        return float(F.cosine_similarity(vectors[0].float(), vectors[1].float()).mean())

    def _set_rate(self, done: float, step: int) -> None:
        rate = self.training.learning_rate
        rate *= min(1.0, max(done, (step + 1) / 1000) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _outputs(self, batch: list[str]) -> tuple[Outputs, Outputs]:
        made = self.student.preprocess(batch)
        features = {k: v.to(self.student.device) if isinstance(v, Tensor) else v for k, v in made.items()}
        with torch.no_grad(), self.accelerator.autocast():
            teacher = _run(self.teacher, {**features, "input_ids": self.ids[features["input_ids"]]})
        with self.accelerator.autocast():
            return _run(self.student, features), teacher


def _run(encoder: Any, features: dict[str, Any]) -> Outputs:
    out = encoder(dict(features))
    return Outputs(tuple(out["all_layer_embeddings"]), out["sentence_embedding"], features["attention_mask"])


def _save(part: Part, output: Path, trained: nn.Module) -> None:
    """Writes the trained tensors under the names and into the shards of the checkpoint they came from."""
    state = trained.state_dict()
    writer = weights.ShardWriter(output / part.subfolder)
    with weights.open_shards(part.path) as shards:
        for shard in shards:
            keys = shard.keys()
            names = checkpoint.names_in_model(trained, keys)
            with writer.shard(shard.name) as out:
                for key in keys:
                    out.add(key, state[names[key]] if key in names else shard.get(key))
    writer.finish()
