"""Prints the results of `ternarize eval` as tables of scores and of the diagnosis, or as one JSON object."""

from typing import TYPE_CHECKING, Any

from ternarize_cli.cli.output import Output, megabytes
from ternarize_cli.errors import counted

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison, Evaluation, Retention
    from ternarize_cli.evaluation.diagnose import Diagnosis
    from ternarize_cli.evaluation.run import EvaluationReport

__all__ = ["payload", "show"]

_WIDEST = 4


def show(out: Output, report: "EvaluationReport") -> None:
    """Prints an evaluation: tables on stdout, warnings and notes on stderr."""
    comparison = report.comparison
    if comparison.teacher is None and len(comparison.students) == 1:
        _print_scores(out, comparison)
    elif len(comparison.students) == 1:
        _print_pair(out, comparison)
    else:
        _print_several(out, comparison)
    _print_index(out, comparison)
    for note in report.notes:
        out.note(note)
    if report.missing:
        out.warn(f"not scored of MTEB: {counted(len(report.missing), 'task')}")
        for gap in report.missing:
            out.warn(f"{gap.task}: {gap.reason}; {gap.how}")
    for t in comparison.tasks[0]:
        if comparison.teacher is not None and t.retention is None:
            out.warn(f"{t.task}: the teacher scores {_number(t.teacher)}, so retention is undefined")
    if report.diagnosis is not None:
        _print_diagnosis(out, report.diagnosis)


def _print_scores(out: Output, comparison: "Comparison") -> None:
    (student,), (tasks,) = comparison.students, comparison.tasks
    rows: list[tuple[object, ...]] = [
        (t.task, t.metric, t.size, _number(t.student), _between(t.low, t.high)) for t in tasks
    ]
    rows.append(("weights", "", "", megabytes(student.weights_bytes), ""))
    out.table(student.name, ("task", "metric", "size", "score", "95%"), rows)


def _print_pair(out: Output, comparison: "Comparison") -> None:
    (student,), (tasks,), teacher = comparison.students, comparison.tasks, comparison.teacher
    assert teacher is not None
    rows: list[tuple[object, ...]] = [
        (
            t.task,
            t.metric,
            t.size,
            _number(t.teacher),
            _number(t.student),
            _number(t.retention),
            _between(t.low, t.high),
            _number(t.cosine),
        )
        for t in tasks
    ]
    mean = _between(*(comparison.interval() or (None, None)))
    rows.append(("mean", "", "", "", "", _number(comparison.mean_retention()), mean, ""))
    if comparison.noisy:
        rows.append(("mean of noisy tasks", "", "", "", "", _number(comparison.mean_retention(noisy=True)), "", ""))
    sizes = teacher.weights_bytes, student.weights_bytes
    rows.append(("weights", "", "", *map(megabytes, sizes), _number(sizes[1] / sizes[0] if sizes[0] else None), "", ""))
    if teacher.latency_ms is not None and student.latency_ms is not None:
        times = teacher.latency_ms, student.latency_ms
        rows.append(("8 inputs", "ms", "", *(f"{ms:.1f}" for ms in times), _number(times[1] / times[0]), "", ""))
    if teacher.memory_bytes is not None and student.memory_bytes is not None:
        needs = teacher.memory_bytes, student.memory_bytes
        rows.append(("memory", "", "", *map(megabytes, needs), _number(needs[1] / needs[0]), "", ""))
    columns = ("task", "metric", "size", "teacher", "student", "student / teacher", "95%", "cosine")
    wide = len(columns) if any(t.cosine is not None for t in tasks) else len(columns) - 1
    out.table(f"{student.name} against {teacher.name}", columns[:wide], [row[:wide] for row in rows])


def _print_several(out: Output, comparison: "Comparison") -> None:
    """Prints a line for each model: how much of the teacher's score it keeps, for up to four tasks and in the mean."""
    teacher = comparison.teacher
    names = [t.task for t in comparison.tasks[0]]
    names = names if len(names) <= _WIDEST else []
    rows: list[tuple[object, ...]] = []
    if teacher is not None:
        scores = [_number(score.value) for score in teacher.scores][: len(names)]
        rows.append((teacher.name, *scores, "1", "", megabytes(teacher.weights_bytes), *_costs(teacher)))
    for i, student in enumerate(comparison.students):
        tasks = comparison.tasks[i][: len(names)]
        cells = [_number(t.retention if teacher is not None else t.student) for t in tasks]
        mean = _number(comparison.mean_retention(i)) if teacher is not None else ""
        bounds = _between(*(comparison.interval(i) or (None, None)))
        rows.append((student.name, *cells, mean, bounds, megabytes(student.weights_bytes), *_costs(student)))
    columns = ["model", *names, "mean kept", "95%", "weights", "ms", "memory"]
    timed = any(student.latency_ms is not None for student in comparison.students)
    wide = len(columns) if timed else len(columns) - 2
    caption = "the teacher's scores, then what the others keep of them" if teacher is not None else ""
    caption += "" if names else f"; {counted(len(comparison.tasks[0]), 'task')}, each in --json and --report"
    out.table("models", columns[:wide], [row[:wide] for row in rows], caption=caption)


