"""Options that several commands share, so that they read and behave alike everywhere."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
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
    int, typer.Option("--seed", envvar="TERNARIZE_SEED", min=0, help="Seed of everything random; recorded.")
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
    int | None, typer.Option("--threads", envvar="TERNARIZE_THREADS", min=1, help="CPU threads; default: all cores.")
]
