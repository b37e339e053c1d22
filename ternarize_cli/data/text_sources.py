"""Reads texts from files, folders of files and datasets of the hub, to train and calibrate with.

A source that exists is a file or a folder. `starter` and `starter:zh` are texts of this machine (`data.starter`). Any
other `owner/name` is a dataset on the hub, whose split `train` is streamed. SOURCE:COLUMN names the column of the
texts. If a table holds pairs or triples for training (`anchor` and `positive`, `query` and `answer`, …), all of these
columns can be read.
"""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from ternarize_cli.data.records import PAIRED
from ternarize_cli.data.starter import is_starter, starter_texts
from ternarize_cli.data.tables import hub_dataset, is_saved_dataset, saved_dataset
from ternarize_cli.data.texts import STDIN, open_table, read_table, read_texts, source_and_column, text_files
from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import user_path

__all__ = ["TABLES", "files_of", "holds_texts", "is_hub_id", "texts_of"]

_SHUFFLED = 10_000
TABLES = (".parquet",)
"""Suffixes of tables that a folder of texts may hold beside files of texts."""
_OTHERS = (".csv", ".tsv", ".json")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def is_hub_id(source: str | Path) -> bool:
    """Whether a source names a dataset on the hub."""
    path = Path(source)
    if not _HUB_ID.fullmatch(str(source)) or path.suffix:
        return False
    return not (os.path.exists(path) or os.path.exists(path.parent))


def files_of(folder: Path) -> list[Path]:
    """Lists the files of texts and tables of a folder: text, JSONL and Parquet, or else CSV, TSV and JSON.

    Raises:
        DataError: the folder can't be read, or holds too many files (`bounds.walk`).
    """
    if is_saved_dataset(folder):
        return []
    return text_files(folder, also=TABLES) or text_files(folder, also=_OTHERS)


def holds_texts(folder: Path) -> bool:
    """Whether a folder has files of texts, or is a saved dataset with a column of texts.

    Raises:
        DataError: the folder can't be read, or the dataset is damaged.
    """
    if is_saved_dataset(folder):
        return any(name.lower() not in ("_id", "id", "label") for name in saved_dataset(folder).texts)
    return bool(files_of(folder))


def texts_of(source: str | Path, count: int, seed: int, *, paired: bool = False) -> Iterator[str]:
    """Yields the texts of a source, in order; of a hub dataset, which may be endless, a random choice.

    Rows of tables whose text is null are passed over.

    Args:
        source: a file, a folder, `-`, `starter`, or a hub dataset; a column may follow, as in FILE:COLUMN.
        count: about how many texts of a hub dataset are drawn; other sources are read to their end.
        seed: seed of that choice.
        paired: also read the columns of pairs and triples, and JSONL lines that have these fields instead of `text`.

    Raises:
        DataError: the source can't be read or holds no texts.
    """
    if is_starter(source):
        yield from starter_texts(str(source))
        return
    also = PAIRED if paired else ()
    place, column = source_and_column(source)
    path = user_path(place)
    if os.path.isdir(path) and not is_saved_dataset(path):
        files = files_of(path)
        if not files:
            raise DataError(f"{source} holds no texts", hint="pass files named *.txt, *.jsonl or *.parquet, or images")
        for file in files:
            yield from texts_of(file if column is None else f"{file}:{column}", count, seed, paired=paired)
    elif place != STDIN and is_hub_id(place):
        rows = hub_dataset(place, seed=seed, buffer=_SHUFFLED)
        documents = read_table(rows, column, also=also, nulls=True)
        yield from islice((document.text for document in documents if document.text), count)
    elif place != STDIN and (table := open_table(path)) is not None:
        yield from (document.text for document in read_table(table, column, also=also, nulls=True))
    else:
        yield from (document.text for document in read_texts(source, also=also))
