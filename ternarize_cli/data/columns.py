"""Reads the columns that a task needs from files of labelled texts.

    .csv        commas; a field with a comma or a quote stands in quotes, a quote inside them is written twice
    .tsv        tabs; quotes mean nothing, as in GLUE and BEIR
    .jsonl      one object on each line
    .json       a list of objects (`json_values`)
    .parquet    columns of texts and numbers

All but Parquet may be compressed (`unpacked`), as in `.csv.gz`.

A CSV or TSV has a header if its first line holds every wanted column. Without a header, columns are taken by their
position; but if the user named the columns, a missing name is an error.
"""

import csv
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ternarize_cli.data.json_values import json_values
from ternarize_cli.data.lines import check_encodable, json_objects, lines
from ternarize_cli.data.parquet_errors import reading_parquet
from ternarize_cli.data.unpacked import inner_suffix, open_text
from ternarize_cli.errors import DataError, shown
from ternarize_cli.storage.bounds import MAX_LINE, require_regular

__all__ = ["csv_rows", "read_columns", "tsv_rows"]

_ROWS = 1024
csv.field_size_limit(MAX_LINE)


def read_columns(
    path: Path, columns: Sequence[str], *, named: bool = False, separator: str = ","
) -> Iterator[tuple[str, list[Any]]]:
    """Yields, for each row, its place for messages and its values in the order of `columns`; skips blank lines.

    Args:
        path: the file.
        columns: names of the wanted columns, in the order that a file without header has.
        named: whether the user chose the names; then a CSV or TSV must have them in its header.
        separator: separator of a file whose name ends neither in .csv nor in .tsv.

    Raises:
        DataError: a column is missing, a row is damaged, or there is no row; the message names file and line.
    """
    suffix = inner_suffix(path)
    if suffix in (".jsonl", ".ndjson"):
        rows = _jsonl(path, columns)
    elif suffix == ".json":
        rows = _json(path, columns)
    elif suffix == ".parquet":
        rows = _parquet(path, columns)
    elif (separator := {".csv": ",", ".tsv": "\t"}.get(suffix, separator)) == ",":
        rows = _chosen(csv_rows(path), columns, named, "comma")
    else:
        rows = _chosen(tsv_rows(path), columns, named, "tab")
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} is empty", hint=f"each row has: {', '.join(columns)}")


def csv_rows(path: Path, separator: str = ",") -> Iterator[tuple[str, list[str]]]:
    """Yields, for each row of a CSV file, its file and line, and its fields; skips blank lines.

    Raises:
        DataError: the file is not valid CSV, a field is longer than MAX_LINE, or a line can't be read (`lines.lines`).
    """
    reader = csv.reader((text for _, text in lines(path)), strict=True, delimiter=separator)
    line = 1  # where the row starts: a quoted field may hold line breaks
    try:
        for row in reader:
            if row:
                yield f"{path}, line {line}", row
            line = reader.line_num + 1
    except csv.Error as e:
        raise DataError(f"{path}, line {line}: not valid CSV: {e}", hint="write a quote inside quotes twice") from e


def tsv_rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields, for each row of a TSV file, its file and line, and its fields; skips blank lines.

    Raises:
        DataError: a line can't be read (`lines.lines`).
    """
    for number, line in lines(path):
        if line.strip():
            yield f"{path}, line {number}", line.rstrip("\r\n").split("\t")


def _chosen(
    rows: Iterator[tuple[str, list[str]]], columns: Sequence[str], named: bool, separator: str
) -> Iterator[tuple[str, list[Any]]]:
    """Selects the wanted columns, by the header's names or by position."""
    places: list[int] | None = None
    width = len(columns)
    for i, (where, row) in enumerate(rows):
        if i == 0 and (named or set(columns) <= set(row)):
            _check_columns(columns, row, where)
            places, width = [row.index(name) for name in columns], len(row)
            continue
        if len(row) != width:
            raise DataError(
                f"{where}: {len(row)} column{'s' if len(row) != 1 else ''} where {width} are needed"
                + (f": {f' {separator} '.join(columns)}" if places is None else ", as many as the header has"),
                hint='put a text that holds a comma in double quotes: "a, b"' if separator == "comma" else None,
            )
        yield where, [row[place] for place in places] if places is not None else list(row)


def _jsonl(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    for number, record in json_objects(path):
        where = f"{path}, line {number}"
        _check_columns(columns, list(record), where)
        yield where, [record[name] for name in columns]


def _json(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    with open_text(path) as stream:
        for number, record in enumerate(json_values(stream, str(path), tuple(columns)), start=1):
            where = f"{path}, item {number}"
            if not isinstance(record, dict):
                raise DataError(f"{where}: {shown(record)} is not a JSON object", hint=f"keys: {', '.join(columns)}")
            _check_columns(columns, list(record), where)
            check_encodable(record, where)
            yield where, [record[name] for name in columns]


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, list[Any]]]:
    import pyarrow.parquet as pq

    require_regular(path, DataError)
    number = 0
    with reading_parquet(path):
        file = pq.ParquetFile(path)
        _check_columns(columns, file.schema_arrow.names, str(path))
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
            for row in batch.to_pylist():
                yield f"{path}, row {number}", [row[name] for name in columns]
                number += 1


def _check_columns(wanted: Sequence[str], found: Sequence[str], where: str) -> None:
    missing = next((name for name in wanted if name not in found), None)
    if missing is None:
        return
    near = difflib.get_close_matches(missing, found, n=1)
    hint = f"did you mean {near[0][:60]!r}? " if near else ""
    raise DataError(
        f"{where}: there is no column {shown(missing)}",
        hint=f"{hint}columns: {', '.join(name[:60] for name in found[:12])}",
    )
