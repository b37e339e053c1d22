"""Runs tasks on models, and compares students with their teacher.

Retention is student score / teacher score, per task; the overall number is the mean of these ratios, as in the 96.4% of
arXiv 2411.15438. If the teacher scores zero or less, the ratio has no meaning: it is None then, and so is the mean,
since a mean over the other tasks would mislead. Intervals are 95% of a paired bootstrap over the items of each task
(`bootstrap`). For image tasks the mean cosine between the two models' vectors of a query image is also computed.
"""

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mteb
import numpy as np

from ternarize_cli.errors import CheckpointError
from ternarize_cli.evaluation.bootstrap import interval, mean_retention_interval, retention_interval
from ternarize_cli.evaluation.encoder import LocalEncoder, quiet_mteb
from ternarize_cli.evaluation.existing_index import ExistingIndex
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.evaluation.samples import Score, Sides, samples_of
from ternarize_cli.evaluation.tasks import make_task, metric_name
from ternarize_cli.measuring.similarity import paired_cosines

__all__ = ["Comparison", "Evaluation", "Retention", "Score", "compare", "score"]


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model, with its name, and the content hash and bytes of its files."""

    name: str
    content_hash: str
    weights_bytes: int
    scores: tuple[Score, ...]
    latency_ms: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Retention:
    """The two scores of a task. `retention` is student / teacher; None without a teacher, or if it scores 0 or less.

    `low` and `high` bound the retention (95%), or without a teacher the score; None if the items are not known.
    `cosine` is the mean cosine of the two models' vectors of the query images; None without a teacher, for texts, and
    between models whose vectors differ in length. `index` has the student's queries in the teacher's documents; None
    without a teacher, and for tasks other than retrieval and scored pairs from files.
    """

    task: str
    metric: str
    size: int
    teacher: float | None
    student: float
    retention: float | None
    low: float | None = None
    high: float | None = None
    cosine: float | None = None
    index: ExistingIndex | None = None


@dataclass(frozen=True)
class Comparison:
    """Students and teacher on the same tasks, in the same order.

    Attributes:
        students: the evaluated model first, then the models that it is compared with.
        teacher: the teacher; None if there was none.
        tasks: for each student, the scores of its tasks.
        intervals: for each student, the 95% interval of its mean retention; None if it is not known.
        noisy: names of tasks with perturbed texts, which don't count in the mean.
    """

    students: tuple[Evaluation, ...]
    teacher: Evaluation | None
    tasks: tuple[tuple[Retention, ...], ...]
    intervals: tuple[tuple[float, float] | None, ...] = ()
    noisy: frozenset[str] = frozenset()

    def interval(self, student: int = 0) -> tuple[float, float] | None:
        """The 95% interval of a student's mean retention; None if it is not known."""
        return self.intervals[student] if student < len(self.intervals) else None

    def mean_retention(self, student: int = 0, *, noisy: bool = False) -> float | None:
        """A student's mean retention over all tasks, or the noisy ones; None if one is undefined, or without tasks."""
        return _mean([task.retention for task in self.tasks[student] if (task.task in self.noisy) == noisy])

    def mean_index_retention(self, student: int = 0) -> float | None:
        """The mean retention of a student's queries in the teacher's documents over retrieval tasks that aren't noisy.

        None if one is undefined, or without such tasks.
        """
        tasks = [task.index for task in self.tasks[student] if task.task not in self.noisy]
        return _mean([index.retention for index in tasks if index is not None and index.of_documents])


