"""Reads pairs of texts from tables: what a cross-encoder scores.

The columns are found by their names in the header of a CSV or TSV, in the first object of a JSONL, or in a Parquet:

    the first text     query, question, anchor, premise, sentence1, text1
    the second text    passage, document, answer, positive, negative, hypothesis, sentence2, text2
    the score          score, label, relevance; may be missing

A row with several second texts, such as a positive and a negative, holds a pair for each. A CSV or TSV without such a
header has the first text, the second text and perhaps the score in this order, unless its first row names other columns
(`text`, `label`, …) or has a number among the first two.

Where the scores come from a teacher, `pairs_of` also takes texts without a partner, one a line. They become two pairs
each: with the text that follows in the file, which is often about the same matter, and with one drawn at random, which
hardly ever is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.columns import read_columns
from ternarize_cli.data.lines import filled, json_objects, lines, readable_file
from ternarize_cli.data.text_sources import is_hub_id, texts_of
from ternarize_cli.data.texts import STDIN, text_files
from ternarize_cli.data.unpacked import inner_suffix
from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import user_path

__all__ = ["PAIR_TABLES", "PairColumns", "TextPair", "pair_columns", "pairs_of", "read_text_pairs"]

PAIR_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Suffixes of the files that pairs are read from."""
_QUERIES = ("query", "question")
_FIRST = (*_QUERIES, "anchor", "premise", "sentence1", "text1")
_SECOND = ("passage", "document", "answer", "positive", "negative", "hypothesis", "sentence2", "text2")
_SCORE = ("score", "label", "relevance")
_NO_PAIR = {"id", "_id", "text", "title", "label", "url"}
"""Names of columns that tell that a table has a header, and holds texts that are no pairs."""


@dataclass(frozen=True)
class PairColumns:
    """The columns of a table of pairs.

    Attributes:
        first: name of the column of first texts.
        second: names of the columns of second texts.
        score: name of the column of scores; None if there is none.
        header: whether the file names its columns; otherwise they lie in order.
    """

    first: str
    second: tuple[str, ...]
    score: str | None
    header: bool = True

    @property
    def are_queries(self) -> bool:
        """Whether the first texts are queries, of each of which several second texts are ranked."""
        return self.first.strip().lower() in _QUERIES

    @property
    def names(self) -> list[str]:
        """The names of all columns: first, second, score."""
        return [self.first, *self.second, *([self.score] if self.score else [])]


@dataclass(frozen=True)
class TextPair:
    """Two texts of a row, with the row's score (None if the table has none) and its place for messages."""

    first: str
    second: str
    score: Any
    where: str


def pair_columns(path: Path) -> PairColumns | None:
    """Finds the columns of pairs in a file; None if the file is no table, or its columns hold no pairs.

    Raises:
        DataError: the file can't be read.
    """
    suffix = inner_suffix(path)
    if suffix not in PAIR_TABLES:
        return None
    path = readable_file(path)
    header = _header(path, suffix)
    names = {name.strip().lower(): name for name in reversed(header)}
    first = next((names[name] for name in _FIRST if name in names), None)
    second = tuple(names[name] for name in _SECOND if name in names)
    if first is not None and second:
        return PairColumns(first, second, next((names[name] for name in _SCORE if name in names), None))
    is_bare = not names.keys() & _NO_PAIR and not any(map(_is_number, header[:2]))
    if suffix in (".csv", ".tsv") and len(header) in (2, 3) and is_bare:
        return PairColumns("sentence1", ("sentence2",), "score" if len(names) == 3 else None, header=False)
    return None


def read_text_pairs(path: Path, columns: PairColumns) -> Iterator[TextPair]:
    """Yields the pairs of a file in order.

    Args:
        path: the file.
        columns: its columns, as `pair_columns` found them.

    Raises:
        DataError: a row lacks a column, or a text is empty or no text; the message names file and line.
    """
    for where, row in read_columns(readable_file(path), columns.names, named=columns.header):
        score = row[-1] if columns.score else None
        for second in row[1 : 1 + len(columns.second)]:
            yield TextPair(filled(row[0], "first text", where), filled(second, "second text", where), score, where)


def pairs_of(source: str | Path, most: int, seed: int) -> Iterator[tuple[str, str]]:
    """Yields the pairs of texts in a source, at most `most` of them.

    Args:
        source: a table of pairs, a file of texts, a folder of such files, or `-`.
        most: the most pairs to yield.
        seed: the seed by which texts without a partner get one.

    Raises:
        DataError: the source can't be read, or is a dataset of the hub.
    """
    path = user_path(source)
    if str(source) != STDIN and is_hub_id(source):
        raise DataError(
            f"{source} is a dataset of the hub, from which no pairs are read", hint="save it as a Parquet file first"
        )
    files = text_files(path, also=PAIR_TABLES) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{source} holds no texts", hint="pass files named *.csv, *.tsv, *.jsonl, *.parquet or *.txt")
    found = (pair for file in files for pair in _pairs_of_file(file, source, most, seed))
    yield from islice(found, most)


def _pairs_of_file(file: Path, source: str | Path, most: int, seed: int) -> Iterator[tuple[str, str]]:
    columns = None if str(source) == STDIN else pair_columns(file)
    if columns is not None:
        yield from ((pair.first, pair.second) for pair in read_text_pairs(file, columns))
        return
    texts = list(islice(texts_of(STDIN if str(source) == STDIN else file, most, seed), most))
    drawn = np.random.default_rng(seed).integers(len(texts), size=len(texts)) if texts else ()
    for i, other in enumerate(drawn):
        yield texts[i], texts[(i + 1) % len(texts)]
        yield texts[i], texts[int(other)]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _header(path: Path, suffix: str) -> list[str]:
    """Lists the names of the columns; of a CSV or TSV, the fields of its first row."""
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        try:
            return list(pq.read_schema(path).names)
        except Exception as e:  # a damaged file can raise any error in Arrow
            raise DataError(f"{path} can't be read as Parquet", hint="fetch the file again") from e
    if suffix in (".jsonl", ".ndjson"):
        return next((list(record) for _, record in json_objects(path)), [])
    import csv

    head = next((line for _, line in lines(path) if line.strip()), "")
    fields = head.rstrip("\r\n").split("\t") if suffix == ".tsv" else next(csv.reader([head]), [])
    return list(islice(fields, 1000))
