"""The files of an index folder, and its record.

    index.faiss       the FAISS index; its row i is the vector of line i of documents.jsonl
    index.ivfdata     lists of the FAISS index, if they were built on disk
    documents.jsonl   line i: {"id": "…", "text": "…"}
    offsets.bin       the byte at which each line begins: int64, little-endian
    truth.npz         queries and their true neighbours, with which `index tune` measures recall (`truth`)
    deleted-N.bin     numbers of deleted rows, if there are any: int64, little-endian, rising
    index.json        the record: the fields of `IndexInfo`, with how to encode queries as the documents were encoded

index.json holds the sizes and digests of the other files, and a checksum of itself (`checksummed`). Opening an index
compares all digests before FAISS reads a byte, unless TERNARIZE_VERIFY is 0; `ternarize index info`, and commands that
change an index, always compare them. N in the name of deleted-N.bin counts its rows, so the name changes with the
content, and a deletion takes effect at the moment at which index.json is replaced.
"""

import dataclasses
import re
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ternarize_cli.errors import DataError, shown
from ternarize_cli.model_folder import integrity
from ternarize_cli.storage import digests, files
from ternarize_cli.storage.bounds import read_bytes
from ternarize_cli.storage.checksummed import check_types, read_checksummed, with_checksum
from ternarize_cli.vectors.origin import Origin

__all__ = [
    "DELETED",
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
    "verify_files",
    "write_info",
]

FAISS_INDEX, DOCUMENTS, INFO = "index.faiss", "documents.jsonl", "index.json"
OFFSETS, TRUTH, LISTS = "offsets.bin", "truth.npz", "index.ivfdata"
_VERSION = 4
_AGAIN = "build the index again: ternarize index build"
DELETED = re.compile(r"deleted-\d+\.bin")
"""Pattern of the name of the file of deleted rows; the number in it counts these rows."""
_MOST_ROWS, _WIDEST = 1 << 40, 1 << 20
_verified: dict[Path, object] = {}


@dataclass(frozen=True)
class StoredFile:
    """Size in bytes and sha256 of a file of the index."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class IndexInfo(Origin):
    """The record of an index.

    `metric` is "ip" (inner product; larger is nearer) or "l2" (squared distance; smaller is nearer). `count` is the
    number of rows of the index, of which `deleted` are no longer found. `seed` is the seed of the training sample, if
    there was one, and of the queries of truth.npz. `preset` is the name of the preset that `factory` came from, or
    empty. `search` holds the settings that searches use, chosen by `index tune`.
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
        """Number of documents that are not deleted."""
        return self.count - self.deleted

    @property
    def faiss_digests(self) -> tuple[str, ...]:
        """The sha256 of the files that FAISS reads."""
        return tuple(self.files[name].sha256 for name in (FAISS_INDEX, LISTS) if name in self.files)

    @property
    def deleted_file(self) -> str | None:
        """The name of the file of deleted rows; None if no rows are deleted."""
        return f"deleted-{self.deleted}.bin" if self.deleted else None


def stored_file(path: Path) -> StoredFile:
    """Measures the size and the sha256 of a file."""
    return StoredFile(path.stat().st_size, digests.sha256(path))


def read_deleted(folder: Path, info: IndexInfo) -> np.ndarray:
    """Reads the numbers of the deleted rows: int64 `[deleted]`, rising.

    Raises:
        DataError: the file holds another number of rows than the record says, they are not rising, or one is not a row
            of the index.
    """
    if info.deleted_file is None:
        return np.empty(0, "<i8")
    dead = np.fromfile(folder / info.deleted_file, "<i8")
    rising = bool((np.diff(dead) > 0).all())
    if len(dead) != info.deleted or not rising or not 0 <= dead[0] <= dead[-1] < info.count:
        raise DataError(f"{folder / info.deleted_file} is damaged", hint=_AGAIN)
    return dead


def write_info(folder: Path, info: IndexInfo) -> None:
    """Writes index.json, or replaces it in one step."""
    with files.atomic_file(folder / INFO, force=True) as partial:
        partial.write_text(with_checksum(dataclasses.asdict(info), indent=2), encoding="utf-8")


