"""Reads texts from files and from stdin, one by one.

    .txt                    one text a line; blank lines are skipped, and a text's id is the number of its line
    .jsonl .ndjson          one object a line, with `text`, and perhaps `_id` or `id`, and `title`, which goes in front
                            of the text with a blank between, as mteb and BEIR join them
    .json                   a list of such objects or of strings, or an object that holds one list (`json_values`)
    .csv .tsv .parquet      tables with a header: the column `text`, or another (`records.text_column`), and perhaps
                            `_id` or `id`, and `title`
    a folder                a dataset that `save_to_disk` of the library `datasets` wrote

FILE:COLUMN names the field or column of the texts. For any other name, and for stdin, the first line decides: `{`
begins JSONL, and a list of JSON is known by `[` and what follows. All but Parquet may be compressed, or UTF-16 or
UTF-32 with a byte order mark (`unpacked`).

Texts are streamed: a file may be larger than memory, or be a pipe. Only the length of a line is bounded (`bounds`).
"""

import os
import random
import re
import sys
from codecs import BOM_UTF8
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from ternarize_cli.data.json_values import json_values
from ternarize_cli.data.records import Document, Wanted, document_of, documents_of, text_column
from ternarize_cli.data.tables import Table, delimited, is_saved_dataset, parquet, saved_dataset
from ternarize_cli.data.unpacked import as_text, decoded, inner_suffix, open_text, reading
from ternarize_cli.errors import DataError, shown
from ternarize_cli.storage.bounds import Held, lines_of, parse_json, user_path, walk

__all__ = [
    "STDIN",
    "Document",
    "OnBad",
    "drawn",
    "open_stdin",
    "open_table",
    "read_lines",
    "read_table",
    "read_texts",
    "source_and_column",
    "source_name",
    "text_files",
]

STDIN = "-"
OnBad = Callable[[DataError], None] | None
"""Is called with the error of a text that can't be used, which is then skipped; None raises the error."""
_FORMS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".json": "json"}
_TABLES = (".csv", ".tsv", ".parquet")
_HEAD = 1 << 16
_JSON = re.compile(rb"\[[ \t\r]*[{\"\n]|\{[ \t\r]*\n")
"""How JSON begins that is no JSONL: a list of objects or strings, or an object over several lines."""


def source_name(path: str | Path) -> str:
    """The name of a source in messages: its path, or `stdin`."""
    return "stdin" if str(path) == STDIN else str(path)


def source_and_column(source: str | Path) -> tuple[str, str | None]:
    """Splits FILE:COLUMN into the source and the name of a column; a source that exists by its whole name has none.

    Raises:
        DataError: the source is empty, which a path would take for the working folder.
    """
    if not str(source):
        raise DataError(
            "an empty name can't be read: there is no such file",
            hint="name a file or a folder; a shell variable may be unset",
        )
    place, colon, column = str(source).rpartition(":")
    if not colon or not place or not column or os.path.exists(user_path(source)):
        return str(source), None
    known = os.path.exists(user_path(place)) or re.fullmatch(r"[\w.-]+/[\w.-]+", place)
    return (place, column) if known else (str(source), None)


def read_texts(
    path: str | Path, *, also: Sequence[str] = (), prefix: str = "", on_bad: OnBad = None, ids: bool = False
) -> Iterator[Document]:
    """Yields the texts of a file, of a saved dataset, or of stdin if `path` is `-`.

    Args:
        path: the file; or FILE:COLUMN.
        also: fields and columns that are read if there is no `text`; each of their texts is a document of its own.
        prefix: text in front of ids that are numbers of lines or rows.
        on_bad: called with the error of a line or row that can't be used, which is then skipped; None raises the error.
        ids: a line or row whose id is null, NaN or empty can't be used; else its number is its id.

    Raises:
        DataError: at once if the file is missing, is a folder that is no saved dataset, or is a table without a column
            of texts; while reading if a line is too long, not UTF-8, not JSON or has no usable text (the message names
            file and line), or if the system can't read on; at the end if there was no text.
    """
    place, column = source_and_column(path)
    wanted = Wanted(column or "text", tuple(also), prefix, ids=ids)
    if place == STDIN:
        stream = open_stdin()
        return _documents(_of_stream(partial(_stdin, stream), "stdin", None, wanted), "stdin", wanted, on_bad)
    file = user_path(place)
    if os.path.isdir(file) and not is_saved_dataset(file):
        raise DataError(f"{path} is a folder, not a file of texts", hint="pass a .txt or .jsonl file inside it")
    if "\0" in str(file) or not os.access(file, os.R_OK):
        why = "no permission" if os.path.exists(file) else "there is no such file"
        raise DataError(f"{place[:200]} can't be read: {why}", hint="check the path; - reads from stdin")
    if (table := open_table(file)) is not None:
        return read_table(table, column, also=also, prefix=prefix, on_bad=on_bad, ids=ids)
    records = _of_stream(partial(open_text, file), place, _FORMS.get(inner_suffix(file)), wanted)
    return _documents(records, place, wanted, on_bad)


