"""Reads texts from files and from stdin, one by one.

Two forms are read. Plain text holds one text per line; blank lines are skipped and a text's id is its line number, so
that `sed -n 12p FILE` shows text 12. JSONL holds one object per line with `text`, optionally `_id` or `id`, and
optionally `title`, which goes in front of the text with a blank between, as mteb and BEIR join them. `.jsonl` and
`.ndjson` are JSONL and `.txt` is plain text. For any other name, and for stdin, the first line decides: JSONL starts
with `{`. Both forms may be compressed, with `.gz` after the name.

Texts are streamed: a file may be larger than memory, or be a pipe. Only the length of a line is bounded (`bounds`).
"""

import gzip
import json
import os
import random
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, cast

from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import Held, lines_of, parse_json, user_path, walk

__all__ = ["STDIN", "Document", "drawn", "open_stdin", "read_lines", "read_texts", "source_name", "text_files"]

STDIN = "-"
_BOM = b"\xef\xbb\xbf"
_SHOWN = 60
_JSONL = {".jsonl": True, ".ndjson": True, ".txt": False}


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the id that names it in results."""

    id: str
    text: str


def source_name(path: str | Path) -> str:
    """The name of a source in messages: its path, or `stdin`."""
    return "stdin" if str(path) == STDIN else str(path)


def read_texts(
    path: str | Path,
    *,
    also: Sequence[str] = (),
    prefix: str = "",
    on_bad: Callable[[DataError], None] | None = None,
) -> Iterator[Document]:
    """Yields the texts of a plain text or JSONL file, or of stdin if `path` is `-`.

    Args:
        path: the file.
        also: fields of JSONL that are read if `text` is missing; each of their texts is a document of its own.
        prefix: text in front of ids that are line numbers.
        on_bad: called with the error of a line that can't be used, which is then skipped; None raises the error.

    Raises:
        DataError: at once if the file is missing or a folder; while reading if a line is too long, not UTF-8, not JSON
            or has no usable text (the message names file and line), or if the system can't read on; at the end if
            there was no text.
    """
    name = source_name(path)
    form = _Form(None, tuple(also), prefix, on_bad)
    if str(path) == STDIN:
        stream = open_stdin()
        return _open(lambda: nullcontext(stream), name, form)
    file = user_path(path)
    if os.path.isdir(file):
        raise DataError(f"{path} is a folder, not a file of texts", hint="pass a .txt or .jsonl file inside it")
    if "\0" in str(file) or not os.access(file, os.R_OK):
        why = "no permission" if os.path.exists(file) else "there is no such file"
        raise DataError(f"{str(path)[:200]} can't be read: {why}", hint="check the path; - reads from stdin")
    return _open(partial(_stream, file), name, replace(form, jsonl=_JSONL.get(_suffix(file))))


def read_lines(paths: Iterable[str | Path]) -> list[str]:
    """Reads all texts of several files, in order, without their ids.

    Raises:
        DataError: a file can't be read or holds no usable text (see `read_texts`), or the texts don't fit in memory.
    """
    texts = []
    for path in paths:
        held = Held(source_name(path), DataError)
        for document in read_texts(path):
            held.add(document.text)
            texts.append(document.text)
    return texts


def drawn(texts: Iterable[str], count: int, seed: int, where: str) -> list[str]:
    """Draws a uniform sample of texts without holding all in memory (reservoir sampling); its order is random.

    Args:
        texts: the texts, which are read to their end.
        count: the most texts to draw.
        seed: seed of the sample.
        where: the name of the source in messages.

    Raises:
        DataError: the sample does not fit in memory.
    """
    rng, held = random.Random(seed), Held(where, DataError)
    kept: list[str] = []
    for i, text in enumerate(texts):
        if i < count:
            kept.append(text)
        elif (place := rng.randrange(i + 1)) < count:
            held.drop(kept[place])
            kept[place] = text
        else:
            continue
        held.add(text)
    rng.shuffle(kept)
    return kept


def text_files(folder: Path, also: Collection[str] = ()) -> list[Path]:
    """Lists the files of texts in a folder and below it, told by their suffixes, sorted; `also` adds suffixes.

    Raises:
        DataError: the folder can't be read, or holds too many files (`bounds.walk`).
    """
    return sorted(p for p in walk(folder, DataError) if _suffix(p) in _JSONL or p.suffix.lower() in also)


def open_stdin() -> IO[bytes]:
    """Opens stdin with a buffer of its own: a thread may be waiting in it when Python ends and closes `sys.stdin`.

    Raises:
        DataError: stdin is closed.
    """
    if sys.stdin is None:
        raise DataError("stdin is closed", hint="pass a file, or write to stdin")
    try:
        return open(sys.stdin.fileno(), "rb", closefd=False)
    except (AttributeError, OSError):  # stdin is no file: another program has replaced the stream
        return sys.stdin.buffer


def _stream(file: Path) -> IO[bytes]:
    """Opens a file for reading bytes, unpacked if it is compressed."""
    return cast(IO[bytes], gzip.open(file)) if file.suffix.lower() == ".gz" else file.open("rb")


def _suffix(file: Path) -> str:
    """The suffix of a file without `.gz`: `.jsonl` for both `a.jsonl` and `a.jsonl.gz`."""
    name = file.name.lower()
    return Path(name.removesuffix(".gz")).suffix


@dataclass(frozen=True)
class _Form:
    """Settings for reading lines. If `jsonl` is None, the first line that is not blank decides the form."""

    jsonl: bool | None
    also: tuple[str, ...]
    prefix: str
    on_bad: Callable[[DataError], None] | None


def _open(opened: Callable[[], AbstractContextManager[IO[bytes]]], name: str, form: _Form) -> Iterator[Document]:
    try:
        with opened() as stream:
            yield from _read(stream, name, form)
    except (gzip.BadGzipFile, EOFError, zlib.error) as e:
        raise DataError(f"{name} can't be unpacked: {e}", hint="fetch the file again") from e
    except OSError as e:
        raise DataError(f"{name} can't be read: {e.strerror or e}", hint="pass a file of texts, or a pipe") from e


def _read(stream: IO[bytes], name: str, form: _Form) -> Iterator[Document]:
    jsonl, found = form.jsonl, False
    for number, raw in enumerate(lines_of(stream, name, DataError), start=1):
        try:
            line = _decoded(raw.removeprefix(_BOM) if number == 1 else raw, f"{name} line {number}")
            if not line:
                continue
            if jsonl is None:
                jsonl = line.startswith("{")
            documents = (
                list(_from_json(line, f"{name} line {number}", f"{form.prefix}{number}", form.also))
                if jsonl
                else [Document(f"{form.prefix}{number}", line)]
            )
        except DataError as e:
            if form.on_bad is None:
                raise
            form.on_bad(e)
            continue
        found = True
        yield from documents
    if not found:
        raise DataError(f"{name} holds no text", hint="one text per line, or JSONL with a `text` field")


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode().strip()
    except UnicodeDecodeError as e:
        raise DataError(
            f"{where}: not UTF-8 text (byte {e.start + 1} is 0x{raw[e.start]:02x})",
            hint="save the file as UTF-8, e.g. iconv -f latin1 -t utf-8 FILE",
        ) from e


def _from_json(line: str, where: str, number: str, also: Sequence[str]) -> Iterator[Document]:
    record = parse_json(line, where, error=DataError, hint='a line looks like {"text": "…"}')
    text = record.get("text") if isinstance(record, dict) else None
    if text is None and isinstance(record, dict) and (others := list(_strings(map(record.get, also)))):
        for other in others:
            _check_encodable(other, where)
            yield Document(number, other)
        return
    if not isinstance(text, str):
        what = "no `text` field" if text is None else f"`text` is {_short(json.dumps(text))}, not a string"
        raise DataError(f"{where}: {what}: {_short(line)}", hint='a line looks like {"_id": "1", "text": "…"}')
    title = record.get("title") or ""
    if not isinstance(title, str):
        raise DataError(f"{where}: `title` is {_short(json.dumps(title))}, not a string")
    identity = record.get("_id", record.get("id"))
    if isinstance(identity, dict | list):
        raise DataError(f"{where}: the id is {_short(json.dumps(identity))}, not a string or a number")
    joined = f"{title} {text}".strip()
    name = str(number if identity is None else identity)
    _check_encodable(name + joined, where, shown=joined)
    yield Document(name, joined)


def _strings(values: Iterable[object]) -> Iterator[str]:
    """Yields the strings that are not blank, and those inside lists."""
    for value in values:
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and text.strip():
                yield text.strip()


def _check_encodable(text: str, where: str, shown: str | None = None) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        shown = (text if shown is None else shown)[e.start :]
        raise DataError(f"{where}: half of a surrogate pair in the text: {_short(ascii(shown))}") from e


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
