"""Runs tasks on a model, and sets a student against its teacher.

Retention is student score / teacher score, per task; the overall figure is the mean of these ratios, as the paper
reports its 96.4% (arXiv 2411.15438). Where the teacher scores zero or less the ratio says nothing: it is None then, and
so is the mean, rather than a mean over the tasks that happen to have one. Of image tasks the mean cosine between the
two models' vectors of the same query image is kept, too.

No results are cached. A cache would have to be keyed by model, file, seed, library versions and hardware to be right,
and the runs here take minutes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mteb
import numpy as np

from ternarize_cli import vision
from ternarize_cli.errors import CheckpointError
from ternarize_cli.evaluation.encoder import LocalEncoder, quiet_mteb
from ternarize_cli.evaluation.neighbours import LabelledImages
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.evaluation.tasks import make_task, metric_name
from ternarize_cli.files import content_hash
from ternarize_cli.models import load_encoder, model_name, resolve
from ternarize_cli.progress import Track, silent
from ternarize_cli.weights import bytes_on_disk

__all__ = ["Comparison", "Evaluation", "Retention", "Score", "compare", "evaluate", "score"]


@dataclass(frozen=True)
class Score:
    """A model's main score on a task: `metric` is MTEB's name for it, `size` counts pairs, queries or texts.

    `vectors` are those of the query images of an image task, [size, dim]; None for texts.
    """

    task: str
    metric: str
    size: int
    value: float
    vectors: np.ndarray | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Evaluation:
    """A model's scores, and which model it was: the hash and the bytes are those of its files."""

    name: str
    content_hash: str
    weights_bytes: int
    scores: tuple[Score, ...]


@dataclass(frozen=True)
class Retention:
    """A task's two scores. `retention` = student / teacher; None without a teacher or if its score is not positive.

    `cosine` is the mean cosine of the two models' vectors of the query images; None without a teacher, for texts, and
    between models whose vectors differ in length.
    """

    task: str
    metric: str
    size: int
    teacher: float | None
    student: float
    retention: float | None
    cosine: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Student and teacher on the same tasks, in the same order; `teacher` is None if there was none."""

    student: Evaluation
    teacher: Evaluation | None
    tasks: tuple[Retention, ...]

    @property
    def mean_retention(self) -> float | None:
        """The mean of the ratios; None if any is undefined."""
        ratios = [task.retention for task in self.tasks if task.retention is not None]
        return math.fsum(ratios) / len(ratios) if ratios and len(ratios) == len(self.tasks) else None


def score(
    encoder: LocalEncoder, tasks: Sequence[TaskData], *, batch_size: int = 32, seed: int = 0
) -> tuple[Score, ...]:
    """The main score of each task for a loaded encoder.

    Raises:
        CheckpointError: the model gives vectors that are not finite, or that leave a score undefined.
    """
    scores = []
    for data in tasks:
        task = make_task(data, seed=seed)
        with quiet_mteb():
            result = mteb.evaluate(
                encoder,
                task,
                cache=None,
                co2_tracker=False,
                show_progress_bar=False,
                encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
            )
        value = float(result.task_results[0].scores["test"][0]["main_score"])
        if not math.isfinite(value):
            raise CheckpointError(
                f"{encoder.name} on {data.name}: {task.metadata.main_score} is undefined: the model finds every pair "
                "equally similar",
                hint="its vectors have collapsed to one; distill it, or look at the convert report",
            )
        scores.append(Score(data.name, metric_name(task), data.size, value, encoder.held_out.get(data.name)))
    return tuple(scores)


def evaluate(
    model: str | Path,
    tasks: Sequence[TaskData],
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    allow_pickle: bool = False,
    track: Track = silent,
) -> Evaluation:
    """Loads MODEL and scores it.

    Args:
        model: a folder, hub id or `package:NAME`.
        tasks: as `reading.read_tasks` gives them.
        backend, device, threads: as `models.load_encoder` takes them.
        batch_size: texts or images encoded at once.
        seed: of the classification split and draws.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
        track: reports progress over batches.

    Raises:
        ModelNotFoundError, CheckpointError, UnavailableError: the model can't be had, read, run or scored.
    """
    folder = _readable(model, tasks, allow_pickle)
    name, digest = model_name(model), content_hash(folder)
    encoder = load_encoder(folder, backend=backend, device=device, threads=threads, allow_pickle=allow_pickle)
    wrapped = LocalEncoder(encoder, name=name, content_hash=digest, track=track)
    scores = score(wrapped, tasks, batch_size=batch_size, seed=seed)
    return Evaluation(name, digest, bytes_on_disk(folder, allow_pickle=allow_pickle), scores)


def _readable(model: str | Path, tasks: Sequence[TaskData], allow_pickle: bool) -> Path:
    """The folder of MODEL, which must read what the tasks have."""
    folder = resolve(model, allow_pickle=allow_pickle)
    for modality in sorted({"image" if isinstance(task, LabelledImages) else "text" for task in tasks}):
        vision.require(folder, modality, model)
    return folder


def compare(
    student: str | Path,
    teacher: str | Path | None,
    tasks: Sequence[TaskData],
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    batch_size: int = 32,
    seed: int = 0,
    allow_pickle: bool = False,
    track: Track = silent,
) -> Comparison:
    """Scores the student and, if there is one, the teacher on the same tasks, one after the other.

    Args are those of `evaluate`; `backend` is the student's, the teacher runs on what is best for it ("auto").

    Raises:
        ModelNotFoundError, CheckpointError, UnavailableError: as `evaluate`.
    """
    _readable(student, tasks, allow_pickle)  # a wrong name should not be found out after the teacher's minutes
    run = partial(
        evaluate,
        device=device,
        threads=threads,
        batch_size=batch_size,
        seed=seed,
        allow_pickle=allow_pickle,
        track=track,
    )
    reference = run(teacher, tasks) if teacher is not None else None
    found = run(student, tasks, backend=backend)
    return Comparison(found, reference, _retentions(found, reference))


def _retentions(student: Evaluation, teacher: Evaluation | None) -> tuple[Retention, ...]:
    references = teacher.scores if teacher else [None] * len(student.scores)
    return tuple(
        Retention(
            task=s.task,
            metric=s.metric,
            size=s.size,
            teacher=reference.value if reference else None,
            student=s.value,
            retention=s.value / reference.value if reference and reference.value > 0 else None,
            cosine=_mean_cosine(s.vectors, reference.vectors) if reference else None,
        )
        for s, reference in zip(student.scores, references, strict=True)
    )


def _mean_cosine(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    """Over the rows of two arrays [images, dim]; a vector of zeros has the cosine 0 with any other."""
    if a is None or b is None or a.shape != b.shape:
        return None
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / np.maximum(norms, np.finfo(np.float32).tiny)))
