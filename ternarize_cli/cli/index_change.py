"""Defines `ternarize index add`, `delete` and `compact`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli.index_options import Index, SomeEncoderOptions, refuse_unused
from ternarize_cli.cli.options import Json, Quiet, SkipBad, Threads
from ternarize_cli.errors import counted, quoted

if TYPE_CHECKING:
    from ternarize_cli.cli.output import Output
    from ternarize_cli.index.change import ChangeReport

__all__ = ["add", "compact", "delete"]

_MANY = 0.25


def add(
    index: Index,
    corpus: Annotated[
        str,
        typer.Argument(
            metavar="CORPUS|DIR",
            help="Documents in any form that `index build` reads, or vectors of the index's model; texts without ids "
            "get the ids FILE:LINE.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="MODEL", help="The index's own model, if it has moved.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace documents of the index that have the id of a new one.")
    ] = False,
    skip_bad: SkipBad = False,
    *,
    encoder: SomeEncoderOptions,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode documents and add them to an index. If the command is killed, the index stays as it was."""
    from ternarize_cli.cli.output import Output
    from ternarize_cli.index.add import add_documents
    from ternarize_cli.vectors.vector_folder import holds_vectors

    out = Output(json_mode=json, quiet=quiet)
    if corpus != "-" and holds_vectors(corpus):
        given = {"--model": model, "--skip-bad": skip_bad, "--batch-size": encoder.batch_size}
        refuse_unused(corpus, given | {"--device": encoder.device, "--backend": encoder.backend != "auto"})
    report = add_documents(
        index,
        corpus,
        model=model,
        replace_known=replace,
        skip_bad=skip_bad,
        encoder=encoder,
        track=out.track,
    )
    if report.skipped is not None and report.skipped.summary:
        out.warn(report.skipped.summary)
    if report.truncation:
        out.warn(report.truncation)
    again = f", of which {report.replaced} replaced others" if report.replaced else ""
    out.text(f"{index}: {counted(report.added, 'document')} added{again}; {report.info.live} in all")
    _hint(out, index, report)
    out.result(_payload(index, report))


def delete(
    index: Index,
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Documents to delete.")] = None,
    ids_from: Annotated[
        list[str] | None,
        typer.Option("--ids", metavar="FILE|-", help="A file of ids, one per line; - is stdin; repeatable."),
    ] = None,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Ignore ids that the index does not have.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Delete documents: searches no longer find them. `index compact` removes them from the files."""
    from ternarize_cli.cli.output import Output
    from ternarize_cli.errors import InputError
    from ternarize_cli.index.change import delete_documents
    from ternarize_cli.index.documents import read_ids

    out = Output(json_mode=json, quiet=quiet)
    if "-" in (ids or []):
        raise InputError("- is no id", hint="--ids - reads ids from stdin")
    wanted = [*(ids or []), *read_ids(ids_from or [])]
    if not wanted:
        raise InputError("no ids were given", hint=f"ternarize index delete {quoted(index)} ID..., or --ids FILE")
    report = delete_documents(index, wanted, missing_ok=missing_ok)
    missing = f"; not in the index: {counted(report.missing, 'id')}" if report.missing else ""
    out.text(f"{index}: {counted(report.deleted, 'document')} deleted{missing}; {report.info.live} are left")
    _hint(out, index, report)
    out.result(_payload(index, report))


def compact(index: Index, threads: Threads = None, json: Json = False, quiet: Quiet = False) -> None:
    """Remove deleted documents from an index's files. A graph (hnsw) is built anew, other kinds are copied."""
    from ternarize_cli.cli.output import Output
    from ternarize_cli.index.change import compact_index

    out = Output(json_mode=json, quiet=quiet)
    report = compact_index(index, threads=threads)
    out.text(f"{index}: {counted(report.deleted, 'deleted document')} removed; {report.info.live} are left")
    out.result(_payload(index, report))


def _hint(out: "Output", index: Path, report: "ChangeReport") -> None:
    """Proposes to compact an index of which more than a quarter of the rows are deleted."""
    if report.info.deleted > _MANY * report.info.count and report.info.live:
        out.hint(
            f"ternarize index compact {quoted(index)}: {report.info.deleted} of {report.info.count} rows are deleted"
        )


def _payload(index: Path, report: "ChangeReport") -> dict[str, Any]:
    return {
        "index": str(index),
        "added": report.added,
        "deleted": report.deleted,
        "replaced": report.replaced,
        "missing": report.missing,
        "skipped": report.skipped.count if report.skipped else 0,
        "empty": report.skipped.empty if report.skipped else 0,
        "count": report.info.live,
        "rows": report.info.count,
    }