def score(
    encoder: LocalEncoder, data: TaskData, *, batch_size: int = 32, seed: int = 0, keep_sides: bool = False
) -> Score:
    """Computes the main score of a task for a loaded encoder.

    Args:
        encoder: the loaded encoder.
        data: the task.
        batch_size: texts or images encoded at once.
        seed: seed of the task's splits and draws.
        keep_sides: keep the vectors of queries and documents, or of the two sentences of pairs, with the score.

    Raises:
        CheckpointError: the model gives vectors that are not finite, or that leave a score undefined.
    """
    task = make_task(data, seed=seed)
    encoder.passes = [] if keep_sides else None
    with quiet_mteb(), tempfile.TemporaryDirectory() as predictions:
        result = mteb.evaluate(
            encoder,
            task,
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
            prediction_folder=predictions,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        )
        scores = result.task_results[0].scores["test"][0]
        value = float(scores["main_score"])
        if not math.isfinite(value):
            raise CheckpointError(
                f"{encoder.name} on {data.name}: {task.metadata.main_score} is undefined: the model finds every pair "
                "equally similar",
                hint="its vectors have collapsed to one: distill the model, or check the report of convert",
            )
        samples = samples_of(task, Path(predictions), "test", "default", scores)
    sides = None
    if encoder.passes is not None:  # queries in one pass, then the documents in passes of 50,000
        sides = Sides(encoder.passes[0], np.concatenate(encoder.passes[1:]))
        encoder.passes = None
    return Score(data.name, metric_name(task), data.size, value, samples, encoder.held_out.get(data.name), sides)


def compare(
    students: Sequence[Evaluation],
    teacher: Evaluation | None,
    *,
    seed: int = 0,
    noisy: frozenset[str] = frozenset(),
    indexes: Sequence[Mapping[str, ExistingIndex]] = (),
) -> Comparison:
    """Compares students with their teacher.

    Args:
        students: evaluations; the evaluated model first.
        teacher: the teacher's evaluation, or None.
        seed: seed of the bootstrap.
        noisy: names of tasks with perturbed texts, which don't count in the mean.
        indexes: for each student, its queries in the teacher's documents by the names of tasks.
    """
    tasks, intervals = [], []
    for i, student in enumerate(students):
        index = indexes[i] if indexes else {}
        references = teacher.scores if teacher else [None] * len(student.scores)
        tasks.append(
            tuple(_retention(s, r, seed, index.get(s.task)) for s, r in zip(student.scores, references, strict=True))
        )
        pairs = [
            (s.samples, r.samples if r else None)
            for s, r in zip(student.scores, references, strict=True)
            if s.task not in noisy
        ]
        known = [(s, r) for s, r in pairs if s is not None and r is not None]
        defined = all(task.retention is not None for task in tasks[-1] if task.task not in noisy)
        whole = len(known) == len(pairs) and defined and bool(pairs)
        intervals.append(mean_retention_interval(known, seed=seed) if whole else None)
    return Comparison(tuple(students), teacher, tuple(tasks), tuple(intervals), noisy)


def _mean(retentions: Sequence[float | None]) -> float | None:
    """The mean; None if a retention is None, or there are none."""
    ratios = [retention for retention in retentions if retention is not None]
    return math.fsum(ratios) / len(ratios) if ratios and len(ratios) == len(retentions) else None


def _retention(student: Score, teacher: Score | None, seed: int, index: ExistingIndex | None) -> Retention:
    ratio = student.value / teacher.value if teacher and teacher.value > 0 else None
    bounds: tuple[float, float] | None = None
    if teacher is None:
        bounds = interval(student.samples, seed=seed) if student.samples else None
    elif ratio is not None and student.samples and teacher.samples:
        bounds = retention_interval(student.samples, teacher.samples, seed=seed)
    low, high = bounds or (None, None)
    return Retention(
        task=student.task,
        metric=student.metric,
        size=student.size,
        teacher=teacher.value if teacher else None,
        student=student.value,
        retention=ratio,
        low=low,
        high=high,
        cosine=_mean_cosine(student.vectors, teacher.vectors) if teacher else None,
        index=index,
    )


def _mean_cosine(a: np.ndarray | None, b: np.ndarray | None) -> float | None:
    """Mean cosine over the rows of two arrays [images, dim]; None if one is missing or their shapes differ."""
    return None if a is None or b is None or a.shape != b.shape else float(paired_cosines(a, b).mean())
