"""Defines the options that several commands of `ternarize index` share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.derived import Only
from ternarize_cli.vectors.options import EncoderOptions

__all__ = ["Index", "SomeEncoderOptions", "refuse_unused"]

SomeEncoderOptions = Annotated[EncoderOptions, Only("batch_size", "backend", "device", "threads")]
Index = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that `index build` wrote.")]


def refuse_unused(corpus: str, given: Mapping[str, object]) -> None:
    """Checks that no option of encoding is given for a corpus of vectors, where nothing is encoded.

    Args:
        corpus: the corpus as the user typed it.
        given: the value of each flag; None or False if the flag was not given.

    Raises:
        InputError: a flag was given.
    """
    from ternarize_cli.errors import InputError

    if unused := [flag for flag, value in given.items() if value]:
        raise InputError(f"{corpus} holds vectors, and nothing is encoded", hint=f"leave {' and '.join(unused)} out")
