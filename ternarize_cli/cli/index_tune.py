"""Defines `ternarize index tune` and `compare`, which measure what indexes find, and how fast."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.index_options import Index
from ternarize_cli.cli.options import MANY, Backend, Device, Force, Json, Quiet, Threads
from ternarize_cli.errors import counted

__all__ = ["compare", "tune"]


def tune(
    index: Index,
    recall: Annotated[float, typer.Option("--recall", min=0, max=1, help="Recall@k to reach.")] = 0.95,
    k: Annotated[int, typer.Option("-k", min=1, max=MANY, help="Neighbours per query.")] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, but don't change the index.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw recall over speed.")] = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure recall and speed at all settings, and store the fastest that reaches --recall."""
    from ternarize_cli.cli.output import Output
    from ternarize_cli.measuring import figures

    out = Output(json_mode=json, quiet=quiet)
    if plot is not None:
        figures.check_plot(plot, force=force)

    import dataclasses

    from ternarize_cli.index.tune import tune_index
    from ternarize_cli.index.tune_figure import plot_tuning
    from ternarize_cli.measuring.machine import is_busy

    report = tune_index(index, target=recall, k=k, threads=threads, write=not dry_run, track=out.track)
    rows = [
        (
            ("→ " if m is report.chosen else "  ") + _settings(m.settings),
            f"{m.recall:.3f}",
            f"{m.milliseconds:.2f}",
            f"{m.per_second:,.0f}",
        )
        for m in report.best
    ]
    columns = ("setting", f"recall@{report.k}", "ms, one query", "queries/s")
    asked = f"{counted(report.queries, 'query')}, {counted(report.threads, 'thread')}"
    caption = f"{asked}; settings that are neither fastest nor best are not shown"
    out.table(f"{index}: {report.info.factory}, {counted(report.info.count, 'vector')}", columns, rows, caption=caption)
    if not report.reached:
        out.warn(f"no setting reaches a recall of {recall:g}; the best has {report.chosen.recall:.3f}")
    if is_busy(report.others):
        out.warn(
            f"the machine was busy: other processes used {report.others:.0f}% of a core, and each took turns with the "
            "searches; tune again when it is quiet"
        )
    if not dry_run and report.chosen.settings:
        out.note(f"searches now use {_settings(report.chosen.settings)}")
    if plot is not None:
        plot_tuning(report, recall, plot, force=force)
    out.result(
        {
            "factory": report.info.factory,
            "count": report.info.count,
            "queries": report.queries,
            "k": report.k,
            "threads": report.threads,
            "others_percent": report.others,
            "target": recall,
            "reached": report.reached,
            "stored": not dry_run,
            "chosen": dataclasses.asdict(report.chosen),
            "measured": [dataclasses.asdict(m) for m in report.measured],
        }
    )


def compare(
    data: Annotated[
        Path, typer.Argument(metavar="DIR", help="corpus.jsonl and queries.jsonl, as `eval --retrieval` reads them.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help="The student.")],
    teacher: Annotated[str, typer.Option("--teacher", metavar="MODEL", help="The model that it came from.")],
    backend: Backend = "auto",
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare teacher and student on every kind of index.

    Measures precision, nDCG, recall, milliseconds and bytes for exact search, IVF, LSH, HNSW,
    PQ and RaBitQ; also for the student's queries against the teacher's documents.
    """
    import dataclasses

    from ternarize_cli.cli.output import Output
    from ternarize_cli.evaluation.retrieval import read_retrieval

    out = Output(json_mode=json, quiet=quiet)
    read = read_retrieval(data, data.name)

    from ternarize_cli.evaluation.index_comparison import compare_indexes

    report = compare_indexes(read, model, teacher, backend=backend, device=device, threads=threads, track=out.track)
    asked = f"{counted(report.queries, 'query')}, {counted(report.threads, 'thread')}"
    out.table(
        f"{data}: {counted(report.documents, 'document')}, {asked}",
        ("encoding", "documents/s", "ms, one query"),
        [(cost.model, f"{cost.documents_per_second:,.0f}", f"{cost.milliseconds:.2f}") for cost in report.encoding],
    )
    columns = ("encoders", "index", "precision@10", "nDCG@10", "recall@10", "ms, one query", "bytes a vector")
    rows = [
        (
            row.encoders,
            row.index,
            f"{row.precision:.3f}",
            f"{row.ndcg:.3f}",
            f"{row.recall:.3f}",
            f"{row.milliseconds:.3f}",
            f"{row.bytes_per_vector:,.0f}",
        )
        for row in report.rows
    ]
    out.table("searching", columns, rows, caption="recall: share of what exact search finds in these vectors")
    out.result(dataclasses.asdict(report))


def _settings(settings: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "nothing to set"
