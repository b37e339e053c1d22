"""Where the files of the wheel lie that this package was copied into."""

import json
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "PACKAGE", "about"]

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
