"""Options that the commands of `ternarize index` share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ternarize_cli.cli.options import MAX_BATCH

__all__ = ["BatchSize", "Index", "refuse_unused"]

BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, max=MAX_BATCH, help="Texts per forward pass; default: as many as make 8,192 tokens."
    ),
]
Index = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that `index build` wrote.")]


def refuse_unused(corpus: str, given: Mapping[str, object]) -> None:
    """Refuses flags of encoding where the corpus is vectors.

    Args:
        corpus: as it was typed.
        given: flag → what it was set to; what counts as nothing was not given.

    Raises:
        InputError: as said.
    """
    from ternarize_cli.errors import InputError

    if unused := [flag for flag, value in given.items() if value]:
        raise InputError(f"{corpus} holds vectors, and nothing is encoded", hint=f"leave {' and '.join(unused)} out")
