"""Labelled data from local files, checked line by line before any model is loaded.

Four kinds, the texts all UTF-8, each file or folder one task:

    pairs (STS)      CSV without a header     sentence 1,sentence 2,score
    retrieval        a folder                 see `ternarize_cli.evaluation.retrieval`
    classification   one text a line          label TAB text
    images           a file or a folder       see `ternarize_cli.evaluation.neighbours`

A task is named after its file or folder; a second one of the same name gets `-2`. What can't be scored is refused
here, because a metric over it would be a number without a meaning: scores that are all equal have no rank correlation,
and a label with a single text can't be both learned and tested.
"""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ternarize_cli.errors import DataError, InputError
from ternarize_cli.evaluation.lines import filled, lines, readable_file
from ternarize_cli.evaluation.neighbours import QUERIES, LabelledImages, read_labelled_images
from ternarize_cli.evaluation.retrieval import Retrieval, read_retrieval
from ternarize_cli.files import sha256

__all__ = ["Labels", "Pairs", "TaskData", "read_labels", "read_pairs", "read_tasks"]


@dataclass(frozen=True)
class Pairs:
    """Sentence pairs with a similarity score each, in file order."""

    name: str
    path: Path
    sha256: str
    first: list[str]
    second: list[str]
    scores: list[float]

    @property
    def size(self) -> int:
        """How many pairs are scored."""
        return len(self.scores)


@dataclass(frozen=True)
class Labels:
    """Texts with a class label each, in file order."""

    name: str
    path: Path
    sha256: str
    texts: list[str]
    labels: list[str]

    @property
    def size(self) -> int:
        """How many texts there are, for training and testing together."""
        return len(self.texts)


TaskData = Pairs | Retrieval | Labels | LabelledImages


def read_tasks(
    *,
    sts: Sequence[Path] = (),
    retrieval: Sequence[Path] = (),
    classification: Sequence[Path] = (),
    images: Sequence[Path] = (),
    queries_where: str | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[TaskData]:
    """Reads and checks all files of an evaluation.

    Args:
        sts: CSV files of scored pairs.
        retrieval: retrieval folders.
        classification: files of labelled lines.
        images: folders or files of labelled images.
        queries_where: `KEY=VALUE`, the queries of all retrieval folders that count; None: all of them.
        limit: at most so many query images per task; None: `neighbours.QUERIES`.
        seed: draws the images.

    Raises:
        InputError: there is no file at all, `queries_where` is no `KEY=VALUE`, or it or `limit` has nothing to choose
            from.
        DataError: a file is missing or can't be scored; the message names file and line.
    """
    if not (sts or retrieval or classification or images):
        raise InputError(
            "there is no task to evaluate on",
            hint="--sts pairs.csv, --retrieval DIR, --classification FILE or --images DIR",
        )
    if limit is not None and not images:
        raise InputError("--limit is for image tasks, but no --images is given")
    if queries_where is not None and not retrieval:
        raise InputError("--queries-where chooses among retrieval queries, but no --retrieval is given")
    names = iter(_names([*sts, *retrieval, *classification, *images]))
    return [
        *(read_pairs(path, next(names)) for path in sts),
        *(read_retrieval(path, next(names), queries_where) for path in retrieval),
        *(read_labels(path, next(names)) for path in classification),
        *(
            read_labelled_images(path, next(names), limit=QUERIES if limit is None else limit, seed=seed)
            for path in images
        ),
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    names: list[str] = []
    for path in (p.expanduser().resolve() for p in paths):
        base = name = (path.name if path.is_dir() else path.stem) or "task"
        count = 1
        while name in names:
            count += 1
            name = f"{base}-{count}"
        names.append(name)
    return names


def read_pairs(path: Path, name: str) -> Pairs:
    """Reads a CSV of scored pairs.

    Raises:
        DataError: the file is missing or empty, a line has not three columns, a sentence is empty, a score is no
            finite number, or all scores are equal.
    """
    path = readable_file(path)
    first, second, scores = [], [], []
    reader = csv.reader((text for _, text in lines(path)), strict=True)
    line = 1  # a quoted sentence may hold line breaks: this is where the row starts
    try:
        for row in reader:
            if row:
                if len(row) != 3:
                    raise DataError(
                        f"{path}, line {line}: {len(row)} columns where 3 are needed: sentence 1,sentence 2,score",
                        hint='put a sentence that holds a comma in double quotes: "a, b",c,4.5',
                    )
                first.append(filled(row[0], "first sentence", path, line))
                second.append(filled(row[1], "second sentence", path, line))
                scores.append(_score(row[2], path, line))
            line = reader.line_num + 1
    except csv.Error as e:
        raise DataError(f"{path}, line {line}: not valid CSV: {e}", hint="write a quote inside quotes twice") from e
    if not scores:
        raise DataError(f"{path} is empty", hint="each line is: sentence 1,sentence 2,score")
    if len(set(scores)) == 1:
        raise DataError(
            f"{path}: every score is {scores[0]:g}, so rank correlation (Spearman) is undefined",
            hint="pairs with at least two different scores",
        )
    return Pairs(name, path, sha256(path), first, second, scores)


def _score(text: str, path: Path, line: int) -> float:
    try:
        score = float(text)
    except ValueError:
        hint = "delete the header line" if line == 1 else "the third column is a number such as 4.5"
        raise DataError(f"{path}, line {line}: the score {text!r} is not a number", hint=hint) from None
    if not math.isfinite(score):
        raise DataError(f"{path}, line {line}: the score {text!r} is not a finite number")
    return score


def read_labels(path: Path, name: str) -> Labels:
    """Reads a file of labelled lines.

    Raises:
        DataError: the file is missing or empty, a line has no tab, an empty label or an empty text, there is only one
            label, or a label has only one text.
    """
    path = readable_file(path)
    labels, texts = [], []
    for number, line in lines(path):
        if not line.strip():
            continue
        label, tab, text = line.rstrip("\r\n").partition("\t")
        if not tab:
            raise DataError(
                f"{path}, line {number}: no tab between label and text", hint="each line is: label TAB text"
            )
        labels.append(filled(label, "label", path, number).strip())
        texts.append(filled(text, "text", path, number))
    if not labels:
        raise DataError(f"{path} is empty", hint="each line is: label TAB text")
    counts = Counter(labels)
    if len(counts) == 1:
        raise DataError(
            f"{path}: every text has the label {labels[0]!r}", hint="classification needs two labels or more"
        )
    alone = next((label for label, count in counts.items() if count == 1), None)
    if alone is not None:
        raise DataError(
            f"{path}: the label {alone!r} has only one text",
            hint="each label needs two texts or more: one to learn from, one to test",
        )
    return Labels(name, path, sha256(path), texts, labels)
