"""Options that the commands of `ternarize index` share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["BatchSize", "Index"]

BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Texts per forward pass; default: as many as make 8,192 tokens."),
]
Index = Annotated[Path, typer.Argument(metavar="INDEX", help="A folder that `index build` wrote.")]
