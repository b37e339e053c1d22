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

import torch
from mteb.abstasks import AbsTask

from ternarize_cli.bench import candidates as bench
from ternarize_cli.bench.candidates import BACKEND, RIVAL
from ternarize_cli.bench.probe import probe
from ternarize_cli.encoders import loading
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines import baselines, rivals
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.benchmarks import Missing, score_benchmark
from ternarize_cli.evaluation.cache import ScoreCache, score_key
from ternarize_cli.evaluation.candidates import Candidate, candidate
from ternarize_cli.evaluation.compare import Comparison, Evaluation, Score, compare, score
from ternarize_cli.evaluation.costs import BATCH, latency
from ternarize_cli.evaluation.diagnose import Diagnosis, diagnose, inputs_of
from ternarize_cli.evaluation.encoder import LocalEncoder
from ternarize_cli.evaluation.model_meta import model_meta
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.measuring import machine
from ternarize_cli.measuring.timing import Point
from ternarize_cli.progress import Track, silent

__all__ = ["Plan", "Report", "run"]

_TOKENS = 32


@dataclass(frozen=True)
class Plan:
    """What is evaluated.

    Attributes:
        model: the model in question; against: its teacher; others: further models; rivals: names in `rivals`, made of
            the teacher.
        tasks: from files; hub: of MTEB, whose results are kept in the folder `results`.
        noisy: names of those of `tasks` that are others with changed texts.
        costs, diagnose: whether to measure time and memory of the models, and to say where information is lost.
        cached: whether scores that are known are taken from the cache.
        backend: of `model`; the others run on what is best for them.
        device, threads, allow_pickle: as `loading.load_encoder` takes them.
        batch_size: texts or images encoded at once.
        seed: of splits, draws and the bootstrap.
    """

    model: str | Path
    against: str | Path | None = None
    others: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    tasks: Sequence[TaskData] = ()
    hub: Sequence[AbsTask] = ()
    noisy: frozenset[str] = frozenset()
    results: Path | None = None
    costs: bool = False
    diagnose: bool = False
    cached: bool = True
    backend: str = "auto"
    device: str | None = None
    threads: int | None = None
    batch_size: int = 32
    seed: int = 0
    allow_pickle: bool = False


@dataclass(frozen=True)
class Report:
    """What was found: scores, MTEB tasks that were left out, the diagnosis if asked for, and what rivals are."""

    comparison: Comparison
    missing: tuple[Missing, ...] = ()
    diagnosis: Diagnosis | None = None
    notes: tuple[str, ...] = ()
    machine: dict[str, Any] = field(default_factory=machine.facts)


def run(plan: Plan, *, track: Track = silent) -> Report:
    """Scores all models of a plan on all its tasks.

    Raises:
        InputError: rivals without a teacher, or a diagnosis without texts or images.
        ModelNotFoundError, CheckpointError, UnavailableError: a model can't be had, read, run or scored.
    """
    teacher, students, notes = _models(plan)
    lost = None
    if plan.diagnose and plan.against is not None:
        lost = diagnose(
            plan.model,
            plan.against,
            inputs_of(plan.tasks, seed=plan.seed),
            backend=plan.backend,
            device=plan.device,
            threads=plan.threads,
            batch_size=plan.batch_size,
            allow_pickle=plan.allow_pickle,
            track=track,
        )
    cache = ScoreCache() if plan.cached else None
    lineup = [teacher, *students] if teacher else students
    found, missing = [], {}
    for model in lineup:
        scores, without = _scores(plan, model, cache, track)
        found.append(scores)
        missing.update({gap.task: gap for gap in without})
        if not plan.costs:
            model.release()
    kept = [name for name in found[0] if all(name in scores for scores in found)]
    if not kept:
        gap = next(iter(missing.values()))
        raise InputError(f"no task can be scored; {gap.task}: {gap.reason}", hint=gap.how)
    timed = _latencies(plan, lineup) if plan.costs else {}
    measured: dict[bench.Candidate, int] = {}
    evaluations = [
        Evaluation(
            model.name,
            model.content_hash,
            model.weights_bytes,
            tuple(scores[name] for name in kept),
            latency_ms=timed.get(model.name),
            memory_bytes=_memory(plan, model, measured) if plan.costs else None,
        )
        for model, scores in zip(lineup, found, strict=True)
    ]
    reference = evaluations.pop(0) if teacher else None
    return Report(
        compare(evaluations, reference, seed=plan.seed, noisy=plan.noisy), tuple(missing.values()), lost, notes
    )


