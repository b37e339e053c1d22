"""An evaluation from beginning to end: models, tasks, scores, and what sets the models apart.

Models are scored one after the other, the teacher first. A task of MTEB counts only if every model has a score on it,
so that all means are over the same tasks. Rivals are made of the teacher's files and need their packages before
anything else is computed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mteb.abstasks import AbsTask

from ternarize_cli.bench import candidates as bench
from ternarize_cli.bench.candidates import BACKEND, RIVAL
from ternarize_cli.bench.probe import probe
from ternarize_cli.encoders import loading
from ternarize_cli.encoders.heads import logits
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines import baselines, rivals
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.benchmarks import Missing, score_benchmark
from ternarize_cli.evaluation.candidates import Candidate, candidate
from ternarize_cli.evaluation.compare import Comparison, Evaluation, Score, compare, score
from ternarize_cli.evaluation.costs import BATCH, latency
from ternarize_cli.evaluation.diagnose import Diagnosis, diagnose, inputs_of
from ternarize_cli.evaluation.encoder import LocalEncoder
from ternarize_cli.evaluation.existing_index import ExistingIndex, existing_index
from ternarize_cli.evaluation.gates import Gate, check
from ternarize_cli.evaluation.model_meta import model_meta
from ternarize_cli.evaluation.options import EvaluationOptions
from ternarize_cli.evaluation.ranked_pairs import RankedPairs, scores_of
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.evaluation.score_cache import ScoreCache, score_key
from ternarize_cli.evaluation.scored_pairs import Pairs
from ternarize_cli.measuring import machine
from ternarize_cli.measuring.timing import GridPoint
from ternarize_cli.progress import Track, silent

__all__ = ["EvaluationReport", "run"]

_TOKENS = 32


@dataclass(frozen=True)
class EvaluationReport:
    """What was found.

    Attributes:
        comparison: scores of all models, and what the students keep of the teacher's.
        missing: tasks of MTEB that could not be scored.
        diagnosis: where information is lost, if that was asked for.
        notes: sentences on how rivals were made.
        gates: what is asked of the retention; `check_gates` asks it.
        hashes: task → sha256 of its data, for tasks from files.
        skipped: images that could not be decoded, each named with the reason.
        machine: as `machine.facts` gives it.
    """

    comparison: Comparison
    missing: tuple[Missing, ...] = ()
    diagnosis: Diagnosis | None = None
    notes: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()
    hashes: dict[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=machine.facts)

    def check_gates(self) -> None:
        """Passes if the first student misses no gate.

        Raises:
            GateMissedError: a retention is below its gate, or undefined; the message names each gate that was missed.
        """
        check(self.gates, self.comparison, [gap.task for gap in self.missing])


@dataclass(frozen=True)
class _Job:
    """A model, its tasks from files and of MTEB, and the options, of which the tasks were made."""

    model: str | Path
    options: EvaluationOptions
    tasks: Sequence[TaskData]
    hub: Sequence[AbsTask]


def run(
    model: str | Path,
    options: EvaluationOptions,
    tasks: Sequence[TaskData] = (),
    *,
    noisy: Sequence[TaskData] = (),
    hub: Sequence[AbsTask] = (),
    gates: tuple[Gate, ...] = (),
    track: Track = silent,
) -> EvaluationReport:
    """Scores all models on tasks that were read (`evaluate` reads them first).

    Args:
        model: the model in question, as users type it.
        options: what it is compared with, and how models run; the tasks that they name are not read again.
        tasks: from files.
        noisy: those of them with changed texts, as further tasks.
        hub: of MTEB.
        gates: what is asked of the retention; goes into the report.
        track: progress.

    Raises:
        InputError: an unknown rival, or a diagnosis without texts or images.
        ModelNotFoundError, CheckpointError, UnavailableError: a model can't be had, read, run or scored.
    """
    job = _Job(model, options, [*tasks, *noisy], hub)
    teacher, students, notes = _models(job)
    lost = None
    if options.diagnose and options.against is not None:
        lost = diagnose(
            job.model,
            options.against,
            inputs_of(job.tasks, seed=options.seed),
            backend=options.backend,
            device=options.device,
            threads=options.threads,
            batch_size=options.batch_size,
            allow_pickle=options.allow_pickle,
            track=track,
        )
    cache = ScoreCache() if options.cached else None
    lineup = [teacher, *students] if teacher else students
    found: list[dict[str, Score]] = []
    indexes: list[dict[str, ExistingIndex]] = []
    missing, taught = {}, _Taught(teacher is not None)
    for participant in lineup:
        scores, without = _scores(job, participant, cache, track, taught)
        if participant is not teacher:
            indexes.append(_indexes(job, scores, found[0]) if teacher else {})
            scores = {name: replace(known, sides=None) for name, known in scores.items()}  # they can be large
        found.append(scores)
        missing.update({gap.task: gap for gap in without})
        if not options.costs:
            participant.release()
    kept = [name for name in found[0] if all(name in scores for scores in found)]
    if not kept:
        gap = next(iter(missing.values()))
        raise InputError(f"no task can be scored; {gap.task}: {gap.reason}", hint=gap.how)
    timed = _latencies(job, lineup) if options.costs else {}
    measured: dict[bench.BenchCandidate, int] = {}
    evaluations = [
        Evaluation(
            model.name,
            model.content_hash,
            model.weights_bytes,
            tuple(scores[name] for name in kept),
            latency_ms=timed.get(model.name),
            memory_bytes=_memory(job, model, measured) if options.costs else None,
        )
        for model, scores in zip(lineup, found, strict=True)
    ]
    reference = evaluations.pop(0) if teacher else None
    return EvaluationReport(
        compare(
            evaluations,
            reference,
            seed=options.seed,
            noisy=frozenset(task.name for task in noisy),
            indexes=indexes,
        ),
        tuple(missing.values()),
        lost,
        notes,
        gates,
        hashes={task.name: task.sha256 for task in job.tasks},
        skipped=tuple(reason for task in tasks for reason in getattr(task, "skipped", ())),
    )


@dataclass
class _Taught:
    """The teacher's logits on files of pairs, by the names of their tasks; the teacher is scored first."""

    has_teacher: bool
    logits: dict[str, np.ndarray] = field(default_factory=dict)

    def scores(self, model: Candidate, data: RankedPairs, batch_size: int) -> list[Score]:
        """Scores a model on pairs; of the teacher, which is its own teacher, keeps the logits."""
        encoder: Any = model.encoder
        found = logits(encoder, list(zip(data.first, data.second, strict=True)), batch_size=batch_size)
        return scores_of(data, found, self.logits.setdefault(data.name, found) if self.has_teacher else None)


