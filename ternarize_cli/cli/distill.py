"""`ternarize distill`."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ternarize_cli.cli.options import MANY, MAX_BATCH, Device, Force, Json, OutputFolder, Quiet, Seed, Threads
from ternarize_cli.cli.output import Output, counted, duration

if TYPE_CHECKING:
    from ternarize_cli.distill import Progress

__all__ = ["register"]

_BUDGETS = ("minutes", "steps", "epochs")


def distill(
    context: typer.Context,
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A ternary checkpoint, or a model to make one of.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="FILE|DIR|DATASET",
            help="Texts (plain, JSONL, Parquet, hub dataset; - is stdin) or images; repeatable.",
        ),
    ],
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", metavar="MODEL", help="The full-precision model that STUDENT came from."),
    ] = None,
    output: OutputFolder = None,
    minutes: Annotated[float | None, typer.Option(help="Budget of training time; 10 if no other budget.")] = None,
    steps: Annotated[
        int | None, typer.Option(max=MANY, help="Budget in steps instead: reproducible to the byte.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Budget in passes over the data instead.")] = None,
    recipe: Annotated[str, typer.Option(help="full, or paper (output error only, as published).")] = "full",
    loss: Annotated[
        list[str] | None, typer.Option("--loss", metavar="PART=WEIGHT", help="Weigh a part of the loss; 0: leave out.")
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_BATCH, help="Texts or images per step and process; default 64, on a GPU 256."),
    ] = None,
    auto_batch: Annotated[
        bool, typer.Option("--auto-batch", help="Halve batches that don't fit the GPU, and accumulate more.")
    ] = False,
    accumulate: Annotated[int, typer.Option(min=1, max=10_000, help="Batches to a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 3e-4,
    max_length: Annotated[
        int | None, typer.Option(min=2, max=1_000_000, help="Tokens per text; default: the model's limit, up to 512.")
    ] = None,
    joined: Annotated[
        float | None, typer.Option(help="Share of tokens in texts joined to longer ones; default .1.")
    ] = None,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", help="How often a --data is seen, one for each; default: once.")
    ] = None,
    samples: Annotated[
        int, typer.Option(min=20, max=MANY, help="At most so many texts or images from a --data.")
    ] = 2_000_000,
    cache_teacher: Annotated[
        Path | None,
        typer.Option(
            "--cache-teacher", metavar="DIR", help="Keep the teacher's embeddings here; needs --loss hidden=0."
        ),
    ] = None,
    pack: Annotated[bool, typer.Option("--pack", help="Write the packed model, not a checkpoint.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run left off.")] = False,
    save_every: Annotated[float, typer.Option(min=0, help="Seconds between checkpoints for --resume.")] = 120.0,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw losses and cosine over the steps.")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    force: Force = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a ternary checkpoint to match its original.

    The full-precision model it came from is the teacher, your texts or images are the data; no labels are needed. The
    result is in ./NAME-distilled. A full-precision STUDENT is made ternary first, and is its own teacher. Ctrl-C stops
    after the step, and --resume goes on; `accelerate launch -m ternarize_cli distill …` uses several GPUs.
    """
    from ternarize_cli.distill import Sources, Training
    from ternarize_cli.distill import distill as run
    from ternarize_cli.distill.journal import METRICS, read_metrics
    from ternarize_cli.distill.training_figure import plot_training
    from ternarize_cli.encoders.checkpoint import artifact_of
    from ternarize_cli.encoders.loading import model_name, resolve
    from ternarize_cli.errors import InputError
    from ternarize_cli.measuring import figures
    from ternarize_cli.storage.files import content_hash

    out = Output(json_mode=json, quiet=quiet)
    if plot is not None:
        figures.check_plot(plot, force=force)
    minutes, steps, epochs = _budget(context, minutes, steps, epochs)
    training = Training(
        minutes=minutes,
        steps=steps,
        epochs=epochs,
        recipe=recipe,
        losses=_weights(loss or []),
        batch_size=batch_size,
        auto_batch=auto_batch,
        accumulate=accumulate,
        learning_rate=learning_rate,
        max_length=max_length,
        joined=joined,
        seed=seed,
        save_every=save_every,
    )
    source = resolve(student)
    made_from = artifact_of(source)
    if teacher is None and made_from is not None:
        raise InputError(f"{student} is a ternary checkpoint; its teacher is missing", hint="--teacher MODEL")
    guide = source if teacher is None else resolve(teacher)
    target = output or Path(f"{model_name(student).removesuffix('-ternary')}-distilled")
    if made_from is not None and made_from.source_sha256 != content_hash(guide):
        out.warn(f"{student} was not converted from {teacher}: their content hashes differ")
    with _hint_on_interrupt(out, target), _Meter(out) as meter:
        report = run(
            source,
            guide,
            Sources(data, tuple(weight) if weight else None, samples),
            target,
            training,
            packed=pack,
            cache=cache_teacher,
            resume=resume,
            force=force,
            device=device,
            threads=threads,
            on_step=meter,
            track=out.track,
        )
    if not _is_main():
        return
    if report.resumed_at:
        out.note(f"went on from step {report.resumed_at:,}")
    if auto_batch:
        out.note(f"batches of {report.batch_size}, {report.accumulate} to a step")
    rows = [
        ("cosine to the teacher", f"{report.cosine_before:.4f}", f"{report.cosine_after:.4f}"),
        ("agreement of similarities", f"{report.agreement_before:.4f}", f"{report.agreement_after:.4f}"),
    ]
    seen = f"{counted(report.steps, 'step')}, {counted(report.texts, 'input')} in {duration(report.seconds)}"
    out.table(
        f"{model_name(student)}: {seen}; {counted(report.held_out, 'held-out input')}",
        ["held-out data", "before", "after"],
        rows,
    )
    if report.cosine_after < report.cosine_before:
        out.warn("training has made the model worse; try a lower --learning-rate, such as 1e-5, or more data")
    if plot is not None:
        plot_training(read_metrics(target / METRICS), model_name(student), plot, force=force)
        out.text(f"wrote {plot}")
    out.text(f"wrote {target}")
    out.hint(f"ternarize eval {target}" if pack else f"ternarize pack {target}")
    out.result({"output": str(target), **vars(report)})


