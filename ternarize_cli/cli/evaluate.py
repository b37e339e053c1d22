"""`ternarize eval`: scores on tasks, alone or against a teacher and rivals."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli.options import (
    MANY,
    MAX_BATCH,
    AllowPickle,
    Backend,
    Device,
    Force,
    Json,
    ModelArgument,
    Quiet,
    Seed,
    Threads,
)
from ternarize_cli.cli.output import Output

if TYPE_CHECKING:
    from ternarize_cli.evaluation.run import Report

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("eval")(evaluate)


def evaluate(
    model: ModelArgument,
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="MODEL", help="The teacher whose scores count as 1."),
    ] = None,
    candidate: Annotated[
        list[str] | None,
        typer.Option("--candidate", metavar="MODEL", help="Another model, such as a smaller one. Repeatable."),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(
            "--rival",
            metavar="NAME",
            help="Made of the teacher on the spot: onnx-int8, openvino-int8, torch-bf16, vectors-int8, vectors-binary, "
            "truncate-128, … Repeatable.",
        ),
    ] = None,
    sts: Annotated[
        list[Path] | None,
        typer.Option(
            "--sts",
            metavar="FILE",
            help="Scored pairs: CSV sentence 1,sentence 2,score; or CSV, TSV, JSONL, Parquet with columns sentence1, "
            "sentence2, score. Repeatable.",
        ),
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
            help="Labelled images: a folder with a subfolder per label, IDX, CIFAR or Parquet files; with a train and "
            "a test part, or else split in halves. Scored by the labels of the 5 nearest neighbours (cosine) and by a "
            "linear probe. Repeatable.",
        ),
    ] = None,
    task_file: Annotated[
        list[Path] | None,
        typer.Option(
            "--task-file",
            metavar="FILE",
            help="A task described in TOML or JSON, of these and more types (docs/guide/evaluate.md). Repeatable.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            metavar="N",
            max=MANY,
            help="At most N test images and 5 N to learn from of each --images, the same number of each label; "
            "default: 200.",
        ),
    ] = None,
    queries_where: Annotated[
        str | None,
        typer.Option("--queries-where", metavar="KEY=VALUE", help="Only queries whose JSON field KEY is VALUE."),
    ] = None,
    perturb: Annotated[
        str | None,
        typer.Option(
            "--perturb",
            metavar="LIST",
            help="Each task again with typos, case, punctuation or truncation (a comma between them).",
        ),
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option("--tasks", metavar="NAME", help="MTEB tasks by name. Repeatable."),
    ] = None,
    benchmark: Annotated[
        list[str] | None,
        typer.Option("--benchmark", metavar="NAME", help='Such as "MTEB(cmn, v1)". Repeatable.'),
    ] = None,
    languages: Annotated[
        list[str] | None,
        typer.Option("--languages", metavar="CODE", help="Only tasks in it, such as eng or zh. Repeatable."),
    ] = None,
    task_types: Annotated[
        list[str] | None,
        typer.Option("--task-types", metavar="TYPE", help="Only such tasks: STS, Retrieval, … Repeatable."),
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(
            "--data-root",
            metavar="DIR",
            help="Data sets as DIR/ORG/NAME, in the layout of the hub, in place of the hub's.",
        ),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option("--results", metavar="DIR", help="Where results of MTEB tasks are kept, in MTEB's own layout."),
    ] = None,
    min_retention: Annotated[
        list[str] | None,
        typer.Option(
            "--min-retention",
            metavar="[TASK=]VALUE",
            help="Exit 3 if student / teacher is below VALUE: the mean of all tasks, or one TASK. Repeatable.",
        ),
    ] = None,
    diagnose: Annotated[
        bool,
        typer.Option(
            "--diagnose", help="Where what is lost is lost: layers, attention, neighbourhoods, sentences that moved."
        ),
    ] = False,
    costs: Annotated[
        bool,
        typer.Option("--costs", help="Time all models, in turns, on 8 of the inputs, and measure their memory."),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE.html", help="One page with tables and pictures."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE.png", help="Quality against bytes and latency."),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option("--junit", metavar="FILE.xml", help="JUnit XML for CI."),
    ] = None,
    no_cache: Annotated[
        bool,
        typer.Option("--no-cache", help="Compute scores that are known already, too."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse images that can't be decoded instead of leaving them out.")
    ] = False,
    backend: Backend = "auto",
    device: Device = None,
    threads: Threads = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", min=1, max=MAX_BATCH, help="Texts or images encoded at once.")
    ] = 32,
    seed: Seed = 0,
    allow_pickle: AllowPickle = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on your files, and what it kept.

    The metrics are MTEB's. --against sets the scores beside those of the full-precision model, with 95% intervals.
    """
    from ternarize_cli.cli.evaluation_output import payload, show
    from ternarize_cli.encoders.loading import pooling_note, resolve
    from ternarize_cli.errors import InputError
    from ternarize_cli.evaluation.gates import check, parse_gates
    from ternarize_cli.evaluation.perturb import kinds_in, perturbed
    from ternarize_cli.evaluation.reading import read_tasks, refuse_twice
    from ternarize_cli.evaluation.report import check_report
    from ternarize_cli.measuring.figures import check_plot
    from ternarize_cli.storage.files import check_output

    out = Output(json_mode=json, quiet=quiet)
    of_mteb = bool(tasks or benchmark or languages or task_types)
    _check_usage(against, min_retention, [path for path in (report, plot, junit) if path is not None])
    if not of_mteb and (results is not None or data_root is not None):
        raise InputError("--results and --data-root are for tasks of MTEB", hint="--tasks NAME or --benchmark NAME")
    if report is not None:
        check_report(report, force=force)
    if plot is not None:
        check_plot(plot, force=force)
    if junit is not None:
        check_output(junit, force=force, folder=False)
    files: dict[str, Any] = {
        "sts": sts or [],
        "retrieval": retrieval or [],
        "classification": classification or [],
        "images": images or [],
        "task_files": task_file or [],
    }
    data = []
    if any(files.values()) or not of_mteb:
        data = read_tasks(**files, queries_where=queries_where, limit=limit, seed=seed, strict=strict)
    for task in data:
        for skipped in getattr(task, "skipped", ()):
            out.warn(f"left out: {skipped}")
    noisy = [perturbed(task, kind, seed) for kind in kinds_in(perturb or "") for task in data]
    data += noisy
    folders = [resolve(name, allow_pickle=allow_pickle) for name in (model, against) if name is not None]
    for note in map(pooling_note, folders):
        if note:
            out.note(note)
    with out.status("loading MTEB"):
        from ternarize_cli.evaluation.benchmarks import choose
        from ternarize_cli.evaluation.run import Plan, run

        hub = []
        if of_mteb:
            hub = choose(tasks or (), benchmark or (), languages or (), task_types or (), data_root=data_root)
    names = [*(t.name for t in data), *(t.metadata.name for t in hub)]
    refuse_twice(names)
    gates = parse_gates(min_retention or [], names)
    plan = Plan(
        model,
        against,
        tuple(candidate or ()),
        tuple(rival or ()),
        data,
        hub,
        noisy=frozenset(task.name for task in noisy),
        results=results,
        costs=costs or report is not None or plot is not None,
        diagnose=diagnose,
        cached=not no_cache,
        backend=backend,
        device=device,
        threads=threads,
        batch_size=batch_size,
        seed=seed,
        allow_pickle=allow_pickle,
    )
    found = run(plan, track=out.track)
    hashes = {task.name: task.sha256 for task in data}
    show(out, found)
    out.result(payload(found, hashes, seed))
    _write(out, found, hashes, gates, report=report, plot=plot, junit=junit, force=force)
    check(gates, found.comparison, [gap.task for gap in found.missing])


