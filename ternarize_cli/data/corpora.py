"""Opens a corpus: texts or images with their ids, from files, folders or the hub.

    -  FILE.txt  FILE.jsonl  …    texts, tables of texts and saved datasets (`texts.read_texts`)
    DIR of such files             all files in order; a text without an id gets the id FILE:LINE
    images                        all parts that `images.read_parts` finds, in order
    OWNER/NAME                    a dataset on the hub (or in its cache): the split `train`, streamed

SOURCE:COLUMN names the column or field of the texts.
Rows are read when they are needed. Only 8 bytes of each id stay in memory, to find ids that occur twice.
"""

import os
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.images import Images, is_images, read_parts
from ternarize_cli.data.records import Document
from ternarize_cli.data.tables import hub_dataset, is_saved_dataset
from ternarize_cli.data.text_sources import files_of, holds_texts, is_hub_id
from ternarize_cli.data.texts import STDIN, OnBad, open_table, read_table, read_texts, source_and_column, source_name
from ternarize_cli.data.unpacked import inner_suffix, is_packed
from ternarize_cli.errors import DataError, counted, counted_were
from ternarize_cli.storage.bounds import lines_of, user_path, utf8_name

__all__ = ["Corpus", "Skipped", "open_corpus", "reopened", "unique"]

_SHOWN = 3


class Skipped:
    """Counts the rows of a corpus that were left out, and keeps the first errors.

    Attributes:
        kind: "text" or "image".
        count: number of texts or images that could not be read.
        empty: number of texts without a word.
        shown: messages of the first errors.
    """

    def __init__(self, kind: str = "text") -> None:
        self.kind = kind
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
        parts = [f"{counted_were(self.count, self.kind)} skipped: {'; '.join(self.shown)}{more}"] if self.count else []
        parts += [f"{counted_were(self.empty, 'text')} empty and left out"] if self.empty else []
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


def open_corpus(
    source: str,
    *,
    skip_bad: bool = False,
    documents: bool = False,
    prefix: str = "",
    reads: Callable[[], Collection[str]] = lambda: ("text",),
) -> Corpus:
    """Opens a corpus.

    Args:
        source: `-`, a file, a folder or OWNER/NAME; the docstring of this module lists the forms.
        skip_bad: skip lines, rows and images that can't be read, instead of raising an error.
        documents: leave out empty texts, which no search can find; blank lines of plain text are always left out.
        prefix: text in front of ids that are line or row numbers, if the source is a file.
        reads: returns what the model reads, "text", "image" or both; called only for a folder with texts and images.

    Raises:
        DataError: the source is missing, can't be read, holds neither texts nor images, or holds both and the model
            reads both (`texts.read_texts` and `images.read_parts` say more).
    """
    place, column = source_and_column(source)
    path, skipped = user_path(place), Skipped()
    on_bad = skipped if skip_bad else None
    folder = place != STDIN and os.path.isdir(path) and not is_saved_dataset(path)
    files = files_of(path) if folder else []
    pictures = place != STDIN and is_images(path)
    both = pictures and os.path.isdir(path) and holds_texts(path)
    kinds = reads() if both else ("image",)
    if pictures and "image" in kinds and "text" in kinds:
        such = f", such as {files[0].relative_to(path)}," if files else ""
        raise DataError(
            f"{source} holds texts{such} and images, and the model reads both",
            hint="pass a folder of one kind, or a file",
        )
    if pictures and "image" in kinds:
        parts = list(read_parts(path).values())
        ids = [identity for part in parts for identity in part.ids]
        skipped.kind = "image"
        return Corpus(source, _images(parts, on_bad), "image", len(ids), skipped, ids)
    count: int | None = None
    if folder and not files:
        raise DataError(
            f"{source} holds neither texts nor images", hint="files named *.txt, *.jsonl, *.parquet, *.jpg, …"
        )
    if folder:
        documents_read, count = _folder(path, files, column, on_bad), _sum(map(_lines, files))
    elif place != STDIN and is_hub_id(place):
        documents_read = read_table(hub_dataset(place), column, prefix=prefix, on_bad=on_bad, ids=True)
    else:
        # raises the error for a missing file
        documents_read = read_texts(source, prefix=prefix, on_bad=on_bad, ids=True)
        count = None if place == STDIN else _lines(path)
    items = _filled(documents_read, skipped) if documents else documents_read
    return Corpus(source_name(source), items, "text", count, skipped)


