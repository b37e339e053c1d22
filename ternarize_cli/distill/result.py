"""What a training run leaves: its report, and the trained checkpoint or packed model with distillation.json."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ternarize_cli import __version__
from ternarize_cli.compress.pack import pack
from ternarize_cli.distill import training_checkpoint
from ternarize_cli.distill.data import Sources
from ternarize_cli.distill.journal import Journal
from ternarize_cli.distill.options import Training
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.encoders import checkpoint, loading
from ternarize_cli.encoders.parts import parts_of
from ternarize_cli.storage import digests

__all__ = ["DistillReport", "record_of", "setback", "shortfall", "write"]


@dataclass(frozen=True)
class DistillReport:
    """The results of a training run.

    Attributes:
        steps: number of optimiser steps, over all runs.
        texts: number of texts or images seen, with repetition, over all runs.
        seconds: seconds of training, over all runs.
        cosine_before, cosine_after: mean cosine between student (eval mode, as packed) and teacher on held-out data.
        agreement_before, agreement_after: rank correlation (Spearman) of student's and teacher's similarities on
            held-out data.
        scores: whether the student is a cross-encoder; then the two pairs of numbers are Pearson's correlation and
            Spearman's rank correlation of student's and teacher's logits.
        held_out: number of held-out texts or images.
        training_texts: number of different texts or images for training.
        losses: the last smoothed loss parts.
        batch_size, accumulate, gradient_checkpointing: the values that were used, which `Training.auto_batch` may have
            changed.
        learning_rate: peak of the schedule.
        shares: what linears of some levels get of it, by their levels, such as .2 for int4; others get all of it.
        width: size of the student's hidden states, by which the learning rate was chosen; None if it was not.
        budget: the budget in words, such as `10 minutes`.
        until: the cosine on held-out data at which training was to end; None: by the budget alone.
        ended_by: "until" if a reading reached `until`, else "budget".
        left_out: number of steps that changed nothing, since their gradients were not finite.
        resumed_at: the step at which an earlier run was resumed; 0 if none was.
    """

    steps: int
    texts: int
    seconds: float
    cosine_before: float
    cosine_after: float
    agreement_before: float
    agreement_after: float
    held_out: int
    training_texts: int
    batch_size: int
    accumulate: int
    learning_rate: float
    budget: str
    ended_by: str
    until: float | None = None
    width: int | None = None
    left_out: int = 0
    resumed_at: int = 0
    scores: bool = False
    gradient_checkpointing: bool = False
    losses: dict[str, float] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)


def setback(before: float, after: float) -> str | None:
    """Returns a warning that says what to try, if training made the model worse; None if it did not.

    Args:
        before, after: `cosine_before` and `cosine_after` of a report.
    """
    if after >= before:
        return None
    return "training made the model worse; try a lower --learning-rate, such as 1e-5, or more data"


def shortfall(report: Mapping[str, Any]) -> str | None:
    """Returns a warning if the student is not as near to its teacher as `until` asks for; None if it is.

    Args:
        report: the fields of a DistillReport.
    """
    until, reached = report["until"], report["cosine_after"]
    if until is None or reached >= until:
        return None
    measure = "correlation" if report["scores"] else "cosine"
    return (
        f"--until {until:g} was not reached within {report['budget']}: the held-out {measure} is {reached:.4f}; "
        "a larger budget or more text brings it nearer"
    )


def record_of(
    teacher: Path, sources: Sources, processes: int, training: Training, report: DistillReport
) -> dict[str, Any]:
    """Makes the content of distillation.json: teacher, data, hyper-parameters and results."""
    return {
        "teacher": loading.model_name(teacher),
        "teacher_sha256": digests.content_hash(teacher),
        "data": [str(path) for path in sources.paths],
        "weights": sources.weights,
        "processes": processes,
        **{name: value for name, value in asdict(training).items() if name != "save_every"},
        "losses": dict(training.parts),
        **{name: value for name, value in asdict(report).items() if name != "losses"},
    }


def write(partial: Path, latent: Path, pair: Pair, record: dict[str, Any], *, packed: bool) -> None:
    """Writes the trained checkpoint, or its packed form, and replaces the partial folder's contents by it."""
    made = partial / "trained"
    for left in (made, partial / "packed"):  # left by a run that was killed while it wrote
        shutil.rmtree(left, ignore_errors=True)
    made.mkdir()
    checkpoint.copy_companions(latent, made)
    for part in parts_of(latent):
        training_checkpoint.write_tensors(part, made, part.module_of(pair.student))
        own = part.artifact()
        if own is not None:
            part.write_config(made, replace(own, tool_version=__version__))
    if packed:
        pack(made, partial / "packed")
        made = partial / "packed"
    (made / "distillation.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    Journal.finish(partial, made, record)
    training_checkpoint.replace_contents(partial, made)
