"""Opens a corpus: texts or images with their ids, from files, folders or the hub.

    -  FILE.txt  FILE.jsonl  [.gz]    texts (`texts.read_texts`)
    FILE.parquet                      rows with a column `text`, or else the one with the longest texts; ids from `_id`
                                      or `id`
    DIR of such files                 all files in order; a text without an id gets the id FILE:LINE
    images                            all parts that `images.read_parts` finds, in order
    OWNER/NAME                        a dataset on the hub (or in its cache): the split `train`, streamed

Rows are read when they are needed. Only 8 bytes of each id stay in memory, to find ids that occur twice.
"""

import hashlib
import logging
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.images import Images, is_images, read_parts
from ternarize_cli.data.text_sources import is_hub_id, parquet_rows
from ternarize_cli.data.texts import STDIN, Document, read_texts, source_name, text_files
from ternarize_cli.errors import DataError, shown
from ternarize_cli.storage.bounds import lines_of, require_regular, user_path, utf8_name

__all__ = ["Corpus", "Skipped", "open_corpus", "unique"]

_OnBad = Callable[[DataError], None] | None
_HEAD = 100
_SHOWN = 3


class Skipped:
    """Counts the rows of a corpus that were left out, and keeps the first errors.

    Attributes:
        count: number of lines, rows or images that could not be read.
        empty: number of texts without a word.
        shown: messages of the first errors.
    """

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.count = self.empty = 0

    def __call__(self, error: DataError) -> None:
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(str(error))

    @property
    def summary(self) -> str | None:
        """A sentence for a warning that says what was skipped; None if nothing was."""
        more = f"; {self.count - len(self.shown)} more" if self.count > len(self.shown) else ""
        parts = [f"{self.count} lines were skipped: {'; '.join(self.shown)}{more}"] if self.count else []
        parts += [f"{self.empty} texts were empty and were left out"] if self.empty else []
        return "; ".join(parts) or None


@dataclass(frozen=True)
class Corpus:
    """An opened corpus.

    Attributes:
        name: the name of the source in messages.
        items: an iterator of ids and contents (a text, or a PIL image), which can be read once.
        kind: "text" or "image".
        count: the most items that there can be; None if that is unknown before they are read.
        skipped: counts of the items that were left out so far.
        ids: the ids of images, known before these are decoded; None for texts.
    """

    name: str
    items: Iterator[tuple[str, Any]] = field(repr=False)
    kind: str
    count: int | None
    skipped: Skipped
    ids: list[str] | None = field(default=None, repr=False)


def open_corpus(source: str, *, skip_bad: bool = False, documents: bool = False, prefix: str = "") -> Corpus:
    """Opens a corpus.

    Args:
        source: `-`, a file, a folder or OWNER/NAME; the docstring of this module lists the forms.
        skip_bad: skip lines, rows and images that can't be read, instead of raising an error.
        documents: leave out empty texts, which no search can find; blank lines of plain text are always left out.
        prefix: text in front of ids that are line or row numbers, if the source is a file.

    Raises:
        DataError: the source is missing, can't be read, or holds neither texts nor images (`texts.read_texts` and
            `images.read_parts` say more).
    """
    path, skipped = user_path(source), Skipped()
    on_bad = skipped if skip_bad else None
    folder, table = os.path.isdir(path), path.suffix.lower() == ".parquet" and os.path.exists(path)
    if table and not folder:
        require_regular(path, DataError)
    tables = text_files(path, also=(".parquet",)) if folder and source != STDIN else []
    if source != STDIN and (is_images(path) or (folder and not tables)):
        parts = list(read_parts(path).values())
        ids = [identity for part in parts for identity in part.ids]
        return Corpus(source, _images(parts, on_bad), "image", len(ids), skipped, ids)
    count: int | None = None
    if folder and source != STDIN:
        items, count = _folder(path, tables, on_bad), _sum(map(_lines, tables))
    elif table:
        items, count = _rows(_parquet(path), source, on_bad, prefix=prefix), _lines(path)
    elif source != STDIN and is_hub_id(source):
        items = _rows(_hub(source), source, on_bad, prefix=prefix)
    else:
        items = _texts(read_texts(source, prefix=prefix, on_bad=on_bad))  # raises the error for a missing file
        count = None if source == STDIN else _lines(path)
    return Corpus(source_name(source), _filled(items, skipped) if documents else items, "text", count, skipped)


