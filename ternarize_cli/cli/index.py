"""`ternarize index build | info`; the group's other commands are in the modules `index_*`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli import index_change, index_search, index_tune
from ternarize_cli.cli.index_options import BatchSize, Index
from ternarize_cli.cli.options import MANY, Backend, Device, Force, Json, OutputFolder, Quiet, Seed, Threads

if TYPE_CHECKING:
    from ternarize_cli.index.format import IndexInfo

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the group of commands."""
    group = typer.Typer(
        no_args_is_help=True, rich_markup_mode=None, help="Encode a corpus, index it with FAISS, and search it."
    )
    group.command("build")(build)
    group.command("tune")(index_tune.tune)
    group.command("search")(index_search.search)
    group.command("add")(index_change.add)
    group.command("delete")(index_change.delete)
    group.command("compact")(index_change.compact)
    group.command("info")(info)
    group.command("compare")(index_tune.compare)
    app.add_typer(group, name="index")


def build(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS|DIR",
            help="One text per line, JSONL with `text`, Parquet, or a folder of them; - is stdin; images, for a model "
            "that reads them; a dataset's hub id. Or vectors that `encode --shards` wrote.",
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
        bool, typer.Option("--skip-bad", help="Skip lines and images that can't be read, and count them.")
    ] = False,
    on_disk: Annotated[
        bool, typer.Option("--on-disk", help="Build an IVF index larger than memory: its lists stay on disk.")
    ] = False,
    shard_size: Annotated[
        int | None,
        typer.Option(
            "--shard-size",
            min=1,
            max=MANY,
            help="Rows per shard that --resume keeps; default: 8,192 texts, 1,024 images.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a build that was killed.")] = False,
    force: Force = False,
    batch_size: BatchSize = None,
    backend: Backend = "auto",
    device: Device = None,
    threads: Threads = None,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode a corpus and write an index folder; default output: CORPUS's name with -index."""
    from ternarize_cli.cli.output import Output, counted, megabytes
    from ternarize_cli.errors import InputError
    from ternarize_cli.storage import files

    out = Output(json_mode=json, quiet=quiet)
    if output is None:
        if corpus == "-":
            raise InputError("a corpus from stdin has no name to call the index after", hint="-o DIR")
        output = Path(f"{Path(corpus).stem}-index")
    files.check_output(output, force=force)

    from ternarize_cli import build_index
    from ternarize_cli.index.options import IndexOptions
    from ternarize_cli.vectors.options import EncoderOptions

    options = IndexOptions(factory, memory, metric, queries, skip_bad, on_disk, shard_size, resume, seed)
    encoder = EncoderOptions(batch_size, backend, device, threads)
    report = build_index(corpus, output, model=model, options=options, encoder=encoder, force=force, track=out.track)
    if report.discarded:
        out.note("the unfinished work was of another model or shard size; it was not used")
    if report.skipped.summary:
        out.warn(report.skipped.summary)
    if report.note:
        out.note(report.note)
    if report.truncation:
        out.warn(report.truncation)
    size = sum(file.bytes for file in report.info.files.values())
    made = report.info
    out.text(
        f"{output}: {counted(made.count, made.kind)}, {made.factory} index of {made.dim} dimensions, "
        f"{megabytes(size)}"
        + (f"; {report.reused} of {counted(report.shards, 'shard')} there already" if resume else "")
    )
    tunable = report.info.factory != "Flat" and report.info.count > 1
    ask = '"your query"' if report.info.kind == "text" else "--image FILE"
    out.hint(f"ternarize index tune {output}" if tunable else f"ternarize index search {output} {ask}")
    skipped = {"skipped": report.skipped.count, "empty": report.skipped.empty}
    work = {"shards": report.shards, "reused": report.reused, "tokens": report.tokens, **skipped}
    out.result({"output": str(output), **_payload(report.info), **work})


def info(index: Index, json: Json = False) -> None:
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


def _payload(record: "IndexInfo") -> dict[str, Any]:
    import dataclasses

    fields = dataclasses.asdict(record)
    return fields | {"count": record.live, "bytes": sum(file["bytes"] for file in fields["files"].values())}
