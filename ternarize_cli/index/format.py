"""What stands in an index folder.

    index.faiss       the FAISS index; its row i is
    index.ivfdata     its lists, where they were built on disk
    documents.jsonl   line i: {"id": "…", "text": "…"}
    offsets.bin       where line i begins: int64, little-endian
    truth.npz         queries and their true neighbours, by which `index tune` judges (`truth`)
    deleted-N.bin     rows that are deleted, if any are: int64, little-endian, rising
    index.json        how the vectors were made, so that queries are encoded alike: the fields of `IndexInfo`

Sizes and digests of the others stand in the last, and a checksum of itself (`checksummed`). Opening an index compares
all digests before FAISS sees a byte, unless TERNARIZE_VERIFY is 0; `ternarize index info`, and what changes an index,
do so always. The name of deleted-N.bin, where N counts its rows, changes with its content, so that a deletion takes
effect when index.json is replaced.
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
from ternarize_cli.storage import files
from ternarize_cli.storage.bounds import read_bytes
from ternarize_cli.storage.checksummed import check_types, read_signed, signed
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
"""Names of the file that says which documents are deleted; the number counts deletions."""
_MOST_ROWS, _WIDEST = 1 << 40, 1 << 20
_verified: dict[Path, object] = {}


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
    def faiss_digests(self) -> tuple[str, ...]:
        """The sha256 of the files that FAISS reads."""
        return tuple(self.files[name].sha256 for name in (FAISS_INDEX, LISTS) if name in self.files)

    @property
    def deleted_file(self) -> str | None:
        """The name of the file of deleted rows; None without any."""
        return f"deleted-{self.deleted}.bin" if self.deleted else None


def stored_file(path: Path) -> StoredFile:
    """Size and digest of a file as it is."""
    return StoredFile(path.stat().st_size, files.sha256(path))


def read_deleted(folder: Path, info: IndexInfo) -> np.ndarray:
    """int64 `[deleted]`: the rows that are deleted, rising.

    Raises:
        DataError: the file holds another number of rows, or they are not rising or not rows of the index.
    """
    if info.deleted_file is None:
        return np.empty(0, "<i8")
    dead = np.fromfile(folder / info.deleted_file, "<i8")
    rising = bool((np.diff(dead) > 0).all())
    if len(dead) != info.deleted or not rising or not 0 <= dead[0] <= dead[-1] < info.count:
        raise DataError(f"{folder / info.deleted_file} is damaged", hint=_AGAIN)
    return dead


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
        what = "is no index: it has no index.json" if folder.is_dir() else "is not there"
        raise DataError(f"{folder} {what}", hint="pass the folder that `ternarize index build` wrote")
    content = read_signed(path, _VERSION, "index", _AGAIN)
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
    """Refuses a record whose numbers no index has, or that don't belong together."""
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
            raise DataError(f"{path}: {name} has not the {size} bytes that {info.count} rows take", hint=_AGAIN)


def verify_files(folder: Path, info: IndexInfo, names: Collection[str]) -> None:
    """Compares files of an index with their digests, unless TERNARIZE_VERIFY is 0.

    Files that were verified in this process and have not been written to since are not read again.

    Args:
        folder: the index.
        info: its record.
        names: of the files; those that the record does not have are passed over.

    Raises:
        DataError: one has changed.
    """
    if not integrity.verifying():
        integrity.note_once(f"{folder} is opened without verifying its digests (TERNARIZE_VERIFY=0)")
        return
    states = {name: (integrity.state_of(folder / name), info.files[name]) for name in names if name in info.files}
    wanted = [name for name, state in states.items() if _verified.get((folder / name).resolve()) != state]
    check_files(folder, info, wanted)
    _verified.update({(folder / name).resolve(): states[name] for name in wanted})


def check_files(folder: Path, info: IndexInfo, names: Collection[str] | None = None) -> None:
    """Compares files of an index, all or those of some names, with the digests in its record.

    Raises:
        DataError: one has changed.
    """
    wanted = [name for name in info.files if names is None or name in names]
    with ThreadPoolExecutor(max_workers=4) as pool:  # hashing leaves Python's lock to others
        digests = list(pool.map(files.sha256, [folder / name for name in wanted]))
    for name, digest in zip(wanted, digests, strict=True):
        if digest != info.files[name].sha256:
            raise DataError(f"{folder / name} is damaged: its sha256 has changed", hint=_AGAIN)
