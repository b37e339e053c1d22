"""Writes and reads the documents of an index.

documents.jsonl holds one `{"id": "…", "text": "…"}` a line, and offsets.bin the byte at which each line begins. Images
have an empty text; their id is the path that they came from.
"""

import json
import weakref
from array import array
from collections.abc import Collection, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.texts import STDIN, open_stdin, source_name
from ternarize_cli.errors import DataError
from ternarize_cli.index.format import DOCUMENTS, OFFSETS
from ternarize_cli.storage.bounds import MAX_LINE, Held, lines_of, parse_json, require_regular, user_path

__all__ = ["Documents", "read_documents", "read_ids", "rows_of", "write_documents"]

_MAX_DOCUMENT = 8 * MAX_LINE
"""The most bytes of a line of documents.jsonl: a byte of a text can take six bytes in JSON."""


def write_documents(
    items: Iterable[tuple[str, Any]], folder: Path, *, append: bool = False
) -> Iterator[tuple[str, Any]]:
    """Yields `items`, and writes each to documents.jsonl as it passes; writes offsets.bin after the last.

    Args:
        items: pairs of id and content; a content that is no string is stored as an empty text.
        folder: the folder of the two files.
        append: write after the documents that the file holds already.
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
    """Yields the id and the text of each document, in order.

    Raises:
        DataError: documents.jsonl is damaged.
    """
    path = folder / DOCUMENTS
    require_regular(path, DataError)
    with path.open("rb") as stream:
        for line in lines_of(stream, str(path), DataError, limit=_MAX_DOCUMENT):
            yield _parsed(line, path)


def read_ids(sources: Iterable[str]) -> list[str]:
    """Reads ids from files, one per line, unchanged; `-` is stdin. Empty lines are skipped.

    Raises:
        DataError: a file can't be read, is not UTF-8, has a line that is too long, or its ids don't fit in memory.
    """
    ids: list[str] = []
    for source in sources:
        name = source_name(source)
        held = Held(name, DataError)
        try:
            with nullcontext(open_stdin()) if source == STDIN else user_path(source).open("rb") as stream:
                for number, raw in enumerate(lines_of(stream, name, DataError), start=1):  # noqa: B007
                    line = raw.decode().removesuffix("\n").removesuffix("\r")
                    held.add(line)
                    ids += [line] if line else []
        except UnicodeDecodeError as e:
            raise DataError(f"{name} line {number} is not UTF-8 text: {e.reason}", hint="one id per line") from e
        except (OSError, ValueError) as e:  # ValueError: the name has a NUL
            why = getattr(e, "strerror", None) or e
            raise DataError(f"{name[:200]} can't be read: {why}", hint="a file of ids, one per line; - is stdin") from e
    return ids


class Documents:
    """The documents of an open index. They stay readable while another process replaces the index.

    Raises:
        DataError: a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path, offsets = folder / DOCUMENTS, folder / OFFSETS
        size = require_regular(offsets, DataError).st_size
        require_regular(self._path, DataError)
        if size % 8:
            raise _damaged(offsets)
        self._stream = self._path.open("rb")
        weakref.finalize(self, self._stream.close)
        self._offsets = np.memmap(offsets, "<i8", "r") if size else np.empty(0, "<i8")

    def of_rows(self, rows: Collection[int]) -> dict[int, tuple[str, str]]:
        """Reads documents by their rows: a dict from each row to its id and text.

        Raises:
            DataError: the files are damaged.
        """
        found = {}
        for row in sorted(rows):
            try:
                self._stream.seek(int(self._offsets[row]))
                found[row] = _parsed(self._stream.readline(_MAX_DOCUMENT), self._path)
            except (DataError, ValueError, IndexError, OSError) as e:  # an offset may lie outside the file
                raise _damaged(self._path, self._path.with_name(OFFSETS)) from e
        return found


def rows_of(folder: Path, ids: Collection[str], dead: np.ndarray) -> dict[str, int]:
    """Finds the rows of documents by their ids: a dict from id to row, without the `dead` rows."""
    gone = set(dead.tolist())
    return {
        identity: row for row, (identity, _) in enumerate(read_documents(folder)) if identity in ids and row not in gone
    }


def _parsed(line: bytes, path: Path) -> tuple[str, str]:
    """Parses a line of documents.jsonl into id and text."""
    try:
        record = parse_json(line, str(path), error=DataError)
        found = record["id"], record["text"]
        "".join(found).encode()  # fails for what is no string, and for halves of surrogate pairs
    except (DataError, TypeError, KeyError, UnicodeEncodeError) as e:
        raise _damaged(path) from e
    return found


def _damaged(*paths: Path) -> DataError:
    return DataError(f"{' or '.join(map(str, paths))} is damaged", hint="build the index again")
