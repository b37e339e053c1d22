"""Reads texts with a label each, for classification or clustering.

    label TAB text     one text a line (.txt, .tsv)
    label, text        columns of a CSV, TSV or Parquet file with these names, or keys of a JSONL file

A classification is trained on half of each label's texts, or on a separate file.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ternarize_cli.data.columns import read_columns
from ternarize_cli.data.lines import digest_of, filled, readable_file
from ternarize_cli.errors import DataError, shown

__all__ = ["Clusters", "Labels", "halves", "read_clusters", "read_labels"]


@dataclass(frozen=True)
class _LabelledTexts:
    name: str
    path: Path
    sha256: str
    texts: list[str]
    labels: list[str]
    modalities: ClassVar = frozenset({"text"})

    @property
    def size(self) -> int:
        """Number of texts, for training and testing together."""
        return len(self.texts)


@dataclass(frozen=True)
class Labels(_LabelledTexts):
    """Texts with a class label each, in file order. The first `learned` are for training; None takes half of them."""

    learned: int | None = None


@dataclass(frozen=True)
class Clusters(_LabelledTexts):
    """Texts, each with the label of its cluster, in file order."""


def read_labels(
    path: Path, name: str, *, train: Path | None = None, label: str | None = None, text: str | None = None
) -> Labels:
    """Reads texts to classify.

    Args:
        path: the file.
        name: name of the task.
        train: a training file with the same columns; None trains on half of `path`.
        label, text: names of the columns; None means `label` and `text`.

    Raises:
        DataError: a file is missing or empty, a row lacks a column, a label or text is empty, there is only one label,
            a label has only one text, or `train` has no text of a label.
    """
    path = readable_file(path)
    labels, texts = _read(path, label, text)
    chosen = [f"{label} {text}"] if label or text else []
    if train is None:
        _check_several(path, labels)
        alone = next((label for label, count in Counter(labels).items() if count == 1), None)
        if alone is not None:
            raise DataError(
                f"{path}: the label {shown(alone)} has only one text",
                hint="give each label two texts or more: one for training, one for the test",
            )
        return Labels(name, path, digest_of([path], *chosen), texts, labels)
    train = readable_file(train)
    known, learned = _read(train, label, text)
    _check_several(train, known)
    if strange := sorted(set(labels) - set(known)):
        raise DataError(
            f"{path}: the label {shown(strange[0])} is not in {train}", hint="add training texts of this label"
        )
    return Labels(name, path, digest_of([train, path], *chosen), learned + texts, known + labels, len(learned))


def read_clusters(path: Path, name: str, *, label: str | None = None, text: str | None = None) -> Clusters:
    """Reads texts to cluster.

    Args:
        path: the file.
        name: name of the task.
        label, text: names of the columns; None means `label` and `text`.

    Raises:
        DataError: the file is missing or empty, a row lacks a column, a label or text is empty, there is only one
            label, or every text has a label of its own.
    """
    path = readable_file(path)
    labels, texts = _read(path, label, text)
    _check_several(path, labels)
    if len(set(labels)) == len(labels):
        raise DataError(f"{path}: every text has a label of its own", hint="use clusters of two texts or more")
    return Clusters(name, path, digest_of([path], "clusters", f"{label} {text}"), texts, labels)


def halves(labels: Sequence[str], seed: int) -> tuple[list[int], list[int]]:
    """Splits rows into training and test rows, in order: half of each label, rounded down, drawn by the seed."""
    rows = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)
    shuffle = random.Random(seed).shuffle
    train, test = [], []
    for label in sorted(rows):
        shuffle(rows[label])
        half = len(rows[label]) // 2
        train += rows[label][:half]
        test += rows[label][half:]
    return sorted(train), sorted(test)


def _read(path: Path, label: str | None, text: str | None) -> tuple[list[str], list[str]]:
    labels, texts = [], []
    named = label is not None or text is not None
    for where, row in read_columns(path, [label or "label", text or "text"], named=named, separator="\t"):
        value = row[0] if isinstance(row[0], str) or row[0] is None else str(row[0])
        labels.append(filled(value, "label", where).strip())
        texts.append(filled(row[1], "text", where))
    return labels, texts


def _check_several(path: Path, labels: list[str]) -> None:
    if len(set(labels)) == 1:
        raise DataError(f"{path}: every text has the label {shown(labels[0])}", hint="use texts of two labels or more")
