"""Where the files of the wheel lie that this package was copied into."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, UnavailableError

__all__ = ["FOLDER", "PACKAGE", "about", "reading"]

PACKAGE = Path(__file__).resolve().parents[3]
"""The folder of the wheel's package."""
FOLDER = PACKAGE / "model"
"""The folder of the packed model."""


@cache
def about() -> dict[str, Any]:
    """Returns what about.json holds.

    kind: "encoder", "reranker" or "classifier"; reads: "text", "image" or both; instruction_set: the one that computed
    the results; texts: the texts, or pairs of texts, that are compared; results: what was computed for them or, if the
    model reads images only, for images that are made for it.
    """
    found: dict[str, Any] = json.loads((PACKAGE / "about.json").read_text(encoding="utf-8"))
    return found


@contextmanager
def reading() -> Iterator[None]:
    """Gives errors about the files of the wheel, which the body reads, the hint to install the wheel again.

    Raises:
        CheckpointError: a file of the model is missing or damaged.
        UnavailableError: the compiled library is missing or can't be loaded; or TERNARIZE_NATIVE_ISA names an
            instruction set that is not there, whose hint is kept.
    """
    try:
        yield
    except (CheckpointError, UnavailableError) as e:
        if "TERNARIZE_" not in str(e):
            e.hint = "install the package again: pip install --force-reinstall WHEEL"
        raise
