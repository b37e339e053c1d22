"""Defines `ternarize index build` and `info`; the group's other commands are in the modules `index_*`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli import index_change, index_search, index_tune
from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.help import Commands
from ternarize_cli.cli.index_options import Index, SomeEncoderOptions
from ternarize_cli.cli.options import Force, Json, Quiet, output_folder
from ternarize_cli.errors import counted, quoted
from ternarize_cli.index.options import IndexOptions

if TYPE_CHECKING:
    from ternarize_cli.index.format import IndexInfo

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the group of commands to `app`."""
    group = Commands(
        no_args_is_help=True, rich_markup_mode=None, help="Encode a corpus, index it with FAISS, and search it."
    )
    group.command("build")(derived(_build))
    group.command("tune")(index_tune.tune)
    group.command("search")(derived(index_search.search))
    group.command("add")(derived(index_change.add))
    group.command("delete")(index_change.delete)
    group.command("compact")(index_change.compact)
    group.command("info")(_info)
    group.command("compare")(index_tune.compare)
    app.add_typer(group, name="index")


def _build(
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS|DIR",
            help="Texts: a file with one per line, JSONL with `text`, Parquet, a folder of such files, or - for stdin; "
            "images, for a model that reads them; a dataset's hub id; or vectors that `encode --shards` wrote.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="Folder, hub id or package:NAME.")
    ] = None,
    output: Annotated[Path | None, output_folder("./NAME-index, after the corpus")] = None,
    *,
    options: IndexOptions,
    force: Force = False,
    encoder: SomeEncoderOptions,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode a corpus and write an index folder, by default ./CORPUS-index."""
    from ternarize_cli.cli.output import Output, megabytes
    from ternarize_cli.errors import InputError
    from ternarize_cli.storage import files

    out = Output(json_mode=json, quiet=quiet)
    if output is None:
        if corpus == "-":
            raise InputError("a corpus from stdin has no name to call the index after", hint="-o DIR")
        output = Path(f"{Path(corpus).stem}-index")
    files.check_output(output, force=force)

    from ternarize_cli import build_index

    report = build_index(corpus, output, model=model, options=options, encoder=encoder, force=force, track=out.track)
    if report.discarded:
        out.note("earlier unfinished work was of another model or shard size, and was discarded")
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
        + (f"; {report.reused} of {counted(report.shards, 'shard')} done before" if options.resume else "")
    )
    tunable = report.info.factory != "Flat" and report.info.count > 1
    ask = '"your query"' if report.info.kind == "text" else "--image FILE"
    out.hint(f"ternarize index tune {quoted(output)}" if tunable else f"ternarize index search {quoted(output)} {ask}")
    skipped = {"skipped": report.skipped.count, "empty": report.skipped.empty}
    work = {"shards": report.shards, "reused": report.reused, "tokens": report.tokens, **skipped}
    out.result({"output": str(output), **_payload(report.info), **work})


def _info(index: Index, json: Json = False) -> None:
    """Show what an index was made from, and check that its files are whole."""
    from ternarize_cli.cli.output import Output, megabytes
    from ternarize_cli.index.search import check_index

    out = Output(json_mode=json)
    info = check_index(index)
    payload = _payload(info)
    settings = ", ".join(f"{name} {value:g}" for name, value in info.search.items())
    out.table(
        str(index),
        ("field", "value"),
        [
            ("model", info.model),
            ("corpus", info.corpus),
            ("documents", f"{info.live:,}" + (f" ({info.deleted:,} more are deleted)" if info.deleted else "")),
            ("vectors", f"{info.dim} dimensions" + (", of length 1" if info.normalized else "")),
            ("metric", {"ip": "ip (inner product)", "l2": "l2 (squared distance)"}[info.metric]),
            ("factory", info.factory),
            *([("settings of searches", settings)] if settings else []),
            ("size", megabytes(payload["bytes"])),
            ("made by", f"ternarize {info.tool_version}"),
        ],
    )
    out.result(payload)


def _payload(record: "IndexInfo") -> dict[str, Any]:
    import dataclasses

    fields = dataclasses.asdict(record)
    return fields | {"count": record.live, "bytes": sum(file["bytes"] for file in fields["files"].values())}