class _Meter(ExitStack):
    """Shows progress from the first step on; before, reading has bars of its own."""

    def __init__(self, out: Output) -> None:
        super().__init__()
        self.out = out
        self.update: Callable[[float, str], None] | None = None

    def __call__(self, progress: "Progress") -> None:
        if self.update is None:
            self.update = self.enter_context(self.out.meter("distilling"))
        self.update(progress.done, progress.line())


@contextmanager
def _hint_on_interrupt(out: Output, target: Path) -> Iterator[None]:
    from ternarize_cli.distill.checkpointing import has_checkpoint
    from ternarize_cli.storage.files import partial_path

    try:
        yield
    except KeyboardInterrupt:
        if has_checkpoint(partial_path(target)):
            out.hint("the same command with --resume goes on from here")
        raise


def _is_main() -> bool:
    """Whether this is the process that writes, where accelerate has started several."""
    from accelerate import PartialState

    return bool(PartialState().is_main_process)


def _weights(texts: list[str]) -> dict[str, float]:
    weights = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            weights[name] = float(value) if equals else 1.0
        except ValueError as e:
            raise typer.BadParameter(f"{text!r} is not PART=WEIGHT", param_hint="--loss") from e
    return weights


def _budget(
    context: typer.Context, minutes: float | None, steps: int | None, epochs: float | None
) -> tuple[float | None, int | None, float | None]:
    """A budget given by flag beats one from the environment, which beats one from the settings file."""
    given = {n: v for n, v in zip(_BUDGETS, (minutes, steps, epochs), strict=True) if v is not None}
    if not given:
        return 10.0, None, None
    strength = {"COMMANDLINE": 3, "ENVIRONMENT": 2, "DEFAULT_MAP": 1}
    strengths = {n: strength.get(getattr(context.get_parameter_source(n), "name", ""), 0) for n in given}
    strongest = max(strengths.values())
    kept = {n for n in given if strengths[n] == strongest}
    return (
        minutes if "minutes" in kept else None,
        steps if "steps" in kept else None,
        epochs if "epochs" in kept else None,
    )


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("distill")(distill)