def read_info(folder: Path) -> IndexInfo:
    """Reads index.json and compares the sizes of the other files with it.

    Raises:
        DataError: the folder is no index or one of another version, its record was edited, or a file has another size.
    """
    while True:
        try:
            return _read_info(folder)
        except DataError:  # another process may just have changed the index
            before = _content_of(folder)
            try:
                return _read_info(folder)
            except DataError:
                if _content_of(folder) == before:
                    raise


def _content_of(folder: Path) -> bytes | None:
    try:
        return read_bytes(folder / INFO, error=DataError)
    except DataError:
        return None


def _read_info(folder: Path) -> IndexInfo:
    path = folder / INFO
    if not path.is_file():
        what = "is no index: it has no index.json" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder} {what}", hint="pass the folder that `ternarize index build` wrote")
    content = read_checksummed(path, _VERSION, "index", _AGAIN)
    check_types(content, IndexInfo, path, _AGAIN)
    for name, file in content["files"].items():
        check_types(file, StoredFile, path, _AGAIN)
        if name not in (FAISS_INDEX, DOCUMENTS, OFFSETS, TRUTH, LISTS) and not DELETED.fullmatch(name):
            raise DataError(f"{path} names a file {shown(name)}, which no index has", hint=_AGAIN)
    info = IndexInfo(**{**content, "files": {name: StoredFile(**file) for name, file in content["files"].items()}})
    _check_values(info, path)
    for name in {FAISS_INDEX: 0, DOCUMENTS: 0, OFFSETS: 0, TRUTH: 0, **info.files}:
        expected = info.files.get(name)
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if expected is None or size is None:
            raise DataError(f"{folder / name} is missing", hint=_AGAIN)
        if size != expected.bytes:
            raise DataError(f"{folder / name} is damaged: {size} bytes, {expected.bytes} were written", hint=_AGAIN)
    return info


def _check_values(info: IndexInfo, path: Path) -> None:
    """Refuses a record with a number that is out of range, or with numbers that contradict each other."""
    wrong = {
        "dim": not 0 < info.dim <= _WIDEST,
        "count": not 0 <= info.count <= _MOST_ROWS,
        "deleted": not 0 <= info.deleted <= info.count,
        "metric": info.metric not in ("ip", "l2"),
        "kind": info.kind not in ("text", "image"),
        "search": not all(0 < value <= _MOST_ROWS for value in info.search.values()),
    }
    for name, is_wrong in wrong.items():
        if is_wrong:
            raise DataError(f"{path}: {name} is {shown(getattr(info, name))}, which no index has", hint=_AGAIN)
    sizes = {OFFSETS: 8 * info.count, **({info.deleted_file: 8 * info.deleted} if info.deleted_file else {})}
    for name, size in sizes.items():
        if name not in info.files or info.files[name].bytes != size:
            raise DataError(f"{path}: {name} does not have the {size} bytes that {info.count} rows take", hint=_AGAIN)


def verify_files(folder: Path, info: IndexInfo, names: Collection[str]) -> None:
    """Compares some files of an index with their digests, unless TERNARIZE_VERIFY is 0.

    Files that were verified in this process and have not been written to since are not read again.

    Args:
        folder: the folder of the index.
        info: its record.
        names: names of the files; names that the record does not have are passed over.

    Raises:
        DataError: a file has changed.
    """
    if not integrity.verifying():
        integrity.note_once(f"{folder} is opened without verifying its digests (TERNARIZE_VERIFY=0)")
        return
    states = {name: (integrity.state_of(folder / name), info.files[name]) for name in names if name in info.files}
    wanted = [name for name, state in states.items() if _verified.get((folder / name).resolve()) != state]
    check_files(folder, info, wanted)
    _verified.update({(folder / name).resolve(): states[name] for name in wanted})


def check_files(folder: Path, info: IndexInfo, names: Collection[str] | None = None) -> None:
    """Compares the files of an index that are in `names` (None: all) with the digests in its record.

    Raises:
        DataError: a file has changed.
    """
    wanted = [name for name in info.files if names is None or name in names]
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing releases Python's global lock
        found = list(pool.map(digests.sha256, [folder / name for name in wanted]))
    for name, digest in zip(wanted, found, strict=True):
        if digest != info.files[name].sha256:
            raise DataError(f"{folder / name} is damaged: its sha256 has changed", hint=_AGAIN)