def unique(
    items: Iterable[tuple[str, Any]], name: str, again: Callable[[], Iterable[tuple[str, Any]]] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yields the items, and raises an error after the last one if two have the same id.

    Args:
        items: ids and contents.
        name: the name of the source in messages.
        again: opens the items a second time, to find the id that occurs twice.

    Raises:
        DataError: two items have the same id; the message names the first such pair.
    """
    ids = array("Q")
    for identity, content in items:
        ids.append(_hash(identity))
        yield identity, content
    hashes: np.ndarray = np.frombuffer(ids, np.uint64) if ids else np.empty(0, np.uint64)
    values, firsts, counts = np.unique(hashes, return_index=True, return_counts=True)
    if len(values) == len(hashes):
        return
    first = int(firsts[counts > 1].min())
    number, row = int((counts - 1).sum()), int(np.flatnonzero(hashes == hashes[first])[1])
    more = f"; {number - 1} more ids occur twice" if number > 1 else ""
    shown = f" {next(islice(again(), first, None))[0]!r}" if again else ""
    raise DataError(
        f"{name}: texts {first + 1} and {row + 1} have the same id{shown}{more}",
        hint="give each an id of its own, or none: then it is the number of its line",
    )


def _hash(identity: str) -> int:
    return int.from_bytes(hashlib.blake2b(identity.encode(), digest_size=8).digest(), "little")


def _texts(documents: Iterable[Document]) -> Iterator[tuple[str, str]]:
    return ((document.id, document.text) for document in documents)


def _filled(items: Iterable[tuple[str, str]], skipped: Skipped) -> Iterator[tuple[str, str]]:
    for identity, text in items:
        if text.strip():
            yield identity, text
        else:
            skipped.empty += 1


def _images(parts: list[Images], on_bad: _OnBad) -> Iterator[tuple[str, Any]]:
    for images in parts:
        for row, identity in enumerate(images.ids):
            try:
                image = images[row]
            except DataError as e:
                if on_bad is None:
                    raise
                on_bad(e)
                continue
            yield identity, image


def _folder(folder: Path, files: list[Path], on_bad: _OnBad) -> Iterator[tuple[str, str]]:
    for file in files:
        name = utf8_name(file.relative_to(folder))
        if file.suffix.lower() == ".parquet":
            yield from _rows(_parquet(file), str(file), on_bad, prefix=f"{name}:")
        else:
            yield from _texts(read_texts(file, prefix=f"{name}:", on_bad=on_bad))


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    return parquet_rows(path, also=("_id", "id", "title"))


def _hub(name: str) -> Iterator[dict[str, Any]]:
    import datasets

    for library in ("datasets", "huggingface_hub"):  # these log every retry
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        yield from datasets.load_dataset(name, split="train", streaming=True)
    except Exception as e:  # the hub, a proxy or a damaged file can raise any error
        text = " ".join(f"{type(e).__name__}: {e}".split())[:200]
        raise DataError(
            f"{name} is no file here and can't be read as a hub dataset: {text}", hint="pass a file of texts"
        ) from e


def _rows(rows: Iterator[dict[str, Any]], name: str, on_bad: _OnBad, *, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields id and text of each row. The column is `text`, or else that with the longest texts in the first rows."""
    head = list(islice(rows, _HEAD))
    lengths: dict[str, int] = {}
    for row in head:
        for column, value in row.items():
            if isinstance(value, str) and column not in ("_id", "id"):
                lengths[column] = lengths.get(column, 0) + len(value)
    if not lengths:
        columns = ", ".join(head[0])[:200] if head else "no rows"
        raise DataError(f"{name} has no column of texts: {columns}", hint="name the column `text`")
    column = "text" if "text" in lengths else max(lengths, key=lengths.__getitem__)
    for number, row in enumerate(chain(head, rows), start=1):
        value, identity = row.get(column), row.get("_id", row.get("id"))
        if not isinstance(value, str) or isinstance(identity, dict | list):
            error = DataError(
                f"{name}, row {number}: {column!r} is {shown(value)}, not a string",
                hint="--skip-bad leaves such rows out",
            )
            if on_bad is None:
                raise error
            on_bad(error)
            continue
        title = row.get("title")
        text = f"{title if isinstance(title, str) else ''} {value}".strip()
        yield (f"{prefix}{number}" if identity is None else str(identity)), text


def _lines(path: Path) -> int | None:
    """Counts the lines of a file of texts that are not blank, or the rows of a Parquet file; None if compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".gz" or not os.path.isfile(path):
        return None
    try:
        if path.suffix.lower() == ".parquet":
            return int(pq.read_metadata(path).num_rows)
        with path.open("rb") as stream:
            return sum(1 for line in lines_of(stream, str(path), DataError) if not line.isspace())
    except (OSError, DataError, pa.ArrowException):  # reading the file raises this error again
        return None


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)
