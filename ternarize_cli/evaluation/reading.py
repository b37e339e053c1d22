"""Reads the tasks of an evaluation from local files, and checks them line by line before any model is loaded.

Each file or folder is one task, with texts in UTF-8. The module that reads a kind describes its files:

    sts, pair-classification, bitext     `ternarize_cli.evaluation.scored_pairs`
    classification, clustering           `ternarize_cli.evaluation.labels`
    retrieval                            `ternarize_cli.evaluation.retrieval`
    image-classification                 `ternarize_cli.evaluation.neighbours`: two tasks, NAME and NAME-linear
    zero-shot                            `ternarize_cli.evaluation.zero_shot`
    pairs                                `ternarize_cli.evaluation.ranked_pairs`, for cross-encoders

Common kinds have options on the command line; a task file can describe any kind
(`ternarize_cli.evaluation.task_files`). A task is named after its file or folder, or after its task file; a second task
of the same name gets `-2`. Data that can't be scored are refused here, because a metric over them would have no
meaning: scores that are all equal have no rank correlation, and a label with a single text can't be both trained on and
tested.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.labels import Clusters, Labels, read_clusters, read_labels
from ternarize_cli.evaluation.neighbours import QUERIES, LabelledImages, read_labelled_images
from ternarize_cli.evaluation.ranked_pairs import RankedPairs, read_ranked_pairs
from ternarize_cli.evaluation.retrieval import Retrieval, read_retrieval
from ternarize_cli.evaluation.scored_pairs import (
    Bitext,
    LabelledPairs,
    Pairs,
    read_bitext,
    read_labelled_pairs,
    read_pairs,
)
from ternarize_cli.evaluation.task_files import TaskFile, read_task_file
from ternarize_cli.evaluation.zero_shot import ZeroShot, read_zero_shot
from ternarize_cli.storage.bounds import user_path, utf8_name

__all__ = ["Labels", "Pairs", "TaskData", "read_labels", "read_pairs", "read_tasks", "refuse_twice"]

TaskData = Pairs | Retrieval | Labels | LabelledImages | LabelledPairs | Bitext | Clusters | ZeroShot | RankedPairs

_READERS: dict[str, Callable[..., TaskData]] = {
    "sts": read_pairs,
    "retrieval": read_retrieval,
    "classification": read_labels,
    "image-classification": read_labelled_images,
    "pair-classification": read_labelled_pairs,
    "bitext": read_bitext,
    "clustering": read_clusters,
    "zero-shot": read_zero_shot,
    "pairs": read_ranked_pairs,
}
_OF_IMAGES = ("image-classification", "zero-shot")


def read_tasks(
    *,
    sts: Sequence[Path] = (),
    retrieval: Sequence[Path] = (),
    classification: Sequence[Path] = (),
    images: Sequence[Path] = (),
    pairs: Sequence[Path] = (),
    task_files: Sequence[Path] = (),
    queries_where: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    strict: bool = False,
) -> list[TaskData]:
    """Reads and checks all files of an evaluation.

    Args:
        sts: files of scored pairs.
        retrieval: retrieval folders.
        classification: files of labelled texts.
        images: folders or files of labelled images; each is two tasks, by neighbours and by a linear probe.
        pairs: files of pairs for a cross-encoder.
        task_files: TOML or JSON files that describe a task each.
        queries_where: `KEY=VALUE` chooses the queries of all folders in `retrieval`; None takes all queries.
        limit: the most query images per task, unless its task file sets a limit; None means `neighbours.QUERIES`.
        seed: seed for sampling images.
        strict: refuse images that can't be decoded; otherwise they are skipped and named in the task's `skipped`.

    Raises:
        InputError: there is no file, `queries_where` is no `KEY=VALUE`, `queries_where` or `limit` is given without a
            task that it applies to, or two tasks have one name.
        DataError: a file is missing or can't be scored; the message names file and line.
    """
    where = {} if queries_where is None else {"where": queries_where}
    wanted = [
        *(_flag("sts", path) for path in sts),
        *(_flag("retrieval", path, **where) for path in retrieval),
        *(_flag("classification", path) for path in classification),
        *(_flag("image-classification", path) for path in images),
        *(_flag("pairs", path) for path in pairs),
        *map(read_task_file, task_files),
    ]
    if not wanted:
        raise InputError(
            "there is no task to evaluate on",
            hint="--sts pairs.csv, --retrieval DIR, --classification FILE, --images DIR or --task-file FILE; "
            "--pairs FILE for a cross-encoder",
        )
    if limit is not None and not any(task.type in _OF_IMAGES for task in wanted):
        raise InputError("--limit is for image tasks, but no --images is given")
    if queries_where is not None and not retrieval:
        raise InputError("--queries-where chooses among retrieval queries, but no --retrieval is given")
    of_images = {"limit": QUERIES if limit is None else limit, "seed": seed, "strict": strict}
    found: list[TaskData] = []
    for task, name in zip(wanted, _names(wanted), strict=True):
        defaults: dict[str, Any] = of_images if task.type in _OF_IMAGES else {}
        data = _READERS[task.type](task.path, name, **(defaults | task.options))
        found.append(data)
        if isinstance(data, LabelledImages):
            found.append(replace(data, name=f"{name}-linear", classifier="linear", skipped=()))
    refuse_twice(data.name for data in found)
    return found


def _flag(kind: str, path: Path, **options: Any) -> TaskFile:
    return TaskFile(path, kind, None, path, options)


def _names(tasks: Sequence[TaskFile]) -> list[str]:
    given = [task.name for task in tasks if task.name is not None]
    refuse_twice(given)
    taken, names = set(given), []
    for task in tasks:
        path = Path(os.path.realpath(user_path(task.file)))
        base = name = task.name or utf8_name(path.name if os.path.isdir(path) else path.stem) or "task"
        count = 1
        while name in taken and task.name is None:
            count += 1
            name = f"{base}-{count}"
        taken.add(name)
        names.append(name)
    return names


def refuse_twice(names: Iterable[str]) -> None:
    """Checks that each task has a name of its own.

    Raises:
        InputError: two tasks have the same name, so that their scores could be confused.
    """
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"two tasks are called {name!r}", hint='name = "…" in a task file names a task')
