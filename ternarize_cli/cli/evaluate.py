"""`ternarize eval`: scores on local tasks, alone or against a teacher."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli.options import AllowPickle, Backend, Device, Json, ModelArgument, Quiet, Seed, Threads
from ternarize_cli.cli.output import Output, megabytes

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison, Evaluation

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("eval")(evaluate)


def evaluate(
    model: ModelArgument,
    against: Annotated[
        str | None, typer.Option("--against", metavar="MODEL", help="The teacher whose scores count as 1.")
    ] = None,
    sts: Annotated[
        list[Path] | None,
        typer.Option("--sts", metavar="FILE", help="CSV without header: sentence 1,sentence 2,score. Repeatable."),
    ] = None,
    retrieval: Annotated[
        list[Path] | None,
        typer.Option(
            "--retrieval",
            metavar="DIR",
            help="Folder of corpus.jsonl and queries.jsonl (`relevant` ids, or BEIR's qrels/test.tsv). Repeatable.",
        ),
    ] = None,
    classification: Annotated[
        list[Path] | None,
        typer.Option("--classification", metavar="FILE", help="Lines of label, tab, text. Repeatable."),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            "--images",
            metavar="PATH",
            help="Labelled images: a folder with a subfolder per label, IDX or Parquet files; with a train and a test "
            "part, or else split in halves. Scored by the labels of the 5 nearest neighbours (cosine). Repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            help="At most N test images and 5 N neighbours of each --images, the same number of each label; "
            "default: 200.",
        ),
    ] = None,
    queries_where: Annotated[
        str | None,
        typer.Option("--queries-where", metavar="KEY=VALUE", help="Only queries whose JSON field KEY is VALUE."),
    ] = None,
    min_retention: Annotated[
        list[str] | None,
        typer.Option(
            "--min-retention",
            metavar="[TASK=]VALUE",
            help="Exit 3 if student / teacher is below VALUE: the mean of all tasks, or one TASK. Repeatable.",
        ),
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    threads: Threads = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts or images encoded at once.")] = 32,
    seed: Seed = 0,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on your files, and what it kept.

    The metrics are MTEB's; --against sets the scores beside those of the full-precision model.
    """
    from ternarize_cli.errors import InputError
    from ternarize_cli.evaluation.gates import check, parse_gates
    from ternarize_cli.evaluation.reading import read_tasks
    from ternarize_cli.models import pooling_note, resolve

    out = Output(json_mode=json, quiet=quiet)
    if min_retention and against is None:
        raise InputError("--min-retention compares with a teacher, and none is given", hint="--against MODEL")
    tasks = read_tasks(
        sts=sts or [],
        retrieval=retrieval or [],
        classification=classification or [],
        images=images or [],
        queries_where=queries_where,
        limit=limit,
        seed=seed,
    )
    gates = parse_gates(min_retention or [], [task.name for task in tasks])
    folders = [resolve(name, allow_pickle=allow_pickle) for name in (model, against) if name is not None]
    for note in map(pooling_note, folders):
        if note:
            out.note(note)
    with out.status("loading MTEB"):
        from ternarize_cli.evaluation.compare import compare

    comparison = compare(
        model,
        against,
        tasks,
        backend=backend,
        device=device,
        threads=threads,
        batch_size=batch_size,
        seed=seed,
        allow_pickle=allow_pickle,
        track=out.track,
    )
    _print(out, comparison)
    out.result(_payload(comparison, {task.name: task.sha256 for task in tasks}, seed))
    check(gates, comparison)


def _print(out: Output, comparison: "Comparison") -> None:
    student, teacher = comparison.student, comparison.teacher
    rows: list[tuple[object, ...]]
    if teacher is None:
        rows = [(t.task, t.metric, t.size, _number(t.student)) for t in comparison.tasks]
        rows.append(("weights", "", "", megabytes(student.weights_bytes)))
        out.table(student.name, ("task", "metric", "size", "score"), rows)
        return
    rows = [
        (t.task, t.metric, t.size, _number(t.teacher), _number(t.student), _number(t.retention), _number(t.cosine))
        for t in comparison.tasks
    ]
    rows.append(("mean", "", "", "", "", _number(comparison.mean_retention), ""))
    sizes = teacher.weights_bytes, student.weights_bytes
    rows.append(("weights", "", "", *map(megabytes, sizes), _number(sizes[1] / sizes[0] if sizes[0] else None), ""))
    columns = ("task", "metric", "size", "teacher", "student", "student / teacher", "cosine")
    wide = len(columns) if any(t.cosine is not None for t in comparison.tasks) else len(columns) - 1
    out.table(f"{student.name} against {teacher.name}", columns[:wide], [row[:wide] for row in rows])
    for t in comparison.tasks:
        if t.retention is None:
            out.warn(f"{t.task}: the teacher scores {_number(t.teacher)}, so there is no retention to speak of")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _payload(comparison: "Comparison", data: dict[str, str], seed: int) -> dict[str, Any]:
    return {
        "tasks": [
            {
                "name": t.task,
                "metric": t.metric,
                "size": t.size,
                "teacher": t.teacher,
                "student": t.student,
                "retention": t.retention,
                "cosine": t.cosine,
                "data_sha256": data[t.task],
            }
            for t in comparison.tasks
        ],
        "mean_retention": comparison.mean_retention,
        "student": _model(comparison.student),
        "teacher": _model(comparison.teacher) if comparison.teacher else None,
        "seed": seed,
    }


def _model(evaluation: "Evaluation") -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "content_hash": evaluation.content_hash,
        "weights_bytes": evaluation.weights_bytes,
    }