def open_table(path: Path) -> Table | None:
    """Opens a CSV, TSV or Parquet file or a saved dataset; None if a path is none of these.

    Raises:
        DataError: the table can't be read.
    """
    if os.path.isdir(path):
        return saved_dataset(path) if is_saved_dataset(path) else None
    suffix = inner_suffix(path)
    if not os.path.exists(path) or suffix not in _TABLES:
        return None
    return parquet(path) if suffix == ".parquet" else delimited(path, tabs=suffix == ".tsv")


def read_table(
    table: Table,
    column: str | None = None,
    *,
    also: Sequence[str] = (),
    prefix: str = "",
    on_bad: OnBad = None,
    nulls: bool = False,
    ids: bool = False,
) -> Iterator[Document]:
    """Yields the texts of a table.

    Args:
        table: the table.
        column: the column of the texts; None chooses it (`records.text_column`).
        also: columns that are read if there is no column `text`; each of their texts is a document of its own.
        prefix: text in front of ids that are numbers of rows.
        on_bad: called with the error of a row that can't be used, which is then skipped; None raises the error.
        nulls: pass over rows whose text is null; else they can't be used.
        ids: a row whose id is null, NaN or empty can't be used; else its number is its id.

    Raises:
        DataError: at once if the column is missing or can't be told; while reading, for a row that can't be used.
    """
    pairs = tuple(name for name in also if name in table.texts) if column is None and "text" not in table.texts else ()
    if column is not None and column not in table.texts:
        what = "no column of texts" if column in table.columns else "no column"
        listed = ", ".join(name[:60] for name in table.columns[:12])
        raise DataError(f"{table.name} has {what} called {shown(column)}", hint=f"columns: {listed}")
    if not pairs:
        column = column or text_column(table.texts, table.columns, table.name)
    wanted = Wanted(column or "text", pairs, prefix, nulls, ids)
    records = ((where, str(number), row) for number, (where, row) in enumerate(table.rows, start=1))
    return _documents(records, table.name, wanted, on_bad)


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
    known = {".jsonl", ".ndjson", ".txt", *also}
    return sorted(p for p in walk(folder, DataError) if inner_suffix(p) in known)


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


@contextmanager
def _stdin(stream: IO[bytes]) -> Iterator[IO[bytes]]:
    with reading("stdin"):
        yield as_text(stream, "stdin")


_Record = Document | tuple[str, str, Any]
"""A document; or place in messages, number, and a text, a dict, or the error that the line or row has."""


def _of_stream(
    opened: Callable[[], AbstractContextManager[IO[bytes]]], name: str, form: str | None, wanted: Wanted
) -> Iterator[_Record]:
    """Yields the records of a stream in a form of `_FORMS`; None: the first line that is not blank decides."""
    with opened() as stream:
        if form is None and _JSON.match(stream.peek(_HEAD).removeprefix(BOM_UTF8).lstrip()):  # type: ignore[attr-defined]
            form = "json"
        if form == "json":
            values = json_values(stream, name, (wanted.column, *wanted.also))
            yield from ((f"{name} item {number}", str(number), value) for number, value in enumerate(values, start=1))
            return
        prefix, plain = wanted.prefix, wanted.prefix.isascii()
        for number, raw in enumerate(lines_of(stream, name, DataError), start=1):
            if form == "text" and number > 1 and plain:  # a corpus of millions waits for what is done here
                try:
                    line = raw.decode()
                except UnicodeDecodeError:
                    line = "\0"
                if "\0" not in line:  # else the error is raised below
                    if line := line.strip():
                        yield Document(f"{prefix}{number}", line)
                    continue
            where = f"{name} line {number}"
            try:
                line = decoded(raw.removeprefix(BOM_UTF8) if number == 1 else raw, where).strip()
                if not line:
                    continue
                form = form or ("jsonl" if line.startswith("{") else "text")
                yield where, str(number), _parsed(line, where) if form == "jsonl" else line
            except DataError as e:
                yield where, str(number), e


def _parsed(line: str, where: str) -> Any:
    """Parses a line of JSONL; refuses a text, which is no record there."""
    value = parse_json(line, where, error=DataError, hint='a line looks like {"text": "…"}')
    return [value] if isinstance(value, str) else value


def _documents(records: Iterator[_Record], name: str, wanted: Wanted, on_bad: OnBad) -> Iterator[Document]:
    """Makes documents of records."""
    found = False
    for given in records:
        if isinstance(given, Document):
            found = True
            yield given
            continue
        where, number, record = given
        try:
            if isinstance(record, str):
                yield document_of(record, where, wanted.prefix + number)
                found = True
                continue
            if isinstance(record, DataError):
                raise record
            documents = tuple(documents_of(record, where, number, wanted))
        except DataError as e:
            if on_bad is None:
                raise
            on_bad(e)
            continue
        found = True
        yield from documents
    if not found:
        raise DataError(f"{name} holds no text", hint="one text per line, or JSONL with a `text` field")