def unique(
    items: Iterable[tuple[str, Any]],
    name: str,
    again: Callable[[], Iterable[tuple[str, Any]]] | None = None,
    *,
    on_twice: Callable[[DataError], None] | None = None,
) -> Iterator[tuple[str, Any]]:
    """Yields the items, and raises an error after the last one if two have the same id.

    Args:
        items: ids and contents.
        name: the name of the source in messages.
        again: opens the items a second time, to find the id that occurs twice.
        on_twice: called with the error, which is then not raised.

    Raises:
        DataError: two items have the same id; the message names the first such pair.
    """
    ids = array("q")
    for item in items:
        ids.append(hash(item[0]))  # Python's hash of strings is keyed: no file can aim at it
        yield item
    hashes: np.ndarray = np.frombuffer(ids, np.int64) if ids else np.empty(0, np.int64)
    values, firsts, counts = np.unique(hashes, return_index=True, return_counts=True)
    if len(values) == len(hashes):
        return
    first = int(firsts[counts > 1].min())
    number, row = int((counts - 1).sum()), int(np.flatnonzero(hashes == hashes[first])[1])
    more = f"; {counted(number - 1, 'more text')} with an id of another" if number > 1 else ""
    shown = f" {next(islice(again(), first, None))[0]!r}" if again else ""
    error = DataError(
        f"{name}: texts {first + 1} and {row + 1} have the same id{shown}{more}",
        hint="give each an id of its own, or none: then it is the number of its line",
    )
    if on_twice is None:
        raise error
    on_twice(error)


def reopened(source: str, **options: Any) -> Callable[[], Iterator[tuple[str, Any]]] | None:
    """Returns a function that opens the items of a corpus once more, or None for stdin and other pipes.

    Args:
        source: as `open_corpus` takes it.
        options: the options that `open_corpus` was called with.
    """
    place = user_path(source_and_column(source)[0])
    if source == STDIN or (os.path.exists(place) and not (os.path.isfile(place) or os.path.isdir(place))):
        return None
    return lambda: open_corpus(source, **options).items


def _filled(items: Iterable[tuple[str, str]], skipped: Skipped) -> Iterator[tuple[str, str]]:
    for identity, text in items:
        if text.strip():
            yield identity, text
        else:
            skipped.empty += 1


def _images(parts: list[Images], on_bad: OnBad) -> Iterator[tuple[str, Any]]:
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


def _folder(folder: Path, files: list[Path], column: str | None, on_bad: OnBad) -> Iterator[Document]:
    for file in files:
        name = utf8_name(file.relative_to(folder))
        place = file if column is None else f"{file}:{column}"
        yield from read_texts(place, prefix=f"{name}:", on_bad=on_bad, ids=True)


def _lines(path: Path) -> int | None:
    """Counts the texts of a source: lines that are not blank, or rows; None if that needs reading more than lines."""
    if os.path.isdir(path) or inner_suffix(path) == ".parquet":
        return table.count if (table := open_table(path)) is not None else None
    if not os.path.isfile(path) or is_packed(path) or inner_suffix(path) in (".csv", ".tsv", ".json"):
        return None
    try:
        with path.open("rb") as stream:
            return sum(1 for line in lines_of(stream, str(path), DataError) if not line.isspace())
    except (OSError, DataError):  # reading the file raises this error again
        return None


def _sum(counts: Iterable[int | None]) -> int | None:
    known = list(counts)
    return None if None in known else sum(count or 0 for count in known)
