"""Digests of files and folders, by which models, indexes and cached results are told apart."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["content_hash", "json_digest", "sha256", "tree_hash"]


def sha256(path: Path) -> str:
    """Computes the sha256 of a file's content: 64 hex digits."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def json_digest(values: Mapping[str, Any]) -> str:
    """Computes the sha256 of an object's JSON, written with sorted keys and no blanks: 64 hex digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def content_hash(folder: Path) -> str:
    """Computes a digest of the files of a model folder that decide its vectors: weights, configs and tokenizer.

    READMEs, images and hidden files are left out, so editing a model card keeps the digest. Returns 64 hex digits.
    """
    return tree_hash(folder, _counts)


def tree_hash(folder: Path, counts: Callable[[Path], bool]) -> str:
    r"""Computes a digest of a folder: the sha256 over a line `PATH\0SHA256\n` for each file, sorted by path.

    Args:
        folder: the folder.
        counts: tells by the path of a file, relative to `folder`, whether the file is part of the digest.

    Returns:
        64 hex digits.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and counts(p.relative_to(folder))):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return digest.hexdigest()


def _counts(relative: Path) -> bool:
    return relative.suffix in (".safetensors", ".bin", ".json", ".txt", ".model") and not any(
        part.startswith(".") for part in relative.parts
    )
