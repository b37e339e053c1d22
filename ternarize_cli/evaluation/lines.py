"""Text files one line at a time, with errors that name file and line.

A line ends at LF or CR LF only, so that texts may hold the other characters Python would split at (U+2028, form feed).
A byte order mark at the start is dropped.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ternarize_cli.errors import DataError

__all__ = ["filled", "json_records", "lines", "readable_file"]


def readable_file(path: Path) -> Path:
    """`path` with `~` expanded.

    Raises:
        DataError: it is no file.
    """
    path = path.expanduser()
    if path.is_dir():
        raise DataError(f"{path} is a folder; a file is needed", hint="a folder is what --retrieval takes")
    if not path.is_file():
        raise DataError(f"there is no file {path}", hint="check the path")
    return path


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers, from 1, and lines with their endings.

    Raises:
        DataError: a line is not UTF-8.
    """
    with path.open("rb") as f:
        for number, raw in enumerate(f, start=1):
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as e:
                raise DataError(
                    f"{path}, line {number}: not UTF-8 (byte {raw[e.start]:#04x} at column {e.start + 1})",
                    hint="convert it, for example: iconv -f latin1 -t utf-8",
                ) from None
            yield number, text


def filled(text: str, what: str, path: Path, line: int) -> str:
    """`text` if it holds more than white space.

    Raises:
        DataError: it does not.
    """
    if not text.strip():
        raise DataError(f"{path}, line {line}: the {what} is empty")
    return text


def json_records(path: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file by their `_id`, each with its line number; blank lines are skipped.

    Raises:
        DataError: a line is no JSON object with `_id` and `text`, an id is there twice, or there is no line at all.
    """
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as e:
            raise DataError(
                f"{where}: not JSON: {e.msg} at column {e.colno}", hint="one JSON object on each line"
            ) from e
        if not isinstance(record, dict):
            raise DataError(f"{where}: {line.strip()[:40]!r} is not a JSON object", hint='{"_id": "1", "text": "…"}')
        key, text = record.get("_id"), record.get("text")
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str) or not key:
            raise DataError(f'{where}: the object has no "_id" that is a text', hint='{"_id": "1", "text": "…"}')
        if not isinstance(text, str):
            raise DataError(
                f'{where}: the object {key!r} has no "text" that is a text', hint='{"_id": "1", "text": "…"}'
            )
        if key in found:
            raise DataError(
                f"{where}: the id {key!r} is there already, on line {found[key][0]}", hint="make ids unique"
            )
        found[key] = number, record
    if not found:
        raise DataError(f"{path} is empty", hint='each line is a JSON object: {"_id": "1", "text": "…"}')
    return found