def _models(plan: Plan) -> tuple[Candidate | None, list[Candidate], tuple[str, ...]]:
    """The teacher, the students, and what there is to say of the rivals."""
    if plan.rivals and plan.against is None:
        raise InputError("rivals are made of the teacher, and none is given", hint="--against MODEL")
    if plan.diagnose and plan.against is None:
        raise InputError("a diagnosis compares with the teacher, and none is given", hint="--against MODEL")
    for name in plan.rivals:
        rivals.require(name)
    make = partial(
        candidate, tasks=plan.tasks, device=plan.device, threads=plan.threads, allow_pickle=plan.allow_pickle
    )
    teacher = make(plan.against) if plan.against is not None else None
    students = [make(plan.model, backend=plan.backend), *map(make, plan.others)]
    notes = []
    if teacher is not None and plan.rivals:
        calibration = inputs_of(plan.tasks, seed=plan.seed)
        for name in plan.rivals:
            made = rivals.make(
                name,
                teacher.folder,
                device=plan.device,
                threads=plan.threads,
                calibration=calibration,
                allow_pickle=plan.allow_pickle,
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
    plan: Plan, model: Candidate, cache: ScoreCache | None, track: Track
) -> tuple[dict[str, Score], tuple[Missing, ...]]:
    """A model's scores by the names of their tasks; those in the cache without loading it."""
    wrapped: list[LocalEncoder] = []

    def encoder() -> LocalEncoder:
        if not wrapped:
            name, digest, meta = model.name, model.content_hash, None
            if not model.is_rival:
                meta = model_meta(model.folder, name, digest, model.encoder, allow_pickle=plan.allow_pickle)
            wrapped.append(LocalEncoder(model.encoder, name=name, content_hash=digest, track=track, meta=meta))
        return wrapped[0]

    key = partial(
        score_key, model=model.content_hash, backend=model.backend, device=loading.checked_device(plan.device)
    )
    found = {}
    for data in plan.tasks:
        plain = {
            k: v for k, v in vars(data).items() if isinstance(v, str | int | float) and k not in ("name", "sha256")
        }
        entry = key(task=data.name, kind=type(data).__name__, data=data.sha256, seed=plan.seed, settings=plain)
        known = cache.get(entry) if cache is not None else None
        if known is None:
            known = score(encoder(), data, batch_size=plan.batch_size, seed=plan.seed)
            if cache is not None:
                cache.put(entry, known)
        found[data.name] = known
    of_mteb, missing = score_benchmark(
        encoder, plan.hub, batch_size=plan.batch_size, results=plan.results, cache=cache, key=key
    )
    return found | {known.task: known for known in of_mteb}, missing


def _memory(plan: Plan, model: Candidate, measured: dict[bench.Candidate, int]) -> int | None:
    """What a process of its own needs to load a text model and encode a batch with it, beyond the imports; in bytes.

    `measured` keeps what was found: vectors are made smaller by the teacher itself.
    """
    if "text" not in modalities_of(model.folder):
        return None
    kind, name = (RIVAL, model.backend) if model.backend in baselines.names() else (BACKEND, model.backend)
    if model.is_rival and kind == BACKEND:  # the teacher, with other vectors
        name = "auto"
    if name == "openvino-int8":  # made and kept before, so that its making is not measured
        baselines.require(name).build(model.folder, "cpu")
    subject = bench.Candidate(name, kind, model.folder, loading.checked_device(plan.device))
    if subject not in measured:
        threads = plan.threads or torch.get_num_threads()
        measured[subject] = probe(subject, Point(BATCH, _TOKENS), threads=threads, seed=plan.seed).model_bytes
    return measured[subject]


def _latencies(plan: Plan, lineup: Sequence[Candidate]) -> dict[str, float]:
    """Median ms to encode a batch of texts or images, by name; nothing if all tasks are MTEB's."""
    inputs = list(inputs_of(plan.tasks, seed=plan.seed, most=BATCH))
    return latency({model.name: model.encoder for model in lineup}, inputs) if inputs else {}
