"""`ternarize distill`."""

from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.options import Device, Force, Json, OutputFolder, Quiet, Seed, Threads
from ternarize_cli.cli.output import Output

__all__ = ["register"]


def distill(
    context: typer.Context,
    student: Annotated[str, typer.Argument(metavar="STUDENT", help="A ternary checkpoint, from convert.")],
    teacher: Annotated[str, typer.Option("--teacher", metavar="MODEL", help="The full-precision model it came from.")],
    data: Annotated[
        list[str], typer.Option("--data", metavar="FILE", help="Texts, one per line or JSONL; - is stdin; repeatable.")
    ],
    output: OutputFolder = None,
    minutes: Annotated[float | None, typer.Option(help="Budget of training time; 10 if no --steps.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps instead: reproducible to the byte.")] = None,
    recipe: Annotated[str, typer.Option(help="full, or paper (output error only, as published).")] = "full",
    batch_size: Annotated[int, typer.Option(min=1, help="Texts per step.")] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak of the schedule.")] = 3e-4,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens per text; longer ones are cut.")] = 64,
    device: Device = None,
    threads: Threads = None,
    force: Force = False,
    seed: Seed = 0,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a ternary checkpoint to match its original.

    The full-precision model it came from is the teacher, your texts are the data; no labels are needed. The result is
    in ./NAME-distilled.
    """
    from ternarize_cli.checkpoint import artifact_of
    from ternarize_cli.distill import Training
    from ternarize_cli.distill import distill as run
    from ternarize_cli.files import content_hash
    from ternarize_cli.models import model_name, resolve
    from ternarize_cli.texts import read_lines

    out = Output(json_mode=json, quiet=quiet)
    minutes, steps = _budget(context, minutes, steps)
    training = Training(minutes, steps, recipe, batch_size, learning_rate, max_length, seed)
    source, guide = resolve(student), resolve(teacher)
    target = output or Path(f"{model_name(student).removesuffix('-ternary')}-distilled")
    made_from = artifact_of(source)
    if made_from is not None and made_from.source_sha256 != content_hash(guide):
        out.warn(f"{student} was not converted from {teacher}: their content hashes differ")
    texts = read_lines(data)
    with out.meter("distilling") as update:
        report = run(
            source,
            guide,
            texts,
            target,
            training,
            force=force,
            device=device,
            threads=threads,
            on_step=lambda p: update(p.done, p.line()),
        )
    out.table(
        f"{model_name(student)}: {report.steps} steps, {report.texts:,} texts in {report.seconds / 60:.1f} minutes",
        ["cosine to the teacher", "before", "after"],
        [(f"{report.held_out} held-out texts", f"{report.cosine_before:.4f}", f"{report.cosine_after:.4f}")],
    )
    if report.cosine_after < report.cosine_before:
        out.warn("training has made the model worse; try a lower --learning-rate, such as 1e-5, or more data")
    out.text(f"wrote {target}")
    out.hint(f"ternarize pack {target}")
    out.result({"output": str(target), **vars(report)})


def _budget(context: typer.Context, minutes: float | None, steps: int | None) -> tuple[float | None, int | None]:
    """A budget given by flag beats one from the environment, which beats one from the settings file."""
    if minutes is None and steps is None:
        return 10.0, None
    if minutes is not None and steps is not None:
        strength = {"COMMANDLINE": 3, "ENVIRONMENT": 2, "DEFAULT_MAP": 1}
        by_name = {n: getattr(context.get_parameter_source(n), "name", "") for n in ("minutes", "steps")}
        first, second = (strength.get(by_name[n], 0) for n in ("minutes", "steps"))
        if first != second:
            return (minutes, None) if first > second else (None, steps)
    return minutes, steps


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("distill")(distill)
