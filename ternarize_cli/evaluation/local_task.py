"""The base of all tasks made of local files, whose data are in memory.

MTEB's tasks download in `load_data`; here it only passes on the data. It runs at once, because MTEB would otherwise
unload the task and its data after the evaluation. MTEB knows a task by `local/NAME`, so that a file called query.csv is
not taken for the model's prompt of that name.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mteb.abstasks.task_metadata import TaskCategory, TaskMetadata, TaskType

__all__ = ["Data", "LocalTask"]


class Data(Protocol):
    """The interface of a task's data."""

    @property
    def name(self) -> str:
        """Name of the task."""

    @property
    def path(self) -> Path:
        """Path of the file or folder."""

    @property
    def sha256(self) -> str:
        """The sha256 of everything that is scored."""

    @property
    def modalities(self) -> frozenset[str]:
        """The modalities that a model must read: "text", "image"."""


class LocalTask(ABC):
    """A mixin that comes before MTEB's class among a task's bases; attributes such as `main_score` are MTEB's."""

    kind: ClassVar[TaskType]
    category: ClassVar[TaskCategory] = "t2t"
    main_score: ClassVar[str] = "accuracy"

    def __init__(self, data: Data, *, seed: int = 0) -> None:
        self.data = data
        self.metadata = TaskMetadata(
            name=f"local/{data.name}",
            description=f"{self.kind} on {data.path.name}",
            dataset={"path": str(data.path), "revision": getattr(data, "pixels", data.sha256)},
            type=self.kind,
            category=self.category,
            modalities=sorted(data.modalities, reverse=True),  # type: ignore[arg-type]
            eval_langs=["und-Zyyy"],
            main_score=self.main_score,
        )
        super().__init__(seed=seed)  # type: ignore[call-arg]
        self.load_data()
        self.data_loaded = True

    @abstractmethod
    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Passes on the data; nothing is downloaded."""

    @property
    def prediction_file_name(self) -> str:
        """One name for all tasks, since each has a folder of its own, and a task's name may be too long for a file."""
        return "predictions.json"
