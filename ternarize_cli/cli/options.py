"""Defines the options that several commands share, so that they have one name and one meaning everywhere."""

from typing import Annotated, Any

import typer

from ternarize_cli.cli.derived import typer_option
from ternarize_cli.storage import command_option
from ternarize_cli.storage.command_option import MANY, MAX_BATCH

__all__ = [
    "MANY",
    "MAX_BATCH",
    "AllowPickle",
    "Backend",
    "Device",
    "Force",
    "Json",
    "ModelArgument",
    "NoCheck",
    "OptionalModel",
    "Quiet",
    "Revision",
    "Seed",
    "SkipBad",
    "Threads",
    "output_folder",
]

_MODEL = typer.Argument(
    metavar="MODEL",
    help="A folder, a hub id (owner/name, or owner/name@revision), or package:NAME for a checkpoint carried by a "
    "Python package.",
)
ModelArgument = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="REV", help="The branch, tag or commit of MODEL, a hub id; also written owner/name@REV."
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no notes and no progress bars.")]
Seed = Annotated[int, typer_option(command_option.SEED, "seed")]
AllowPickle = Annotated[bool, typer_option(command_option.ALLOW_PICKLE, "allow_pickle")]
Backend = Annotated[str, typer_option(command_option.BACKEND, "backend")]
Device = Annotated[str | None, typer_option(command_option.DEVICE, "device")]
Threads = Annotated[int | None, typer_option(command_option.THREADS, "threads")]
NoCheck = Annotated[bool, typer_option(command_option.NO_CHECK, "no_check")]
SkipBad = Annotated[bool, typer_option(command_option.SKIP_BAD, "skip_bad")]


def output_folder(default: str) -> Any:
    """Makes typer's description of `-o`, whose value is a folder.

    Args:
        default: what the folder is called if none is given, for the help.
    """
    return typer.Option("--output", "-o", metavar="DIR", help=f"The folder to write; default: {default}.")
