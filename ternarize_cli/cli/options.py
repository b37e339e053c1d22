"""Options that several commands share, so that they read and behave alike everywhere."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "MANY",
    "MAX_BATCH",
    "AllowPickle",
    "Backend",
    "Device",
    "Force",
    "Json",
    "ModelArgument",
    "OutputFolder",
    "Quiet",
    "Seed",
    "Threads",
]

MANY = 1_000_000_000
"""The most that an option takes which says how many of something are used, where there is no better bound."""
MAX_BATCH = 1_000_000
"""The most that an option takes which says how many texts or images are worked on at once."""


def _checked(threads: int | None) -> int | None:
    if threads is None:
        return None
    from ternarize_cli.encoders.loading import checked_threads

    return checked_threads(threads)


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A folder, a hub id, or package:NAME for a checkpoint carried by a Python package."
    ),
]
OutputFolder = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="DIR", help="Where to write; see above for the default.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress bars.")]
Seed = Annotated[
    int,
    typer.Option("--seed", envvar="TERNARIZE_SEED", min=0, max=2**32 - 1, help="Seed of everything random; recorded."),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin too (weights only; still: trust its author).")
]
Backend = Annotated[
    str, typer.Option("--backend", envvar="TERNARIZE_BACKEND", help="Kernels to run on; `ternarize doctor` lists them.")
]
Device = Annotated[
    str | None,
    typer.Option("--device", envvar="TERNARIZE_DEVICE", help="cpu, cuda, cuda:1, …; default: what is there."),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        envvar="TERNARIZE_THREADS",
        min=1,
        callback=_checked,
        help="CPU threads, at most 4 a core; default: all cores.",
    ),
]