def _models(job: _Job) -> tuple[Candidate | None, list[Candidate], tuple[str, ...]]:
    """The teacher, the students, and what there is to say of the rivals."""
    for name in job.options.rivals:
        rivals.require_rival(name)
    make = partial(
        candidate,
        tasks=job.tasks,
        device=job.options.device,
        threads=job.options.threads,
        allow_pickle=job.options.allow_pickle,
    )
    teacher = make(job.options.against) if job.options.against is not None else None
    students = [make(job.model, backend=job.options.backend), *map(make, job.options.candidates)]
    notes = []
    if teacher is not None and job.options.rivals:
        calibration = inputs_of(job.tasks, seed=job.options.seed)
        for name in job.options.rivals:
            made = rivals.make(
                name,
                teacher.folder,
                device=job.options.device,
                threads=job.options.threads,
                calibration=calibration,
                allow_pickle=job.options.allow_pickle,
            )
            notes.append(f"{name}: {made.note}")
            digest = rivals.fingerprint(name, teacher.folder, calibration)
            load: Callable[[], Any] = partial(_given, made.encoder)
            students.append(Candidate(name, digest, made.weights_bytes, load, name, teacher.folder, is_rival=True))
    taken: set[str] = set()
    for i, model in enumerate(students):
        name, count = model.name, 2
        while name in taken or (teacher is not None and name == teacher.name):
            name, count = f"{model.name}-{count}", count + 1
        taken.add(name)
        students[i] = replace(model, name=name)
    return teacher, students, tuple(notes)


