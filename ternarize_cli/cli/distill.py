"""Defines `ternarize distill`, which trains a ternary checkpoint to match its original."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, Quiet, output_folder
from ternarize_cli.cli.output import Output, duration
from ternarize_cli.distill.options import DistillOptions, Training
from ternarize_cli.errors import counted, quoted

if TYPE_CHECKING:
    from ternarize_cli.distill.options import Progress

__all__ = ["Meter", "register"]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("distill")(derived(_distill))


def _distill(
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A ternary checkpoint, or a model to make one of.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="FILE|DIR|DATASET",
            help="Texts (plain, JSONL, Parquet, hub dataset; - is stdin; starter: of this machine), pairs, images; "
            "repeatable.",
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="The full-precision model that STUDENT came from."),
    ] = None,
    output: Annotated[Path | None, output_folder("./NAME-distilled")] = None,
    *,
    training: Training,
    options: DistillOptions,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw losses and cosine over the steps.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a ternary checkpoint to match its original.

    The teacher is the full-precision model that STUDENT came from; the data are your texts or images, without labels.
    A cross-encoder learns its teacher's scores of pairs (CSV, TSV, JSONL, Parquet; texts alone are paired).
    The result is written to ./NAME-distilled. A full-precision STUDENT is made ternary first, and is its own teacher.
    Ctrl-C stops after the current step, and --resume continues from there. `accelerate launch -m ternarize_cli
    distill …` uses several GPUs.
    """
    from ternarize_cli import distill
    from ternarize_cli.distill.journal import METRICS, read_metrics
    from ternarize_cli.distill.result import setback, shortfall
    from ternarize_cli.distill.training_figure import plot_training
    from ternarize_cli.encoders.loading import model_name
    from ternarize_cli.measuring import figures

    out = Output(json_mode=json, quiet=quiet)
    if plot is not None:
        figures.check_plot(plot, force=force)
    target = output or Path(f"{model_name(student).removesuffix('-ternary')}-distilled")
    with _hint_on_interrupt(out, target), Meter(out) as meter:
        report = distill(
            student,
            data,
            target,
            teacher=teacher,
            training=training,
            options=options,
            force=force,
            on_step=meter,
            say=out.warn,
            track=out.track,
        )
    if not _is_main():
        return
    if report.resumed_at:
        out.note(f"went on from step {report.resumed_at:,}")
    if training.auto_batch:
        again = ", with gradient checkpointing" if report.gradient_checkpointing else ""
        out.note(f"trained with batches of {report.batch_size}, {report.accumulate} to a step{again}")
    cosine, agreement = ("cosine to the teacher", "agreement of similarities")
    if report.scores:
        cosine, agreement = ("correlation with the teacher's scores", "rank correlation (Spearman)")
    rows = [
        (cosine, f"{report.cosine_before:.4f}", f"{report.cosine_after:.4f}"),
        (agreement, f"{report.agreement_before:.4f}", f"{report.agreement_after:.4f}"),
    ]
    seen = f"{counted(report.steps, 'step')}, {counted(report.texts, 'input')} in {duration(report.seconds)}"
    out.table(
        f"{model_name(student)}: {seen}; {counted(report.held_out, 'held-out input')}",
        ["held-out data", "before", "after"],
        rows,
    )
    if report.left_out:
        out.warn(f"{counted(report.left_out, 'step')} changed nothing: gradients were not finite")
    if report.ended_by == "until":
        out.note(f"training ended before its {report.budget}: a reading reached --until {report.until:g}")
    for warning in (shortfall(vars(report)), setback(report.cosine_before, report.cosine_after)):
        if warning is not None:
            out.warn(warning)
    if plot is not None:
        plot_training(read_metrics(target / METRICS), model_name(student), plot, force=force)
        out.text(f"wrote {plot}")
    out.text(f"wrote {target}")
    out.hint(f"ternarize eval {quoted(target)}" if options.pack else f"ternarize pack {quoted(target)}")
    out.result({"output": str(target), **vars(report)})


class Meter(ExitStack):
    """Shows what was chosen for the training and its progress, from the first step on.

    Reading the data before has progress bars of its own.
    """

    def __init__(self, out: Output) -> None:
        super().__init__()
        self.out = out
        self.update: Callable[[float, str], None] | None = None

    def __call__(self, progress: "Progress") -> None:
        if self.update is None:
            self.out.note(progress.chosen)
            self.update = self.enter_context(self.out.meter("distilling"))
        self.update(progress.done, progress.line())


@contextmanager
def _hint_on_interrupt(out: Output, target: Path) -> Iterator[None]:
    from ternarize_cli.distill.training_checkpoint import has_checkpoint
    from ternarize_cli.storage.files import partial_path

    try:
        yield
    except KeyboardInterrupt:
        if has_checkpoint(partial_path(target)):
            out.hint("repeat the command with --resume to go on from here")
        raise


def _is_main() -> bool:
    """Returns whether this process prints the results: the main one of those that accelerate started."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)
