"""What stands in an index folder.

    index.faiss       the FAISS index; its row i is
    documents.jsonl   line i: {"id": "…", "text": "…"}
    offsets.bin       where line i begins: int64, little-endian
    truth.npz         queries and their true neighbours, by which `index tune` judges (`truth`)
    index.json        how the vectors were made, so that queries are encoded alike: the fields of `IndexInfo`

Sizes and digests of the others stand in the last. Opening an index compares the sizes; `ternarize index info`
compares the digests too.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from ternarize_cli import files
from ternarize_cli.errors import DataError

__all__ = [
    "DOCUMENTS",
    "FAISS_INDEX",
    "INFO",
    "OFFSETS",
    "TRUTH",
    "IndexInfo",
    "StoredFile",
    "read_info",
    "write_info",
]

FAISS_INDEX, DOCUMENTS, INFO = "index.faiss", "documents.jsonl", "index.json"
OFFSETS, TRUTH = "offsets.bin", "truth.npz"
_VERSION = 2


@dataclass(frozen=True)
class StoredFile:
    """Size and digest of a file of the index."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class IndexInfo:
    """The record of an index.

    `model` is MODEL as it was typed, `model_path` the folder it stood for, `model_sha256` its content hash. `metric` is
    "ip" (inner product; larger is nearer) or "l2" (squared distance; smaller is nearer); `normalized` says whether
    vectors were scaled to length 1, which makes "ip" the cosine. `seed` drew the training sample, if there was one, and
    the queries of truth.npz. `preset` is the name that `factory` came from, if there was one; `search` the settings
    that searches use, chosen by `index tune`.
    """

    model: str
    model_path: str
    model_sha256: str
    dim: int
    metric: str
    normalized: bool
    factory: str
    count: int
    corpus: str
    document_prompt: str | None
    query_prompt: str | None
    seed: int
    tool_version: str
    files: dict[str, StoredFile]
    preset: str = ""
    search: dict[str, float] = field(default_factory=dict)
    format_version: int = _VERSION


def write_info(folder: Path, info: IndexInfo) -> None:
    """Writes index.json, or replaces it at once."""
    with files.atomic_file(folder / INFO, force=True) as partial:
        partial.write_text(json.dumps(dataclasses.asdict(info), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_info(folder: Path) -> IndexInfo:
    """Reads index.json and compares the sizes of the other files with it.

    Raises:
        DataError: the folder is no index, is of another version, or its files don't fit together.
    """
    path = folder / INFO
    again = "build it again: ternarize index build"
    if not path.is_file():
        what = "is no index: it has no index.json" if folder.is_dir() else "is not there"
        raise DataError(f"{folder} {what}", hint="pass the folder that `ternarize index build` wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content.get("format_version")
        if version != _VERSION:
            raise DataError(
                f"{path}: index format {version!r}; this ternarize reads version {_VERSION}",
                hint="build the index again, or update ternarize",
            )
        content["files"] = {name: StoredFile(**file) for name, file in content["files"].items()}
        info = IndexInfo(**content)
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as e:
        raise DataError(f"{path} is damaged: {type(e).__name__}: {e}", hint=again) from e
    for name in (FAISS_INDEX, DOCUMENTS, OFFSETS, TRUTH):
        expected = info.files.get(name)
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if expected is None or size is None:
            raise DataError(f"{folder / name} is missing", hint=again)
        if size != expected.bytes:
            raise DataError(f"{folder / name} is damaged: {size} bytes, {expected.bytes} were written", hint=again)
    return info
