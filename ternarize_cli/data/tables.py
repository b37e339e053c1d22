"""Reads the rows of tables that may hold texts: CSV, TSV and Parquet files, saved datasets and datasets of the hub.

A CSV or TSV file begins with a header. In CSV, commas separate fields; semicolons or tabs if the header has no comma.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ternarize_cli.data.columns import csv_rows, tsv_rows
from ternarize_cli.data.lines import lines
from ternarize_cli.data.parquet_errors import reading_parquet
from ternarize_cli.errors import DataError, counted, quoted, reason
from ternarize_cli.storage.bounds import MAX_LINE, read_object, require_regular

__all__ = [
    "Table",
    "delimited",
    "hub_dataset",
    "is_saved_dataset",
    "load_saved",
    "parquet",
    "saved_dataset",
    "saved_splits",
]

_ROWS, _HEAD = 1024, 100
_IDS = ("_id", "id")


@dataclass(frozen=True)
class Table:
    """A table that is read once, from its beginning.

    Attributes:
        name: the name of the table in messages.
        texts: names of the columns whose type is text.
        columns: names of all columns.
        rows: for each row, its place in messages and its texts and ids by column, or the error that it has.
        count: number of rows; None if that is not known.
    """

    name: str
    texts: list[str]
    columns: list[str]
    rows: Iterator[tuple[str, dict[str, Any] | DataError]] = field(repr=False)
    count: int | None = None


def delimited(path: Path, *, tabs: bool) -> Table:
    """Opens a CSV file with a header, or a TSV file if `tabs`.

    Raises:
        DataError: the file is empty or can't be read; the rows raise it for a row that is not valid CSV.
    """
    require_regular(path, DataError)
    first = next((text for _, text in lines(path) if text.strip()), "")
    separator = "," if "," in first or not any(s in first for s in ";\t") else max(";\t", key=first.count)
    rows = tsv_rows(path) if tabs else csv_rows(path, separator)
    where, header = next(rows, ("", []))
    if not where:
        raise DataError(f"{path} holds no text", hint="a header that names the columns, and a row for each text")
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise DataError(f"{where}: two columns are called {twice[:60]!r}", hint="give each column a name of its own")

    def read() -> Iterator[tuple[str, dict[str, Any] | DataError]]:
        for where, row in rows:
            if len(row) == len(header):
                yield where, dict(zip(header, row, strict=True))
            else:
                hint = None if tabs else f'put a text that holds {separator!r} in double quotes: "a{separator} b"'
                yield (
                    where,
                    DataError(f"{where}: {counted(len(row), 'column')} where the header has {len(header)}", hint=hint),
                )

    return Table(str(path), header, header, read())


def parquet(path: Path) -> Table:
    """Opens a Parquet file.

    Raises:
        DataError: the file is no regular file or is damaged; the rows raise it, too, and for a text of more than
            MAX_LINE bytes.
    """
    import pyarrow.parquet as pq

    require_regular(path, DataError)
    with reading_parquet(path):
        file = pq.ParquetFile(path)
        schema, count = file.schema_arrow, file.metadata.num_rows
    texts = [column.name for column in schema if _is_text(column.type)]
    read = [name for name in schema.names if name in texts or name in _IDS]

    def rows() -> Iterator[tuple[str, dict[str, Any] | DataError]]:
        number = 0
        with reading_parquet(path):
            for batch in file.iter_batches(batch_size=_ROWS, columns=read):
                for row in batch.to_pylist():
                    if any(isinstance(value, str) and len(value) > MAX_LINE for value in row.values()):
                        raise DataError(f"{path} holds a text longer than the {MAX_LINE:,} bytes that a line may have")
                    number += 1
                    yield f"{path}, row {number}", row

    return Table(str(path), texts, list(schema.names), rows(), count)


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the library `datasets` wrote a folder."""
    return (folder / "dataset_dict.json").is_file() or all(
        (folder / name).is_file() for name in ("state.json", "dataset_info.json")
    )


