"""`ternarize bench`: a packed model's backends against full-precision rivals, on this machine."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.cli.options import AllowPickle, Force, Json, Quiet, Seed, Threads
from ternarize_cli.errors import InputError, shown

if TYPE_CHECKING:
    from ternarize_cli.cli.output import Output

__all__ = ["register"]

_MOST = 1_000_000
"""The largest batch, length and number of calls."""


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("bench")(_bench)


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
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend", metavar="NAME", help="A kernel backend; repeatable. Default: all that run on the device."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            "--device",
            metavar="NAME",
            help="cpu, cuda, cuda:1, …; default: cuda if a backend runs nowhere else, else cpu.",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME",
            help="A rival, such as onnx-int8; repeatable; all: every one that can run here; none: no rival. Default: "
            "torch-fp32 and torch-bf16; on a GPU torch-fp32, torch-fp16 and torch-fp16-compiled.",
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="What the rivals run: the full-precision model that MODEL was made of. Default: MODEL's own weights.",
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape",
            metavar="NAME",
            help="The random model's: bert-base (default), vit-base or dinov2-base.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch", metavar="N,…", help="Batch sizes. Default: 1,8, and with --text 32.", show_default=False
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option("--tokens", metavar="N,…", help="Lengths of texts, padding-free. Default: 16,128."),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            "--lengths",
            metavar="FILE",
            help="Also time padded batches of these texts (one per line, or JSONL), with the lengths they have.",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Instead of all that: encode these texts, from strings to vectors, as users of each runtime do.",
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", min=1, max=_MOST, help="Timed calls per candidate and point.")
    ] = 50,
    warmup: Annotated[int, typer.Option("--warmup", min=0, max=_MOST, help="Untimed calls before.")] = 2,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="Time budget per point; cuts the repeats, not below three.")
    ] = 10.0,
    memory: Annotated[
        bool, typer.Option(help="Measure memory, load time and first pass too, in a process per candidate.")
    ] = True,
    energy: Annotated[
        bool, typer.Option("--energy", help="Measure joules per pass, too, where the GPU's driver counts them.")
    ] = False,
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write all rows as CSV, for spreadsheets.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the tables.")] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write one page with tables, machine and a plot (extra `plot`)."),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw how time grows over 3 batches or 4 lengths at least; PNG, SVG or PDF (extra `plot`).",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Measure nothing: set reports of --json beside the first of them."),
    ] = False,
    threads: Threads = None,
    seed: Seed = 0,
    allow_pickle: AllowPickle = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed, bytes, memory and start against rivals.

    What is timed is the transformer's forward pass (token ids or pixels to last hidden
    state), all candidates in one process with the same threads, interleaved call by call.
    Batches are of random tokens and full length, and with --lengths of texts, too; for an
    image encoder they are of random images of the size that it reads. On a GPU CUDA events
    time the same calls on the device, too. A MODEL that is not
    packed is converted and packed in a temporary folder first.

    With --text all texts of a file are encoded: tokenised, put into batches by length, run,
    pooled and normalised, by SentenceTransformer.encode around each candidate.

    With --compare, instead: ternarize bench --compare before.json after.json
    """
    from ternarize_cli.cli.output import Output

    out = Output(json_mode=json, quiet=quiet)
    if compare:
        for option, path in {"--csv": csv, "--markdown": markdown, "--html": html, "--plot": plot}.items():
            if path is not None:
                raise InputError(f"{option} writes a measurement, and --compare measures nothing", hint="--json")
        _compare(out, [Path(name) for name in model or ()])
        return
    if model and len(model) > 1:
        raise InputError(
            f"bench measures one MODEL, not {len(model)}: {' '.join(model)}",
            hint="one run for each with --json > NAME.json, then: ternarize bench --compare NAME.json …",
        )
    if not model and teacher is not None:
        raise InputError("--teacher is what MODEL was made of, and no MODEL was given", hint="give MODEL, too")
    if model and shape is not None:
        raise InputError("--shape is that of a random model, and MODEL has its own", hint="leave one of them out")
    for option, value in {"--tokens": tokens, "--lengths": lengths}.items():
        if text is not None and value is not None:
            raise InputError(f"{option} is of forward passes, and --text encodes whole texts", hint="two runs")
    batches = _numbers(("1,8" if text is None else "32") if batch is None else batch, "--batch")
    numbers = None if tokens is None else _numbers(tokens, "--tokens")

    from ternarize_cli.bench.report import machine_line, tables
    from ternarize_cli.bench.report_files import Outputs
    from ternarize_cli.bench.run import Plan, benchmark
    from ternarize_cli.bench.shapes import DEFAULT, require

    random_shape = require(shape or DEFAULT)
    outputs = Outputs(csv, markdown, html, plot, force)
    outputs.check()
    if plot is not None and (text is not None or (len(batches) < 3 and len(numbers or ()) < 4)):
        raise InputError(
            "--plot draws how time grows over a grid of 3 batches or 4 lengths at least",
            hint="--batch 1,2,4,8,16,32 --tokens 128",
        )
    plan = Plan(
        backends=tuple(backend or ()),
        rivals=tuple(dict.fromkeys(against)) if against else None,
        batches=batches,
        tokens=numbers,
        repeats=repeats,
        seconds=seconds,
        warmup=warmup,
        threads=threads,
        memory=memory,
        seed=seed,
        lengths=lengths,
        text=text,
        device=device,
        energy=energy,
    )
    report = benchmark(
        model[0] if model else None,
        plan,
        allow_pickle=allow_pickle,
        teacher=teacher,
        shape=random_shape,
        say=out.note,
        track=out.track,
    )
    for table in tables(report):
        out.table(table.title, table.columns, table.rows, caption=table.caption)
    out.text(machine_line(report.machine))
    out.result(report.to_dict())
    for path in outputs.write(report, shlex.join(["ternarize", *sys.argv[1:]])):
        out.note(f"wrote {path}")
    if report.busy:
        before, during = report.machine["others_percent_before"], report.machine["others_percent_during"]
        out.warn(
            f"the machine was busy: other processes used {before:.0f}% of a core before the measurement and "
            f"{during:.0f}% during it; these times are not fit to be quoted"
        )


def _compare(out: "Output", paths: list[Path]) -> None:
    from ternarize_cli.bench.report_comparison import compare, comparison_table

    found = compare(paths)
    table = comparison_table(found)
    out.table(table.title, table.columns, table.rows, caption=table.caption)
    out.result(found.to_dict())
    for text in found.warnings:
        out.warn(text)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,8` → (1, 8)."""
    pieces = [piece.strip() for piece in text.split(",")]
    for piece in pieces:
        if not piece.isdecimal() or len(piece) > 9 or not 1 <= int(piece) <= _MOST:
            raise InputError(
                f"{option} {text[:80]}: {shown(piece)} is no positive number up to {_MOST:,}",
                hint=f"numbers with commas between: {option} 1,8",
            )
    return tuple(dict.fromkeys(int(piece) for piece in pieces))