def _given(encoder: Any) -> Any:
    return encoder


def _scores(
    job: _Job, model: Candidate, cache: ScoreCache | None, track: Track, taught: "_Taught"
) -> tuple[dict[str, Score], tuple[Missing, ...]]:
    """A model's scores by the names of their tasks; those in the cache without loading it."""
    wrapped: list[LocalEncoder] = []

    def encoder() -> LocalEncoder:
        if not wrapped:
            name, digest, meta = model.name, model.content_hash, None
            if not model.is_rival:
                meta = model_meta(model.folder, name, digest, model.encoder, allow_pickle=job.options.allow_pickle)
            wrapped.append(LocalEncoder(model.encoder, name=name, content_hash=digest, track=track, meta=meta))
        return wrapped[0]

    key = partial(
        score_key, model=model.content_hash, backend=model.backend, device=loading.checked_device(job.options.device)
    )
    found: dict[str, Score] = {}
    for data in job.tasks:
        if isinstance(data, RankedPairs):
            found |= {one.task: one for one in taught.scores(model, data, job.options.batch_size)}
            continue
        plain = {
            k: v for k, v in vars(data).items() if isinstance(v, str | int | float) and k not in ("name", "sha256")
        }
        entry = key(task=data.name, kind=type(data).__name__, data=data.sha256, seed=job.options.seed, settings=plain)
        known = cache.get(entry) if cache is not None else None
        keep_sides = taught.has_teacher and isinstance(data, Retrieval | Pairs)
        if known is None or (keep_sides and known.sides is None):
            known = score(
                encoder(), data, batch_size=job.options.batch_size, seed=job.options.seed, keep_sides=keep_sides
            )
            if cache is not None:
                cache.put(entry, known)
        found[data.name] = known
    of_mteb, missing = score_benchmark(
        encoder, job.hub, batch_size=job.options.batch_size, results=job.options.results, cache=cache, key=key
    )
    return found | {known.task: known for known in of_mteb}, missing


def _indexes(job: _Job, student: dict[str, Score], teacher: dict[str, Score]) -> dict[str, ExistingIndex]:
    """A student's queries in the teacher's documents, by the names of tasks."""
    found = {}
    for data in job.tasks:
        if isinstance(data, Retrieval | Pairs):
            mine, theirs = student[data.name].sides, teacher[data.name].sides
            if mine is not None and theirs is not None:
                found[data.name] = existing_index(data, mine, theirs, seed=job.options.seed)
    return found


def _memory(job: _Job, model: Candidate, measured: dict[bench.BenchCandidate, int]) -> int | None:
    """What a process of its own needs to load a text model and encode a batch with it, beyond the imports; in bytes.

    `measured` keeps what was found: vectors are made smaller by the teacher itself.
    """
    if "text" not in modalities_of(model.folder):
        return None
    kind, name = (RIVAL, model.backend) if model.backend in baselines.baseline_names() else (BACKEND, model.backend)
    if model.is_rival and kind == BACKEND:  # the teacher, with other vectors
        name = "auto"
    if name == "openvino-int8":  # made and kept before, so that its making is not measured
        baselines.require_baseline(name).prepare(model.folder)
    subject = bench.BenchCandidate(name, kind, model.folder, loading.checked_device(job.options.device))
    if subject not in measured:
        threads = job.options.threads or torch.get_num_threads()
        measured[subject] = probe(
            subject, GridPoint(BATCH, _TOKENS), threads=threads, seed=job.options.seed
        ).model_bytes
    return measured[subject]


def _latencies(job: _Job, lineup: Sequence[Candidate]) -> dict[str, float]:
    """Median ms to encode a batch of texts or images, by name; nothing if all tasks are MTEB's."""
    inputs = list(inputs_of(job.tasks, seed=job.options.seed, most=BATCH))
    return latency({model.name: model.encoder for model in lineup}, inputs) if inputs else {}