def load_saved(folder: Path) -> Any:
    """Loads a folder of `save_to_disk`; of several splits, `train`, or else the only one.

    Raises:
        DataError: the folder is damaged, holds no rows, or has several splits and none is called `train`.
    """
    import datasets

    splits = saved_splits(folder)
    name = "train" if "train" in splits else next(iter(splits), None)
    if name is None or (name != "train" and len(splits) > 1):
        raise DataError(
            f"{folder} has the splits {', '.join(splits) or '(none)'}, and none is called train",
            hint=f"pass one of them: {quoted(splits[name])}" if name else "save it again",
        )
    path = splits[name]
    state = path / "state.json"
    empty = state.is_file() and read_object(state, error=DataError).get("_data_files") == []  # `datasets` loads no such
    try:
        found = None if empty else datasets.load_from_disk(str(path))
    except Exception as e:  # a damaged file can raise any error in `datasets`
        raise DataError(f"{path} can't be read as a saved dataset: {reason(e)}", hint="save it again") from e
    if found is None or not len(found):
        raise DataError(f"{path} holds no rows", hint="save a dataset that has some")
    return found


def saved_splits(folder: Path) -> dict[str, Path]:
    """Finds the splits of a saved dataset: a dict from name to folder; a dataset of one split has the name "".

    Raises:
        DataError: dataset_dict.json is damaged.
    """
    names = folder / "dataset_dict.json"
    if not names.is_file():
        return {"": folder}
    found = read_object(names, error=DataError).get("splits")
    splits = [name for name in found if isinstance(name, str)] if isinstance(found, list) else []
    return {name: folder / name for name in splits if Path(name).name == name}


def saved_dataset(folder: Path) -> Table:
    """Opens a dataset that `save_to_disk` of the library `datasets` wrote.

    Raises:
        DataError: the folder is damaged, holds no rows, or has several splits and none is called `train`.
    """
    found = load_saved(folder)
    texts = _texts_of(found.features)
    kept = [name for name in found.column_names if name in texts or name in _IDS]
    found = found.select_columns(kept)

    def rows() -> Iterator[tuple[str, dict[str, Any] | DataError]]:
        try:
            for number, row in enumerate(found, start=1):
                yield f"{folder}, row {number}", row
        except Exception as e:
            raise DataError(f"{folder} can't be read as a saved dataset: {reason(e)}", hint="save it again") from e

    return Table(str(folder), texts, list(found.column_names), rows(), len(found))


def hub_dataset(name: str, *, seed: int | None = None, buffer: int = 1) -> Table:
    """Opens the split `train` of a dataset on the hub, which is streamed.

    Args:
        name: OWNER/NAME.
        seed: seed of a random order within `buffer` rows; None keeps the order.
        buffer: the number of rows among which a row is chosen.

    Raises:
        DataError: the dataset can't be read, or has no rows.
    """
    import datasets

    for library in ("datasets", "huggingface_hub"):  # these log every retry
        logging.getLogger(library).setLevel(logging.ERROR)

    def failed(e: Exception) -> DataError:
        text = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        return DataError(
            f"{name} is no file here and can't be read as a hub dataset: {text}", hint="pass a file of texts"
        )

    try:
        found = datasets.load_dataset(name, split="train", streaming=True)
        found = found if seed is None else found.shuffle(seed, buffer_size=buffer)
        stream = iter(found)
        head = list(islice(stream, _HEAD))
    except Exception as e:  # the hub, a proxy or a damaged file can raise any error
        raise failed(e) from e
    if not head:
        raise DataError(f"{name} holds no rows")
    if found.features is not None:
        texts, columns = _texts_of(found.features), list(found.features)
    else:  # files of JSON have no types
        columns = list(dict.fromkeys(column for row in head for column in row))
        texts = [column for column in columns if all(isinstance(row.get(column), str | None) for row in head)]

    kept = {name for name in columns if name in texts or name in _IDS}

    def rows() -> Iterator[tuple[str, dict[str, Any] | DataError]]:
        try:
            for number, row in enumerate(chain(head, stream), start=1):
                yield f"{name}, row {number}", {key: value for key, value in row.items() if key in kept}
        except Exception as e:
            raise failed(e) from e

    return Table(name, texts, columns, rows())


def _texts_of(features: Any) -> list[str]:
    """Names of the columns of texts in the features of a dataset."""
    return [name for name, kind in features.items() if getattr(kind, "dtype", None) in ("string", "large_string")]


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
