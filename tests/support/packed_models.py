"""Packed models of texts, their settings, and the comparison of the runtime with backend `native` in PyTorch."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.families import Family, save_text, stages
from support.models import save_modules
from ternarize_cli import load
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.model_folder.integrity import seal
from ternarize_cli.runtime import Encoder

TEXTS = [
    "the cat on the house",
    "write",
    "a big red index of stone and light " * 30,
    "",
    "  spaced   out\tand\nbroken ",
    "Ünï the ÇAT, 日本語 fire 😀",
    "The River IS water: 42 of 64!",
    "fire fire fire",
    *(" ".join(["tree", "stone", "of", "vector"] * n) for n in range(1, 17)),
]


def packed_text(
    family: Family,
    folder: Path,
    scheme: Scheme | None = None,
    *,
    change: Callable[[Path], object] = lambda source: None,
) -> Path:
    """Packs a tiny model of a family as a folder of sentence-transformers, after `change` has changed its source."""
    source = save_text(family, folder / "source")
    save_modules(source, 32)
    if change is not None:
        change(source)
    return stages(source, folder, scheme)[2]


def variant(packed: Path, folder: Path, change: Callable[[Path], object], *, sealed: bool = True) -> Path:
    """Copies a packed model and changes the copy; if `sealed`, the copy gets a digest of its own."""
    shutil.copytree(packed, folder)
    change(folder)
    if sealed:
        seal(folder)
    return folder


def merge(path: Path, **values: Any) -> None:
    """Sets keys of a JSON object in a file, which is made if there is none; None takes a key out."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({k: v for k, v in {**found, **values}.items() if v is not None}))


class Both:
    """A packed model in PyTorch, on `native`, and in the runtime."""

    def __init__(self, packed: Path) -> None:
        self.theirs: Any = load(packed, backend="native")
        self.ours = Encoder(packed)
        assert type(self.theirs[0].auto_model.forward).__name__ == "NativeForward"

    def same(self, texts: Sequence[str] = TEXTS, **how: Any) -> np.ndarray:
        """Checks that the vectors are the same, bit for bit, and returns them."""
        wanted, made = self.theirs.encode(list(texts), **how), self.ours.encode(texts, **how)
        assert np.array_equal(made, wanted), abs(made - wanted).max()
        return made


def same(packed: Path, texts: Sequence[str] = TEXTS, **how: Any) -> np.ndarray:
    """Checks that the runtime gives the vectors of `native` in PyTorch, bit for bit, and returns them."""
    return Both(packed).same(texts, **how)
