"""Defines `ternarize compress`, which goes the whole way from an encoder to a packed model with a card."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, OptionalModel, Quiet, output_folder
from ternarize_cli.cli.output import Output, duration, megabytes
from ternarize_cli.distill.options import BUDGETS
from ternarize_cli.errors import InputError, quoted
from ternarize_cli.pipeline.options import OF_THE_MACHINE, CompressOptions

if TYPE_CHECKING:
    from ternarize_cli.pipeline.recipe import Recipe
    from ternarize_cli.pipeline.session import CompressReport

__all__ = ["register"]


def _over(recipe: "Recipe", options: CompressOptions, context: typer.Context) -> CompressOptions:
    """Returns a recipe's options, changed by those that were typed or that the environment sets."""

    def typed(name: str) -> bool:
        return getattr(context.get_parameter_source(name), "name", "") in ("COMMANDLINE", "ENVIRONMENT")

    names = {field.name for field in fields(CompressOptions)}
    ours = {name for name in names if typed(name) or name in OF_THE_MACHINE}
    if ours & set(BUDGETS):
        ours |= set(BUDGETS)
    if "tier" in ours:
        ours |= {"levels", "bits"}
    elif ours & {"levels", "bits"}:
        ours.add("tier")
    return replace(recipe.options, **{name: getattr(options, name) for name in ours})


def _compress(
    context: typer.Context,
    model: OptionalModel = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="FILE|DIR|DATASET",
            help="Texts or images like those that the model will see, to calibrate and distill with, or starter: texts "
            "of this machine; repeatable.",
        ),
    ] = None,
    output: Annotated[Path | None, output_folder("./NAME-packed")] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            "--recipe",
            metavar="FILE.toml",
            help="Repeat a run from its recipe.toml; options beside it change single values.",
        ),
    ] = None,
    *,
    options: CompressOptions,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a stopped run left off.")] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Go the whole way from an encoder to a packed model with a card.

    Calibrates and distils MODEL on your texts or images, packs it, and with --sts, --retrieval or --classification
    scores it against the original. The folder also gets recipe.toml, which repeats the run. A run that was stopped
    goes on with --resume.
    """
    from ternarize_cli import compress
    from ternarize_cli.cli.distill import Meter
    from ternarize_cli.encoders.loading import model_name
    from ternarize_cli.pipeline.recipe import read_recipe

    out = Output(json_mode=json, quiet=quiet)
    known = None if recipe is None else read_recipe(recipe)
    if known is not None:
        model, data = model or known.model, data or list(known.data)
        options = _over(known, options, context)
    if model is None or not data:
        raise InputError(
            "compress needs a model and data", hint="ternarize compress MODEL --data texts.txt, or --recipe recipe.toml"
        )
    target = output or Path(f"{model_name(model)}-packed")

    @contextmanager
    def step(title: str) -> Iterator[None]:
        out.note(f"• {title}")
        yield

    with _hint_on_interrupt(out, target), Meter(out) as meter:
        report = compress(
            model,
            data,
            target,
            options,
            digests={} if known is None else known.digests,
            resume=resume,
            force=force,
            step=step,
            on_training=meter,
            warn=out.warn,
            track=out.track,
        )
    _show(out, report, target)
    report.check_gates()


def _show(out: Output, report: "CompressReport", target: Path) -> None:
    from ternarize_cli.cli import evaluation_output

    packed, distilled = report.packed, report.distilled
    rows = [
        ("weights", megabytes(report.bytes_source), megabytes(packed["bytes_packed"])),
        ("calibration", "", duration(report.converted["seconds"])),
    ]
    if distilled is not None:
        before, after = (f"{distilled[name]:.4f}" for name in ("cosine_before", "cosine_after"))
        rows += [
            ("distillation", "", duration(distilled["seconds"])),
            ("cosine to the original, untrained and trained", before, after),
        ]
    out.table(report.recipe.model, ["", "before", "after"], rows)
    if distilled is not None and distilled["ended_by"] == "until":
        out.note(f"training ended before its {distilled['budget']}: a reading reached --until {distilled['until']:g}")
    facts: dict[str, Any] = {
        "output": str(target),
        "recipe": {"model": report.recipe.model, "data": list(report.recipe.data), **report.recipe.settings()},
        "digests": dict(report.recipe.digests),
        "bytes_source": report.bytes_source,
        "convert": report.converted,
        "distill": distilled,
        "pack": packed,
        "eval": None,
    }
    if (found := report.evaluation) is not None:
        evaluation_output.show(out, found)
        facts["eval"] = evaluation_output.payload(found, found.hashes, report.recipe.options.seed)
    out.text(f"wrote {target}, with README.md and recipe.toml")
    out.hint(f"ternarize publish {quoted(target)} OWNER/NAME --dry-run")
    out.result(facts)


@contextmanager
def _hint_on_interrupt(out: Output, target: Path) -> Iterator[None]:
    from ternarize_cli.pipeline.stages import has_stages

    try:
        yield
    except KeyboardInterrupt:
        if has_stages(target):
            out.hint("repeat the command with --resume to go on from here")
        raise


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("compress")(derived(_compress))