def _check_usage(against: str | None, min_retention: list[str] | None, outputs: list[Path]) -> None:
    from ternarize_cli.errors import InputError

    if min_retention and against is None:
        raise InputError("--min-retention compares with a teacher, and none is given", hint="--against MODEL")
    if len({path.expanduser().resolve() for path in outputs}) < len(outputs):
        raise InputError("--report, --plot and --junit name the same file", hint="a file for each")


def _write(
    out: Output,
    found: "Report",
    hashes: dict[str, str],
    gates: Any,
    *,
    report: Path | None,
    plot: Path | None,
    junit: Path | None,
    force: bool,
) -> None:
    from ternarize_cli.evaluation.junit import write_junit
    from ternarize_cli.evaluation.report import plot_pareto, write_report

    if plot is not None:
        plot_pareto(plot, found.comparison, force=force)
        out.text(f"wrote {plot}")
    if report is not None:
        command = shlex.join(["ternarize", *sys.argv[1:]])
        write_report(
            report,
            found.comparison,
            machine=found.machine,
            command=command,
            data=hashes,
            notes=found.notes,
            force=force,
        )
        out.text(f"wrote {report}")
    if junit is not None:
        write_junit(junit, found.comparison, gates, missing=found.missing, force=force)
        out.text(f"wrote {junit}")
