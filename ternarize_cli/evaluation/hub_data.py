"""Finds the data of MTEB's tasks, and says what to do if they are missing.

MTEB's tasks load a data set of the Hugging Face hub, at a fixed revision. Three places are tried:

    ROOT/<organisation>/<name>    a folder that the user gives, in the layout of the hub's repository: data files, and
                                  a README.md if the repository has one (it names configurations and splits)
    the hub, or its copy          data that `datasets` downloads, or has prepared in HF_HOME before
    a snapshot in HF_HOME         files that `hf download --repo-type dataset` left; `datasets` itself does not search
                                  there when it is offline

A user's folder replaces the data set by its path alone; MTEB's own code loads it. Its revision is the sha256 of its
files, so that a result on other data is never taken for one on the hub's data.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub import snapshot_download
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from ternarize_cli.errors import DataError, TernarizeError
from ternarize_cli.storage.bounds import user_path
from ternarize_cli.storage.digests import tree_hash

__all__ = ["Missing", "fresh", "load", "one_line", "patience", "splits_of", "stand_in"]


@dataclass(frozen=True)
class Missing:
    """A task that has no score.

    Attributes:
        task: name of the task.
        dataset: its data set, on the hub or in a folder.
        reason: the reason why it has no score, in one line.
        how: what the user can do about it.
    """

    task: str
    dataset: str
    reason: str
    how: str

    @classmethod
    def data(cls, task: AbsTask, error: Exception) -> "Missing":
        """Describes a task whose data can't be loaded because of `error`."""
        path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
        if Path(path).is_absolute():
            how = f"{path} must have the layout of the hub's repository: its data files and its README.md"
        else:
            how = (
                f"where there is a network: HF_HOME=DIR hf download {path} --repo-type dataset --revision {revision}; "
                f"then bring DIR here and set HF_HOME to it, or put the files in ROOT/{path} and give --data-root ROOT"
            )
            if isinstance(error, DatasetNotFoundError):
                how = f"hf auth login, if the data set is private; {how}"
        return cls(task.metadata.name, path, one_line(error), how)


def one_line(error: Exception) -> str:
    """Gives an error's message in one line, with the error's type if the message says little."""
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, OSError | TernarizeError) and text else f"{type(error).__name__}: {text}"


def stand_in(task: AbsTask, root: Path) -> AbsTask:
    """Makes a task read the folder in `root` that has its data set's name; unchanged if there is no such folder."""
    if isinstance(task, AbsTaskAggregate):
        parts = [stand_in(part, root) for part in task.metadata.tasks]
        return _changed(task, tasks=parts)
    folder = Path(os.path.realpath(user_path(root))) / task.metadata.dataset["path"]
    if not folder.is_dir():
        return task
    digest = tree_hash(folder, lambda path: not any(part.startswith(".") for part in path.parts))
    return _on(task, folder, digest)


def fresh(task: AbsTask) -> AbsTask:
    """Makes a new copy of a task, with its random state at the beginning and no data loaded."""
    if isinstance(task, AbsTaskAggregate):
        return _changed(task, tasks=[fresh(part) for part in task.metadata.tasks])
    return _changed(task)


def load(task: AbsTask) -> AbsTask | Missing:
    """Loads the data of a task, or of its parts; returns the task to use, or a description of missing data."""
    if isinstance(task, AbsTaskAggregate):
        parts = [load(part) for part in task.metadata.tasks]
        missing = next((part for part in parts if isinstance(part, Missing)), None)
        return replace(missing, task=task.metadata.name) if missing else _changed(task, tasks=parts)
    try:
        _load(task)
        return task
    except Exception as error:  # the kinds differ between releases, and between tasks that load their data themselves
        if isinstance(error, ConnectionError):
            datasets.config.HF_HUB_OFFLINE = True
        found = _snapshot(task)
        if found is None:
            return Missing.data(task, error)
    task = _on(task, found, task.metadata.dataset["revision"])
    try:
        _load(task)
    except Exception as error:
        return Missing.data(task, error)
    return task


def splits_of(task: AbsTask, subset: str) -> dict[str, Any]:
    """Finds the loaded splits of a task's subset; tasks with one subset, or parallel ones, have no level for it."""
    splits: dict[str, Any] = task.dataset or {}
    found: dict[str, Any] = splits.get(subset, splits)
    return found


def _load(task: AbsTask) -> None:
    with _prepared_apart(task):
        task.load_data()
    if isinstance(task, AbsTaskRetrieval):
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    for subset in task.hf_subsets:
        found = splits_of(task, subset)
        for split in task.eval_splits:
            if split not in found:
                raise DataError(f"it has no split {split!r} (subset {subset!r}), but {', '.join(found) or 'none'}")


@contextmanager
def _prepared_apart(task: AbsTask) -> Iterator[None]:
    """Gives `datasets` a separate cache folder for each revision of a user's folder.

    Otherwise it keeps prepared data by the folder's path alone, and would never notice that a file has changed.
    """
    before = datasets.config.HF_DATASETS_CACHE
    if Path(task.metadata.dataset["path"]).is_absolute():
        datasets.config.HF_DATASETS_CACHE = Path(before) / "ternarize" / task.metadata.dataset["revision"]
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE = before


@contextmanager
def patience() -> Iterator[None]:
    """Stops asking an unreachable hub again while the body runs: each data set would take 20 s of retries."""
    logger = logging.getLogger("huggingface_hub")
    level, offline = logger.level, datasets.config.HF_HUB_OFFLINE
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
        datasets.config.HF_HUB_OFFLINE = offline


def _snapshot(task: AbsTask) -> Path | None:
    """Finds a whole copy of the data set's repository, at the task's revision, in HF_HOME; None without one."""
    path, revision = task.metadata.dataset["path"], task.metadata.dataset["revision"]
    if Path(path).is_absolute():
        return None
    try:
        return Path(snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None


def _on(task: AbsTask, folder: Path, revision: str) -> AbsTask:
    return _changed(task, dataset={**task.metadata.dataset, "path": str(folder), "revision": revision})


def _changed(task: AbsTask, **metadata: Any) -> AbsTask:
    new = type(task)()
    new.metadata = task.metadata.model_copy(update=metadata)
    new.hf_subsets = task.hf_subsets
    return new.filter_eval_splits(task.eval_splits)
