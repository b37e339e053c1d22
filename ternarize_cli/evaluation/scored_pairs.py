"""Reads pairs of texts: scored (STS), labelled 0 or 1 (pair classification), or translations (bitext).

    sentence1, sentence2, score    STS: scores on any scale; only their order counts
    sentence1, sentence2, label    pair classification: 1 for a pair that belongs together
    sentence1, sentence2           bitext; or two files, whose lines of the same number belong together

Files are CSV, TSV, JSONL or Parquet (`columns`); a task file can give other names of the columns.
"""

import math
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar

from ternarize_cli.data.columns import read_columns
from ternarize_cli.data.lines import digest_of, filled, lines, readable_file
from ternarize_cli.errors import DataError, counted, shown

__all__ = ["Bitext", "LabelledPairs", "Pairs", "read_bitext", "read_labelled_pairs", "read_pairs", "score_in"]

_NUMBERS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class _TwoTexts:
    name: str
    path: Path
    sha256: str
    first: list[str]
    second: list[str]
    modalities: ClassVar = frozenset({"text"})

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.first)


@dataclass(frozen=True)
class Bitext(_TwoTexts):
    """Sentences and their translations, in file order."""


@dataclass(frozen=True)
class Pairs(_TwoTexts):
    """Pairs of sentences, each with a similarity score, in file order."""

    scores: list[float]


@dataclass(frozen=True)
class LabelledPairs(_TwoTexts):
    """Pairs of texts, each with a label: 1 if the two belong together, else 0."""

    labels: list[int]


def read_pairs(
    path: Path,
    name: str,
    *,
    sentence1: str | None = None,
    sentence2: str | None = None,
    score: str | None = None,
) -> Pairs:
    """Reads scored pairs.

    Args:
        path: the file.
        name: name of the task.
        sentence1, sentence2, score: names of the columns; None means `sentence1`, `sentence2` and `score`.

    Raises:
        DataError: the file is missing or empty, a row lacks a column, a sentence is empty, a score is no finite number,
            or all scores are equal.
    """
    path, chosen, rows = _open(path, sentence1=sentence1, sentence2=sentence2, score=score)
    first, second, scores = [], [], []
    for where, row in rows:
        first.append(filled(row[0], "first sentence", where))
        second.append(filled(row[1], "second sentence", where))
        scores.append(score_in(row[2], where))
    if len(set(scores)) == 1:
        raise DataError(
            f"{path}: every score is {scores[0]:g}, so rank correlation (Spearman) is undefined",
            hint="use pairs with at least two different scores",
        )
    return Pairs(name, path, digest_of([path], *chosen), first, second, scores)


def _open(path: Path, **names: str | None) -> tuple[Path, list[str], Any]:
    """Opens a file; returns its path, the names of its columns, and its rows."""
    path = readable_file(path)
    columns = [name or default for default, name in names.items()]
    named = any(name is not None for name in names.values())
    return path, columns if named else [], read_columns(path, columns, named=named)


def score_in(value: object, where: str) -> float:
    """Reads the score of a pair.

    Args:
        value: the number, or a text of it.
        where: file and line, for messages.

    Raises:
        DataError: the value is no finite number.
    """
    try:
        score = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        hint = (
            "a header is sentence1,sentence2,score; other names go into a task file"
            if where.endswith("line 1")
            else "a number such as 4.5"
        )
        raise DataError(f"{where}: the score {shown(value)} is not a number", hint=hint) from None
    if not math.isfinite(score):
        raise DataError(f"{where}: the score {shown(value)} is not a finite number")
    return score


def read_labelled_pairs(
    path: Path,
    name: str,
    *,
    sentence1: str | None = None,
    sentence2: str | None = None,
    label: str | None = None,
) -> LabelledPairs:
    """Reads pairs with labels.

    Args:
        path: the file.
        name: name of the task.
        sentence1, sentence2, label: names of the columns; None means `sentence1`, `sentence2` and `label`.

    Raises:
        DataError: the file is missing or empty, a row lacks a column, a sentence is empty, a label is neither 0 nor 1,
            or all labels are equal.
    """
    path, chosen, rows = _open(path, sentence1=sentence1, sentence2=sentence2, label=label)
    first, second, labels = [], [], []
    for where, row in rows:
        first.append(filled(row[0], "first text", where))
        second.append(filled(row[1], "second text", where))
        number = _NUMBERS.get(str(row[2]).strip().lower())
        if number is None:
            raise DataError(
                f"{where}: the label {shown(row[2])} is neither 0 nor 1", hint="1: the texts belong together"
            )
        labels.append(number)
    if len(set(labels)) == 1:
        raise DataError(f"{path}: every pair has the label {labels[0]}", hint="use pairs of both labels, 0 and 1")
    return LabelledPairs(name, path, digest_of([path], "pairs", *chosen), first, second, labels)


def read_bitext(
    path: Path,
    name: str,
    *,
    translations: Path | None = None,
    sentence1: str | None = None,
    sentence2: str | None = None,
) -> Bitext:
    """Reads sentences and their translations.

    Args:
        path: a file of sentences and translations, or of sentences alone, one a line.
        name: name of the task.
        translations: a file of the translations, one a line; None if `path` holds both.
        sentence1, sentence2: names of the columns; None means `sentence1` and `sentence2`.

    Raises:
        DataError: a file is missing or empty, a row lacks a column, a line is empty, the two files have different
            numbers of lines, or there is only one pair.
    """
    if translations is None:
        path, chosen, rows = _open(path, sentence1=sentence1, sentence2=sentence2)
        pairs = [(filled(a, "sentence", where), filled(b, "translation", where)) for where, (a, b) in rows]
        digest = digest_of([path], "bitext", *chosen)
    else:
        path, other = readable_file(path), readable_file(translations)
        pairs = _aligned(path, other)
        digest = digest_of([path, other], "bitext")
    if len(pairs) < 2:
        raise DataError(f"{path}: one pair leaves nothing to confuse it with", hint="use two pairs or more")
    return Bitext(name, path, digest, [a for a, _ in pairs], [b for _, b in pairs])


def _aligned(path: Path, other: Path) -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for a, b in zip_longest(lines(path), lines(other)):
        if a is None or b is None:
            short, long = (path, other) if a is None else (other, path)
            raise DataError(
                f"{short} ends after {counted(len(pairs), 'line')}, {long} goes on", hint="line n translates line n"
            )
        where = f"line {a[0]}"
        pairs.append((filled(a[1], "line", f"{path}, {where}"), filled(b[1], "line", f"{other}, {where}")))
    return [(a.rstrip("\r\n"), b.rstrip("\r\n")) for a, b in pairs]
