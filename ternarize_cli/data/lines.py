"""Reads text files line by line, with errors that name file and line.

A line ends at LF or CR LF only, so that texts may hold the other characters that Python would split at (U+2028, form
feed). A byte order mark at the start is dropped. A file that is not UTF-8 is refused at the first line that shows it;
so is a file with several encodings.
"""

import hashlib
import json
import os
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ternarize_cli.data.unpacked import decoded, open_text
from ternarize_cli.errors import DataError, shown
from ternarize_cli.storage.bounds import lines_of, parse_json, require_regular, user_path
from ternarize_cli.storage.digests import sha256

__all__ = ["check_encodable", "digest_of", "filled", "json_objects", "json_records", "lines", "readable_file"]

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_RECORD = '{"_id": "1", "text": "…"}'


def readable_file(path: Path) -> Path:
    """Checks that a path is a readable regular file, and returns it with `~` expanded.

    Raises:
        DataError: the path is missing, can't be read, or is no regular file. Pipes are refused, because files are read
            more than once.
    """
    path = user_path(path)
    if os.path.isdir(path):
        raise DataError(f"{path} is a folder; a file is needed", hint="a folder is what --retrieval takes")
    if not os.path.exists(path):
        hint = "write stdin to a file: it is read more than once" if str(path) == "-" else "check the path"
        raise DataError(f"there is no file {str(path)[:200]}", hint=hint)
    require_regular(path, DataError)
    if not os.access(path, os.R_OK):
        raise DataError(f"{path} can't be read: no permission", hint="check the permissions of the file")
    return path


def digest_of(paths: Sequence[Path], *choices: str) -> str:
    """Hashes files and the choices of what is read from them; the digest of one file without choices is its sha256."""
    if len(paths) == 1 and not choices:
        return sha256(paths[0])
    return hashlib.sha256("\n".join([*map(sha256, paths), *choices]).encode()).hexdigest()


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yields line numbers, from 1, and lines with their endings; compressed files are unpacked (`unpacked`).

    Raises:
        DataError: the file can't be read, a line is longer than `bounds.MAX_LINE`, is not UTF-8, or holds a NUL.
    """
    with open_text(path) as stream:
        for number, raw in enumerate(lines_of(stream, f"{path},", DataError), start=1):
            yield number, decoded(raw.removeprefix(BOM_UTF8) if number == 1 else raw, f"{path}, line {number}")


def filled(text: object, what: str, where: str) -> str:
    """Checks that a value is a text with more than white space, and returns it.

    Args:
        text: the value.
        what: the name of the value in messages.
        where: file and line, for messages.

    Raises:
        DataError: the value is no text, or only white space.
    """
    if text is None or (isinstance(text, str) and not text.strip()):
        raise DataError(f"{where}: the {what} is empty")
    if not isinstance(text, str):
        raise DataError(f"{where}: the {what} is {shown(text)}, not a text")
    return text


def check_encodable(value: object, where: str) -> None:
    """Checks that the strings in a JSON value can be written as UTF-8.

    Raises:
        DataError: a string holds half of a surrogate pair.
    """
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as e:
        raise DataError(f"{where}: half of a surrogate pair in {e.object[e.start : e.start + 20]!a}") from e


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line numbers and objects of a JSONL file; skips blank lines.

    Raises:
        DataError: a line is no JSON object, or holds half of a surrogate pair.
    """
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        record = parse_json(line, where, error=DataError, hint="one JSON object on each line")
        if not isinstance(record, dict):
            raise DataError(f"{where}: {line.strip()[:40]!r} is not a JSON object", hint=_RECORD)
        if _SURROGATE.search(line):
            check_encodable(record, where)
        yield number, record


def json_records(path: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Reads the objects of a JSONL file: a dict from `_id` to the line number and the object.

    Raises:
        DataError: a line is no JSON object with `_id` and `text`, two lines have the same id, or the file is empty.
    """
    found: dict[str, tuple[int, dict[str, Any]]] = {}
    for number, record in json_objects(path):
        where = f"{path}, line {number}"
        key, text = record.get("_id"), record.get("text")
        if isinstance(key, int) and not isinstance(key, bool):
            key = str(key)
        if not isinstance(key, str) or not key:
            raise DataError(f'{where}: the object has no "_id" that is a text', hint=_RECORD)
        if not isinstance(text, str):
            raise DataError(f'{where}: the object {shown(key)} has no "text" that is a text', hint=_RECORD)
        if key in found:
            raise DataError(
                f"{where}: the id {shown(key)} is there already, on line {found[key][0]}", hint="make ids unique"
            )
        found[key] = number, record
    if not found:
        raise DataError(f"{path} is empty", hint='each line is a JSON object: {"_id": "1", "text": "…"}')
    return found
