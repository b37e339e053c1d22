"""What stands in an index folder.

    index.faiss       the FAISS index; its row i is
    index.ivfdata     its lists, where they were built on disk
    documents.jsonl   line i: {"id": "…", "text": "…"}
    offsets.bin       where line i begins: int64, little-endian
    truth.npz         queries and their true neighbours, by which `index tune` judges (`truth`)
    deleted-N.bin     rows that are deleted, if any are: int64, little-endian, rising
    index.json        how the vectors were made, so that queries are encoded alike: the fields of `IndexInfo`

Sizes and digests of the others stand in the last, and a digest of itself (`records`). Opening an index compares the
sizes; `ternarize index info`, and what changes an index, compare the digests too. The name of deleted-N.bin, where N
counts its rows, changes with its content, so that a deletion takes effect when index.json is replaced.
"""

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ternarize_cli import files
from ternarize_cli.errors import DataError
from ternarize_cli.index.origin import Origin
from ternarize_cli.index.records import read_signed, signed

__all__ = [
    "DOCUMENTS",
    "FAISS_INDEX",
    "INFO",
    "LISTS",
    "OFFSETS",
    "TRUTH",
    "IndexInfo",
    "StoredFile",
    "check_files",
    "read_deleted",
    "read_info",
    "stored_file",
    "write_info",
]

FAISS_INDEX, DOCUMENTS, INFO = "index.faiss", "documents.jsonl", "index.json"
OFFSETS, TRUTH, LISTS = "offsets.bin", "truth.npz", "index.ivfdata"
_VERSION = 4
_AGAIN = "build it again: ternarize index build"


@dataclass(frozen=True)
class StoredFile:
    """Size and digest of a file of the index."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class IndexInfo(Origin):
    """The record of an index.

    `metric` is "ip" (inner product; larger is nearer) or "l2" (squared distance; smaller is nearer). `count` is the
    rows of the index, of which `deleted` are no longer found. `seed` drew the training sample, if there was one, and
    the queries of truth.npz. `preset` is the name that `factory` came from, if there was one; `search` the settings
    that searches use, chosen by `index tune`.
    """

    dim: int
    metric: str
    factory: str
    count: int
    corpus: str
    seed: int
    tool_version: str
    files: dict[str, StoredFile]
    preset: str = ""
    search: dict[str, float] = field(default_factory=dict)
    deleted: int = 0
    format_version: int = _VERSION

    @property
    def live(self) -> int:
        """How many documents can be found."""
        return self.count - self.deleted

    @property
    def deleted_file(self) -> str | None:
        """The name of the file of deleted rows; None without any."""
        return f"deleted-{self.deleted}.bin" if self.deleted else None


def stored_file(path: Path) -> StoredFile:
    """Size and digest of a file as it is."""
    return StoredFile(path.stat().st_size, files.sha256(path))


def read_deleted(folder: Path, info: IndexInfo) -> np.ndarray:
    """int64 `[deleted]`: the rows that are deleted, rising."""
    return np.fromfile(folder / info.deleted_file, "<i8") if info.deleted_file else np.empty(0, "<i8")


def write_info(folder: Path, info: IndexInfo) -> None:
    """Writes index.json, or replaces it at once."""
    with files.atomic_file(folder / INFO, force=True) as partial:
        partial.write_text(signed(dataclasses.asdict(info), indent=2), encoding="utf-8")


def read_info(folder: Path) -> IndexInfo:
    """Reads index.json and compares the sizes of the other files with it.

    Raises:
        DataError: the folder is no index, is of another version, its record was edited, or its files don't fit it.
    """
    while True:
        try:
            return _read_info(folder)
        except DataError:  # unless another process has just changed the index
            before = _text_of(folder)
            try:
                return _read_info(folder)
            except DataError:
                if _text_of(folder) == before:
                    raise


def _text_of(folder: Path) -> str | None:
    try:
        return (folder / INFO).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _read_info(folder: Path) -> IndexInfo:
    path = folder / INFO
    if not path.is_file():
        what = "is no index: it has no index.json" if folder.is_dir() else "is not there"
        raise DataError(f"{folder} {what}", hint="pass the folder that `ternarize index build` wrote")
    content = read_signed(path, _VERSION, "index", _AGAIN)
    info = IndexInfo(**{**content, "files": {name: StoredFile(**file) for name, file in content["files"].items()}})
    for name in {FAISS_INDEX: 0, DOCUMENTS: 0, OFFSETS: 0, TRUTH: 0, **info.files}:
        expected = info.files.get(name)
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if expected is None or size is None:
            raise DataError(f"{folder / name} is missing", hint=_AGAIN)
        if size != expected.bytes:
            raise DataError(f"{folder / name} is damaged: {size} bytes, {expected.bytes} were written", hint=_AGAIN)
    return info


def check_files(folder: Path, info: IndexInfo, names: Collection[str] | None = None) -> None:
    """Compares files of an index, all or those of some names, with the digests in its record.

    Raises:
        DataError: one has changed.
    """
    for name, file in info.files.items():
        if (names is None or name in names) and files.sha256(folder / name) != file.sha256:
            raise DataError(f"{folder / name} is damaged: its sha256 has changed", hint=_AGAIN)
