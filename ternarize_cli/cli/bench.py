"""Defines `ternarize bench`, which measures a packed model's backends and full-precision rivals on this machine."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.bench.options import BenchFiles, BenchOptions
from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, Quiet, Revision
from ternarize_cli.errors import InputError

if TYPE_CHECKING:
    from ternarize_cli.cli.output import Output

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("bench")(derived(_bench))


def _bench(
    model: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder, hub id or package:NAME, packed or not; without one, a model of random weights is measured. "
            "With --compare: two or more reports.",
            show_default=False,
        ),
    ] = None,
    *,
    options: BenchOptions,
    files: BenchFiles,
    revision: Revision = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Measure nothing: compare reports of --json with the first of them."),
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed, bytes, memory and start-up time against rivals.

    Times the transformer's forward pass (token ids or pixels to last hidden states) of all
    candidates in one process, with the same threads, interleaved call by call. Batches hold
    random tokens without padding, and with --lengths also texts of a file; for an image
    encoder they hold random images of the size that it reads. On a GPU, CUDA events also
    time these calls on the device. A MODEL that is not packed is first converted and packed
    in a temporary folder.

    --text instead encodes all texts of a file with each candidate: tokenisation, batches by
    length, forward pass, pooling and normalisation, by SentenceTransformer.encode.

    --compare compares earlier reports: ternarize bench --compare before.json after.json
    """
    from ternarize_cli.cli.output import Output
    from ternarize_cli.storage.files import existing

    out = Output(json_mode=json, quiet=quiet)
    if compare:
        for option in files.by_option:
            raise InputError(
                f"{option} writes a measurement, and --compare measures nothing", hint="--json prints the comparison"
            )
        _compare(out, [Path(name) for name in model or ()])
        return
    if model and len(model) > 1:
        raise InputError(
            f"bench measures one MODEL, not {len(model)}: {' '.join(model)}",
            hint="one run for each with --json > NAME.json, then: ternarize bench --compare NAME.json …",
        )
    if revision is not None and not model:
        raise InputError("--revision belongs to a MODEL, and none is given", hint="leave --revision out")
    options.check(random=not model)
    read = (*(model or ()), options.teacher, options.text, options.lengths)
    files.check(force=force, inputs=existing(*(name for name in read if name is not None)))

    from ternarize_cli.bench.report import machine_line, tables
    from ternarize_cli.bench.report_files import write_files
    from ternarize_cli.bench.run import benchmark
    from ternarize_cli.encoders.hub import pinned

    report = benchmark(pinned(model[0], revision) if model else None, options, say=out.note, track=out.track)
    for table in tables(report):
        out.table(table.title, table.columns, table.rows, caption=table.caption)
    out.text(machine_line(report.machine))
    out.result(report.to_dict())
    for path in write_files(files, report, shlex.join(["ternarize", *sys.argv[1:]]), force=force):
        out.note(f"wrote {path}")
    if report.busy:
        before, during = report.machine["others_percent_before"], report.machine["others_percent_during"]
        out.warn(
            f"the machine was busy: other processes used {before:.0f}% of a core before the measurement and "
            f"{during:.0f}% during it; do not quote these times, and measure again on a quiet machine"
        )


def _compare(out: "Output", paths: list[Path]) -> None:
    from ternarize_cli.bench.report_comparison import compare, comparison_table

    found = compare(paths)
    table = comparison_table(found)
    out.table(table.title, table.columns, table.rows, caption=table.caption)
    out.result(found.to_dict())
    for text in found.warnings:
        out.warn(text)
