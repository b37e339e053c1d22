"""`ternarize bench`: a packed model's backends against full-precision rivals, on this machine."""

from typing import Annotated

import typer

from ternarize_cli.cli.options import AllowPickle, Json, Quiet, Seed, Threads
from ternarize_cli.errors import InputError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("bench")(_bench)


def _bench(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A folder, hub id or package:NAME, packed or not; without one, a random BERT-base is measured.",
            show_default=False,
        ),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            "--backend", metavar="NAME", help="A kernel backend; repeatable. Default: all that run on this CPU."
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option("--against", metavar="NAME", help="A rival; repeatable. Default: torch-fp32 and torch-bf16."),
    ] = None,
    batch: Annotated[str, typer.Option("--batch", metavar="N,…", help="Batch sizes.")] = "1,8",
    tokens: Annotated[str, typer.Option("--tokens", metavar="N,…", help="Sequence lengths, padding-free.")] = "16,128",
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls per candidate and point.")] = 50,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Untimed calls before.")] = 2,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.0, help="Time budget per point; cuts the repeats, not below three.")
    ] = 10.0,
    memory: Annotated[bool, typer.Option(help="Measure peak memory, in a process per candidate.")] = True,
    threads: Threads = None,
    seed: Seed = 0,
    allow_pickle: AllowPickle = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure speed, bytes and memory against rivals.

    What is timed is the transformer's forward pass (token ids to last hidden state) on full-length batches of random
    tokens, all candidates in one process with the same threads, interleaved call by call. A MODEL that is not packed
    is converted and packed in a temporary folder first.
    """
    batches, lengths = _numbers(batch, "--batch"), _numbers(tokens, "--tokens")

    from ternarize_cli.bench.report import latency_table, machine_line, size_table
    from ternarize_cli.bench.run import DEFAULT_RIVALS, Plan, benchmark
    from ternarize_cli.cli.output import Output

    out = Output(json_mode=json, quiet=quiet)
    plan = Plan(
        backends=tuple(backend or ()),
        rivals=tuple(dict.fromkeys(against or DEFAULT_RIVALS)),
        batches=batches,
        tokens=lengths,
        repeats=repeats,
        seconds=seconds,
        warmup=warmup,
        threads=threads,
        memory=memory,
        seed=seed,
    )
    report = benchmark(model, plan, allow_pickle=allow_pickle, say=out.note, track=out.track)
    for table in (latency_table(report), size_table(report)):
        out.table(table.title, table.columns, table.rows, caption=table.caption)
    out.text(machine_line(report.machine))
    out.result(report.to_dict())
    if report.busy:
        before, during = report.machine["others_percent_before"], report.machine["others_percent_during"]
        out.warn(
            f"the machine was busy: other processes used {before:.0f}% of a core before the measurement and "
            f"{during:.0f}% during it; these times are not fit to be quoted"
        )


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """`1,8` → (1, 8)."""
    pieces = [piece.strip() for piece in text.split(",")]
    for piece in pieces:
        if not piece.isdecimal() or int(piece) < 1:
            raise InputError(
                f"{option} {text}: {piece!r} is no positive number", hint=f"numbers with commas between: {option} 1,8"
            )
    return tuple(dict.fromkeys(int(piece) for piece in pieces))
