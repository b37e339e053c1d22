"""`ternarize index build | tune | search | info | compare`."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.options import Backend, Device, Force, Json, OutputFolder, Quiet, Seed, Threads

__all__ = ["register"]

_BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Texts per forward pass; default: as many as make 8,192 tokens."),
]
_Index = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that `index build` wrote.")]


def register(app: typer.Typer) -> None:
    """Adds the group of commands."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Encode a corpus, index it with FAISS, and search it."
    )
    group.command("build")(build)
    group.command("tune")(tune)
    group.command("search")(search)
    group.command("info")(info)
    group.command("compare")(compare)
    app.add_typer(group, name="index")


def build(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS|DIR",
            help="One text per line, or JSONL with `text`; - is stdin. Or vectors that `encode --shards` wrote.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Folder, hub id or package:NAME.")
    ] = None,
    output: OutputFolder = None,
    factory: Annotated[
        str,
        typer.Option(
            "--factory",
            metavar="NAME|STRING",
            help="auto, flat (exact), hnsw, ivf, ivf-pq, ivf-rabitq, binary, lsh, or a FAISS factory string.",
        ),
    ] = "auto",
    memory: Annotated[
        float | None, typer.Option("--memory", min=0, metavar="GB", help="What the index may take, for `auto`.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="ip|l2", help="Default: as the model compares (cosine: ip).")
    ] = None,
    queries: Annotated[
        str | None,
        typer.Option("--queries", metavar="FILE", help="Texts to tune the index by; default: 1,000 of the documents."),
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Skip lines that can't be read, and count them.")
    ] = False,
    shard_size: Annotated[int, typer.Option("--shard-size", min=1, help="Texts per shard that --resume keeps.")] = 8192,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a build that was killed.")] = False,
    force: Force = False,
    batch_size: _BatchSize = None,
    backend: Backend = "auto",
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode a corpus and write an index folder; default output: CORPUS's name with -index."""
    from ternarize_cli import files
    from ternarize_cli.cli.output import Output, megabytes
    from ternarize_cli.errors import InputError

    out = Output(json_mode=json, quiet=quiet)
    if output is None:
        if corpus == "-":
            raise InputError("a corpus from stdin has no name to call the index after", hint="-o DIR")
        output = Path(f"{Path(corpus).stem}-index")
    files.check_output(output, force=force)

    budget = None if memory is None else round(1e9 * memory)
    vectors = Path(corpus) if corpus != "-" and Path(corpus).is_dir() else None
    if vectors is not None and (model, queries) != (None, None):
        raise InputError(f"{corpus} holds vectors; their model is known", hint="leave --model and --queries out")
    given = {"--resume": resume, "--skip-bad": skip_bad, "--batch-size": batch_size, "--device": device}
    given["--backend"] = backend != "auto"
    if vectors is not None and (unused := [flag for flag, value in given.items() if value]):
        raise InputError(f"{corpus} holds vectors, and nothing is encoded", hint=f"leave {' and '.join(unused)} out")
    if vectors is None and model is None:
        raise InputError("texts need a model", hint="--model MODEL")

    from ternarize_cli.index.build import build_index, index_vectors

    if vectors is not None:
        report = index_vectors(
            vectors,
            output,
            factory=factory,
            metric=metric,
            memory=budget,
            threads=threads,
            seed=seed,
            force=force,
            track=out.track,
        )
    else:
        report = build_index(
            corpus,
            output,
            model=model or "",
            factory=factory,
            metric=metric,
            memory=budget,
            queries=queries,
            skip_bad=skip_bad,
            shard_size=shard_size,
            batch_size=batch_size,
            backend=backend,
            device=device,
            threads=threads,
            seed=seed,
            force=force,
            resume=resume,
            track=out.track,
        )
    if report.discarded:
        out.note("the unfinished work was of another corpus, model or shard size; it was not used")
    if report.skipped:
        more = f"; {report.skipped - len(report.bad)} more" if report.skipped > len(report.bad) else ""
        out.warn(f"{report.skipped} lines were skipped: {'; '.join(report.bad)}{more}")
    if report.truncation:
        out.warn(report.truncation)
    size = sum(file.bytes for file in report.info.files.values())
    out.text(
        f"{output}: {report.info.count} texts, {report.info.factory} index of {report.info.dim} dimensions, "
        f"{megabytes(size)}" + (f"; {report.reused} of {report.shards} shards were there already" if resume else "")
    )
    tunable = report.info.factory != "Flat" and report.info.count > 1
    out.hint(f"ternarize index tune {output}" if tunable else f'ternarize index search {output} "your query"')
    out.result({"output": str(output), **_payload(report.info), **_work(report)})


def tune(
    index: _Index,
    recall: Annotated[float, typer.Option("--recall", min=0, max=1, help="Recall@k to reach.")] = 0.95,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours per query.")] = 10,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure, and leave the index as it is.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw recall over speed.")] = None,
    threads: Threads = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure recall and speed at all settings, and store the fastest that finds enough."""
    from ternarize_cli import plots
    from ternarize_cli.cli.output import Output

    out = Output(json_mode=json, quiet=quiet)
    if plot is not None:
        plots.check_plot(plot, force=force)

    import dataclasses

    from ternarize_cli.index.tune import tune_index
    from ternarize_cli.index.tune_figure import plot_tuning

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
    caption = (
        f"{report.queries} queries, {report.threads} threads; settings that are neither fastest nor best are not shown"
    )
    out.table(f"{index}: {report.info.factory}, {report.info.count} vectors", columns, rows, caption=caption)
    if not report.reached:
        out.warn(f"no setting reaches a recall of {recall:g}; the best has {report.chosen.recall:.3f}")
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
            "target": recall,
            "reached": report.reached,
            "stored": not dry_run,
            "chosen": dataclasses.asdict(report.chosen),
            "measured": [dataclasses.asdict(m) for m in report.measured],
        }
    )


def search(
    index: _Index,
    query: Annotated[list[str] | None, typer.Argument(metavar="[QUERY]...", help="What to look for.")] = None,
    queries: Annotated[
        str | None,
        typer.Option("--queries", metavar="FILE|-", help="Queries from a file or stdin, as a corpus is read."),
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Answers per query.")] = 10,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="The index's own model elsewhere, or a student of it."),
    ] = None,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Encode queries with --model, whatever it is.")
    ] = False,
    nprobe: Annotated[int | None, typer.Option("--nprobe", min=1, help="IVF: clusters to look into.")] = None,
    ef_search: Annotated[int | None, typer.Option("--ef-search", min=1, help="HNSW: candidates to keep.")] = None,
    refine: Annotated[
        float | None,
        typer.Option("--refine", min=1, help="Indexes that refine: rank so many times -k candidates by int8 vectors."),
    ] = None,
    batch_size: _BatchSize = None,
    backend: Backend = "auto",
    device: Device = None,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Find the texts nearest to each query."""
    from ternarize_cli.cli.output import Output
    from ternarize_cli.errors import InputError

    out = Output(json_mode=json, quiet=quiet)
    if not query and queries is None:
        raise InputError("there is no query", hint=f'ternarize index search {index} "your query", or --queries FILE')

    from ternarize_cli.index.search import Searcher
    from ternarize_cli.texts import read_lines

    texts = [*(query or []), *(read_lines([queries]) if queries is not None else [])]
    searcher = Searcher(
        index,
        model=model,
        asymmetric=asymmetric,
        settings={"nprobe": nprobe, "efSearch": ef_search, "k_factor_rf": refine},
        backend=backend,
        device=device,
        threads=threads,
        batch_size=batch_size,
    )
    found = searcher.search(texts, k)
    if searcher.encode.truncation:
        out.warn(searcher.encode.truncation)
    if searcher.student:
        out.note(f"queries encoded by {model}, documents by {searcher.info.model}")
    for text, hits in zip(texts, found, strict=True):
        out.text(text)
        for hit in hits:
            out.text(f"  {hit.score:7.4f}  {hit.id}  {_shortened(hit.text)}")
    seconds = searcher.seconds
    out.note(f"encoding {1e3 * seconds['encoding']:.1f} ms, searching {1e3 * seconds['searching']:.2f} ms")
    out.result(
        {
            "metric": searcher.info.metric,
            "k": k,
            "milliseconds": {name: round(1e3 * value, 3) for name, value in seconds.items()},
            "results": [
                {"query": hit.query, "rank": rank, "id": hit.id, "score": hit.score, "text": hit.text}
                for hits in found
                for rank, hit in enumerate(hits, start=1)
            ],
        }
    )