def _print_index(out: Output, comparison: "Comparison") -> None:
    """Prints how the students' queries do in the teacher's documents, and says of which tasks there are no numbers."""
    several = len(comparison.students) > 1
    rows: list[tuple[object, ...]] = []
    for i, (student, tasks) in enumerate(zip(comparison.students, comparison.tasks, strict=True)):
        for t in tasks:
            if t.index is not None and t.index.reason is not None:
                out.note(f"{t.task}, queries by {student.name}: {t.index.reason}")
            elif t.index is not None:
                of, cosines = t.index, (t.index.query_cosine, t.index.document_cosine)
                measures = (*map(_number, (of.score, of.retention)), _between(of.low, of.high))
                rows.append((student.name, t.task, *measures, *map(_number, cosines), _number(of.overlap)))
        if (mean := comparison.mean_index_retention(i)) is not None:
            rows.append((student.name, "mean of retrieval", "", _number(mean), "", "", "", ""))
    if rows:
        columns = ("model", "task", "score", "kept", "95%", "cosine, queries", "documents", "overlap@10")
        first = 0 if several else 1
        out.table(
            "with the teacher's index",
            columns[first:],
            [row[first:] for row in rows],
            caption="queries (first sentences) by the student, documents (second sentences) by the teacher",
        )


def _print_diagnosis(out: Output, diagnosis: "Diagnosis") -> None:
    rows = [
        (layer.name, *("" if x is None else _number(x) for x in (layer.cka, layer.cosine, layer.attention_kl)))
        for layer in diagnosis.layers
    ]
    seen = f"{counted(diagnosis.inputs, 'input')}, {counted(diagnosis.tokens, 'token')}"
    if rows:
        out.table(f"layers, on {seen}", ("layer", "CKA", "cosine", "attention KL"), rows)
    spaces = [
        (name, _number(space.mean_cosine), _number(space.first_component), f"{space.norm:.3g}")
        for name, space in (("teacher", diagnosis.teacher), ("student", diagnosis.student))
    ]
    out.table(
        "vectors",
        ("model", "cosine between inputs", "first component", "norm"),
        spaces,
        caption=f"cosine between the models {_number(diagnosis.cosine)}; of an input's {diagnosis.neighbours} nearest "
        f"neighbours both have {diagnosis.overlap:.1%}",
    )
    moved = [(f"{m.cosine:.4f}", m.input if len(m.input) <= 90 else m.input[:89] + "…") for m in diagnosis.moved]
    out.table("what moved most", ("cosine", "input"), moved)


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _between(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.4f} – {high:.4f}"


def _costs(evaluation: "Evaluation") -> tuple[str, str]:
    time, memory = evaluation.latency_ms, evaluation.memory_bytes
    return "" if time is None else f"{time:.1f}", "" if memory is None else megabytes(memory)


def payload(report: "EvaluationReport", data: dict[str, str], seed: int) -> dict[str, Any]:
    """Makes the JSON object of an evaluation.

    Args:
        report: the evaluation.
        data: for each task the sha256 of its data.
        seed: the seed of everything random.
    """
    comparison = report.comparison
    students = [
        {
            **_model(student),
            "tasks": [_task(t, data) for t in tasks],
            "mean_retention": comparison.mean_retention(i),
            "mean_interval": comparison.interval(i),
            "mean_index_retention": comparison.mean_index_retention(i),
            "noisy_mean_retention": comparison.mean_retention(i, noisy=True),
        }
        for i, (student, tasks) in enumerate(zip(comparison.students, comparison.tasks, strict=True))
    ]
    first = students[0]
    return {
        "tasks": first["tasks"],
        "mean_retention": first["mean_retention"],
        "mean_interval": first["mean_interval"],
        "mean_index_retention": first["mean_index_retention"],
        "noisy_mean_retention": first["noisy_mean_retention"],
        "student": _model(comparison.students[0]),
        "teacher": _model(comparison.teacher) if comparison.teacher else None,
        "candidates": students,
        "missing": [vars(gap) for gap in report.missing],
        "diagnosis": report.diagnosis.to_dict() if report.diagnosis else None,
        "notes": list(report.notes),
        "machine": report.machine,
        "seed": seed,
    }


def _task(t: "Retention", data: dict[str, str]) -> dict[str, Any]:
    return {
        "name": t.task,
        "metric": t.metric,
        "size": t.size,
        "teacher": t.teacher,
        "student": t.student,
        "retention": t.retention,
        "low": t.low,
        "high": t.high,
        "cosine": t.cosine,
        "index": None if t.index is None else vars(t.index),
        "data_sha256": data.get(t.task),
    }


def _model(evaluation: "Evaluation") -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "content_hash": evaluation.content_hash,
        "weights_bytes": evaluation.weights_bytes,
        "latency_ms": evaluation.latency_ms,
        "memory_bytes": evaluation.memory_bytes,
    }
