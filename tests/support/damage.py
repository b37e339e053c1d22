"""Makes a damaged copy of a packed model, which every export has to refuse."""

import shutil
from pathlib import Path

__all__ = ["damage"]


def damage(packed: Path, copy: Path) -> None:
    """Copies a packed model to `copy`, and flips a bit near the end of its weights there."""
    shutil.copytree(packed, copy)
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