def info(index: _Index, json: Json = False) -> None:
    """Show what an index was made of, and check that its files are whole."""
    from ternarize_cli.cli.output import Output, megabytes
    from ternarize_cli.index.search import check_index

    out = Output(json_mode=json)
    payload = _payload(check_index(index))
    rows = [
        (key, value if key != "bytes" else megabytes(value))
        for key, value in payload.items()
        if not isinstance(value, dict)
    ]
    out.table(str(index), ("field", "value"), rows)
    out.result(payload)


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

    Exact search, IVF, LSH, HNSW, PQ and RaBitQ: precision, nDCG, recall, milliseconds and
    bytes; also with the student's queries against the teacher's documents.
    """
    import dataclasses

    from ternarize_cli.cli.output import Output
    from ternarize_cli.evaluation.retrieval import read_retrieval

    out = Output(json_mode=json, quiet=quiet)
    read = read_retrieval(data, data.name)

    from ternarize_cli.index.compare import compare_indexes

    report = compare_indexes(read, model, teacher, backend=backend, device=device, threads=threads, track=out.track)
    out.table(
        f"{data}: {report.documents} documents, {report.queries} queries, {report.threads} threads",
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
    out.table("searching", columns, rows, caption="recall: of what exact search finds among the same vectors")
    out.result(dataclasses.asdict(report))


def _payload(record: object) -> dict:
    import dataclasses

    fields = dataclasses.asdict(record)  # type: ignore[call-overload]
    return fields | {"bytes": sum(file["bytes"] for file in fields["files"].values())}


def _work(report: object) -> dict:
    import dataclasses

    fields = dataclasses.asdict(report)  # type: ignore[call-overload]
    return {key: fields[key] for key in ("shards", "reused", "tokens", "skipped")}


def _settings(settings: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in settings.items()) or "nothing to set"


def _shortened(text: str, width: int = 100) -> str:
    line = " ".join(text[: 2 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"
