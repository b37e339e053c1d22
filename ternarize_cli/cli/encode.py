"""Defines `ternarize encode`, which reads texts or images and writes their vectors."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, ModelArgument, Quiet, Revision, SkipBad
from ternarize_cli.cli.output import Output, duration
from ternarize_cli.errors import InputError, counted, quoted
from ternarize_cli.vectors.options import EncoderOptions, ShardOptions

if TYPE_CHECKING:
    from ternarize_cli.vectors.session import EncodingReport, ShardingReport

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("encode")(derived(_encode))


def _encode(
    model: ModelArgument,
    source: Annotated[
        str,
        typer.Argument(
            metavar="[INPUT|-]",
            help="Texts: a line each, JSONL, JSON, CSV, TSV or Parquet; - is stdin; FILE:COLUMN names the column. For "
            "a model that reads images: a folder of images, or an IDX or Parquet file.",
        ),
    ] = "-",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE|DIR", help="The file or folder to write; default: stdout, JSONL."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="npy|jsonl|parquet", help="Default: by the suffix of FILE; for shards: parquet."
        ),
    ] = None,
    shards: Annotated[
        bool,
        typer.Option("--shards", help="Write numbered shards into a folder; repeating the command continues it."),
    ] = False,
    *,
    shard_options: ShardOptions,
    options: EncoderOptions,
    revision: Revision = None,
    skip_bad: SkipBad = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode texts or images with any model.

    Writes vectors to a .npy, .jsonl or .parquet file, or as JSONL to stdout. Input is read
    and written in chunks, in order, so it may be of any length, and the lines of a slow
    stream are encoded as they come. --shards writes a folder of numbered shards instead,
    which several jobs can share, and from which `index build DIR` makes an index.
    """
    from ternarize_cli.encoders.hub import pinned
    from ternarize_cli.measuring.process import began
    from ternarize_cli.storage import files
    from ternarize_cli.vectors.session import encode, encode_shards
    from ternarize_cli.vectors.vector_files import file_format

    out = Output(json_mode=json, quiet=quiet)
    model = pinned(model, revision)
    if shards or shard_options.shard is not None:
        if force:
            raise InputError(
                "there is nothing to force: --shards encodes changed shards again anyway", hint="leave --force out"
            )
        if output is None:
            raise InputError("--shards needs a folder to write", hint="-o DIR")
        written = dataclasses.replace(shard_options, format=format or "parquet")
        sharding = encode_shards(
            model, source, output, written, options, skip_bad=skip_bad, track=out.track, began=began()
        )
        _show_shards(out, sharding, output)
        return
    if shard_options != ShardOptions():
        raise InputError("--shard-size, --dtype, --engine and --workers need --shards", hint="--shards -o DIR")
    if output is not None:
        files.check_output(output, force=force, inputs=files.existing(model, source), folder=False)
    elif json:
        raise InputError("--json would mix the summary with the vectors on stdout", hint="-o FILE for the vectors")
    kind = file_format(output, format)
    if output is None and kind != "jsonl" and (kind == "parquet" or sys.stdout.isatty()):
        raise InputError(f"{kind} can't go to this stdout", hint="-o FILE")
    target = sys.stdout.buffer if output is None else output
    report = encode(
        model,
        source,
        target,
        kind,
        options,
        skip_bad=skip_bad,
        force=force,
        say=out.note,
        track=out.track,
        began=began(),
    )
    _show(out, report, model, output, kind)


def _show(out: Output, report: "EncodingReport", model: str, output: Path | None, kind: str) -> None:
    for text in (report.skipped.summary, report.repeated, report.truncation):
        if text:
            out.warn(text)
    pace = f" ({report.pace.summary})" if report.pace.count else ""
    out.note(f"{report.summary} in {report.seconds:.1f} s{pace}" + (f" → {output}" if output else ""))
    out.result(
        {
            "output": str(output),
            "format": kind,
            **report.counts,
            "skipped": report.skipped.count,
            "seconds": round(report.seconds, 3),
            **report.pace.numbers,
            "model": model,
            "model_sha256": report.model_sha256,
        }
    )


def _show_shards(out: Output, report: "ShardingReport", output: Path) -> None:
    for text in (report.skipped.summary, report.truncation):
        if text:
            out.warn(text)
    work, (job, jobs) = report.work, report.part
    of = f" of job {job}/{jobs}" if jobs > 1 else ""
    there = f"; {work.reused} were done before" if work.reused else ""
    pace = report.pace.summary if report.pace.count else f"{work.rows / max(report.seconds, 1e-9):,.0f}/s"
    out.note(
        f"{counted(work.shards, 'shard')}{of}, {counted(work.rows, 'vector')} in {duration(report.seconds)} "
        f"({pace}) → {output}{there}"
    )
    out.hint(f"ternarize index build {quoted(output)} -o INDEX")
    out.result(
        {
            "output": str(output),
            **dataclasses.asdict(work),
            "skipped": report.skipped.count,
            "empty": report.skipped.empty,
            "seconds": round(report.seconds, 3),
            **report.pace.numbers,
            **dataclasses.asdict(report.record),
        }
    )
