"""Defines `ternarize eval`, which scores a model on tasks, alone or against a teacher and rivals."""

import dataclasses
import shlex
import sys

import typer

from ternarize_cli.cli.derived import derived
from ternarize_cli.cli.options import Force, Json, ModelArgument, Quiet, Revision
from ternarize_cli.cli.output import Output
from ternarize_cli.evaluation.options import EvaluationOptions
from ternarize_cli.evaluation.report_files import EvaluationFiles

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Adds the command to `app`."""
    app.command("eval")(derived(_evaluate))


def _evaluate(
    model: ModelArgument,
    options: EvaluationOptions,
    files: EvaluationFiles,
    revision: Revision = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score a model on your files, and measure what it kept.

    The metrics are MTEB's. --against compares the scores with those of the full-precision model, with 95% intervals.
    """
    from ternarize_cli import evaluate
    from ternarize_cli.cli.evaluation_output import payload, show
    from ternarize_cli.encoders.hub import pinned
    from ternarize_cli.storage.files import existing

    out = Output(json_mode=json, quiet=quiet)
    model = pinned(model, revision)
    options.check()
    files.check(model, force=force, inputs=existing(*options.reads(model), *([files.bench] if files.bench else [])))
    options = dataclasses.replace(options, costs=options.costs or files.need_costs)
    found = evaluate(model, options, say=out.note, warn=out.warn, track=out.track)
    show(out, found)
    out.result(payload(found, found.hashes, options.seed))
    command = shlex.join(["ternarize", *sys.argv[1:]])
    for path in files.write(model, found, command=command, force=force, warn=out.warn):
        out.text(f"wrote {path}")
    found.check_gates()
