"""Reads texts from files, folders of files, Parquet and datasets of the hub.

A source that exists is a file or a folder. Any other `owner/name` is a dataset on the hub, whose split `train` is
streamed. Tables give the column `text`, or else the one with the longest texts. If a table holds pairs or triples for
training (`anchor` and `positive`, `query` and `answer`, …), all of these columns can be read.
"""

import logging
import os
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ternarize_cli.data.texts import STDIN, read_texts, text_files
from ternarize_cli.errors import DataError, reason
from ternarize_cli.storage.bounds import MAX_LINE, require_regular, user_path

__all__ = ["PAIRED", "TABLES", "is_hub_id", "parquet_rows", "texts_of"]

PAIRED = (
    *("anchor", "query", "question", "sentence", "sentence1", "sentence2", "premise", "hypothesis"),
    *("positive", "pos", "negative", "neg", "hard_negative", "answer", "passage", "document", "context"),
)
"""Names of columns and fields that hold the texts of pairs and triples in training sets."""

_SHUFFLED, _HEAD = 10_000, 100
_ROWS = 1024
TABLES = (".parquet",)
"""Suffixes of tables that texts are read from, besides text files."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(source: str | Path) -> bool:
    """Whether a source names a dataset on the hub."""
    path = Path(source)
    if not _HUB_ID.fullmatch(str(source)) or path.suffix:
        return False
    return not (os.path.exists(path) or os.path.exists(path.parent))


def texts_of(source: str | Path, count: int, seed: int, *, paired: bool = False) -> Iterator[str]:
    """Yields the texts of a source, in order; of a hub dataset, which may be endless, a random choice.

    Args:
        source: a file, a folder, `-`, or a hub dataset.
        count: about how many texts of a hub dataset are drawn; other sources are read to their end.
        seed: seed of that choice.
        paired: also read the columns of pairs and triples, and JSONL lines that have these fields instead of `text`.

    Raises:
        DataError: the source can't be read or holds no texts.
    """
    path = user_path(source)
    if os.path.isdir(path):
        files = text_files(path, also=TABLES)
        if not files:
            raise DataError(f"{source} holds no texts", hint="pass files named *.txt, *.jsonl or *.parquet, or images")
        for file in files:
            yield from texts_of(file, count, seed, paired=paired)
    elif path.suffix.lower() == ".parquet" and os.path.exists(path):
        yield from _parquet(path, paired)
    elif str(source) != STDIN and is_hub_id(source):
        yield from islice(_hub_dataset(str(source), count, seed, paired), count)
    else:
        yield from (document.text for document in read_texts(source, also=PAIRED if paired else ()))


def parquet_rows(path: Path, also: Sequence[str] = ()) -> Iterator[dict[str, Any]]:
    """Yields the rows of a Parquet file, with its columns of texts only.

    Args:
        path: the file.
        also: names of further columns, of any type.

    Raises:
        DataError: the file is no regular file, is damaged, has no column of texts, or holds a text of more than
            MAX_LINE bytes.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    def is_text(kind: Any) -> bool:
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))

    require_regular(path, DataError)
    try:
        file = pq.ParquetFile(path)
        texts = [field.name for field in file.schema_arrow if is_text(field.type)]
        if not texts:
            found = ", ".join(file.schema_arrow.names)[:200]
            raise DataError(f"{path} has no column of texts: {found}", hint="name the column `text`")
        columns = [name for name in file.schema_arrow.names if name in texts or name in also]
        for batch in file.iter_batches(batch_size=_ROWS, columns=columns):
            for row in batch.to_pylist():
                if any(isinstance(value, str) and len(value) > MAX_LINE for value in row.values()):
                    raise DataError(f"{path} holds a text longer than the {MAX_LINE:,} bytes that a line may have")
                yield row
    except DataError:
        raise
    except Exception as e:  # a damaged file, or a value without a Python type, can raise any error in Arrow
        raise DataError(f"{path} can't be read as Parquet: {reason(e)}", hint="fetch the file again") from e


def _parquet(path: Path, paired: bool) -> Iterator[str]:
    rows = parquet_rows(path)
    head = list(islice(rows, _HEAD))
    columns = _columns(head, paired) or list(head[0] if head else ())[:1]
    for row in chain(head, rows):
        yield from filter(None, (row[name] for name in columns))


def _hub_dataset(name: str, count: int, seed: int, paired: bool = False) -> Iterator[str]:
    import datasets

    for library in ("datasets", "huggingface_hub"):  # these log every retry
        logging.getLogger(library).setLevel(logging.ERROR)
    columns: list[str] = []
    head: list[dict[str, Any]] = []
    try:
        rows = iter(datasets.load_dataset(name, split="train", streaming=True).shuffle(seed, buffer_size=_SHUFFLED))
        head = list(islice(rows, max(_HEAD, min(count, _SHUFFLED))))
        columns = _columns(head, paired)
        for row in chain(head, rows) if columns else ():
            yield from (value for value in map(row.get, columns) if isinstance(value, str) and value)
    except Exception as e:  # the hub, a proxy or a damaged file can raise any error
        text = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise DataError(
            f"{name} is no file here and can't be read as a hub dataset: {text}", hint="pass a file of texts"
        ) from e
    if not head:
        raise DataError(f"{name} holds no rows")
    if not columns:
        raise DataError(f"{name} has no column of texts: {', '.join(head[0])}", hint="name the column `text`")


def _columns(rows: Sequence[dict[str, Any]], paired: bool) -> list[str]:
    """Chooses the columns to read: `text`, those of pairs if `paired`, or the one with the longest texts, or none."""
    lengths: dict[str, int] = {}
    for row in rows:
        for name, value in row.items():
            if isinstance(value, str):
                lengths[name] = lengths.get(name, 0) + len(value)
    if "text" in lengths:
        return ["text"]
    pairs = [name for name in lengths if name in PAIRED] if paired else []
    return pairs or ([max(lengths, key=lengths.__getitem__)] if lengths else [])
