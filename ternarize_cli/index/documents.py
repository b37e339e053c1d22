"""The documents of an index: documents.jsonl, one `{"id": "…", "text": "…"}` a line, and where the lines begin.

Images have an empty text; their id says where they came from.
"""

import json
import sys
import weakref
from array import array
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.errors import DataError
from ternarize_cli.index.format import DOCUMENTS, OFFSETS
from ternarize_cli.texts import STDIN

__all__ = ["Documents", "read_documents", "read_ids", "rows_of", "write_documents"]


def write_documents(
    items: Iterable[tuple[str, Any]], folder: Path, *, append: bool = False
) -> Iterator[tuple[str, Any]]:
    """The items, each of which is written to documents.jsonl as it passes by; offsets.bin follows the last.

    Args:
        items: id and content of each; only strings are kept.
        folder: of the two files.
        append: after the documents that are there.
    """
    path, begins = folder / DOCUMENTS, array("q")
    position = path.stat().st_size if append else 0
    with path.open("ab" if append else "wb") as stream:
        for identity, content in items:
            text = content if isinstance(content, str) else ""
            line = json.dumps({"id": identity, "text": text}, ensure_ascii=False).encode() + b"\n"
            stream.write(line)
            begins.append(position)
            position += len(line)
            yield identity, content
    with (folder / OFFSETS).open("ab" if append else "wb") as stream:
        stream.write(np.array(begins, "<i8").tobytes())


def read_documents(folder: Path) -> Iterator[tuple[str, str]]:
    """Id and text of each document, in order."""
    with (folder / DOCUMENTS).open(encoding="utf-8") as lines:
        try:
            for line in lines:
                yield _parsed(line)
        except ValueError as e:  # of UTF-8, too
            raise _damaged(folder / DOCUMENTS) from e


def read_ids(sources: Iterable[str]) -> list[str]:
    """Ids from files, one per line and as they are, `-` being stdin; empty lines are none.

    Raises:
        DataError: a file can't be read, or is not UTF-8.
    """
    ids: list[str] = []
    for source in sources:
        try:
            content = sys.stdin.buffer.read() if source == STDIN else Path(source).read_bytes()
            lines = (line.removesuffix("\r") for line in content.decode().split("\n"))
            ids += [line for line in lines if line]
        except UnicodeDecodeError as e:
            raise DataError(f"{source} is not UTF-8 text: {e}", hint="one id per line") from e
        except OSError as e:
            raise DataError(
                f"{source} can't be read: {e.strerror}", hint="a file of ids, one per line; - is stdin"
            ) from e
    return ids


class Documents:
    """The documents of an open index, whatever takes their place meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stream = (folder / DOCUMENTS).open("rb")
        weakref.finalize(self, self._stream.close)
        offsets = folder / OFFSETS
        self._offsets = np.memmap(offsets, "<i8", "r") if offsets.stat().st_size else np.empty(0, "<i8")

    def of_rows(self, rows: Collection[int]) -> dict[int, tuple[str, str]]:
        """Row → id and text.

        Raises:
            DataError: the files are damaged.
        """
        found = {}
        for row in sorted(rows):
            try:
                self._stream.seek(int(self._offsets[row]))
                found[row] = _parsed(self._stream.readline())
            except (ValueError, OSError) as e:  # a place that is none in the file
                raise _damaged(self._folder / DOCUMENTS, self._folder / OFFSETS) from e
        return found


def rows_of(folder: Path, ids: Collection[str], dead: np.ndarray) -> dict[str, int]:
    """Id → row of those documents that have one of the ids, `dead` rows left out."""
    gone = set(dead.tolist())
    return {
        identity: row for row, (identity, _) in enumerate(read_documents(folder)) if identity in ids and row not in gone
    }


def _parsed(line: str | bytes) -> tuple[str, str]:
    """Id and text.

    Raises:
        ValueError: the line is not one of documents.jsonl.
    """
    record = json.loads(line)
    try:
        return record["id"], record["text"]
    except (TypeError, KeyError) as e:
        raise ValueError(str(e)) from e


def _damaged(*paths: Path) -> DataError:
    return DataError(f"{' or '.join(map(str, paths))} is damaged", hint="build the index again")
