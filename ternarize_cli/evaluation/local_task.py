"""What all tasks made of local files have in common: their data is in memory, and their name is their own.

MTEB downloads in `load_data`; here that only hands over, at once, because MTEB would otherwise unload the task after
its evaluation, and its data with it. MTEB knows a task by `local/NAME`, which keeps a file called query.csv from being
taken for the model's prompt of that name.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Protocol

from mteb.abstasks.task_metadata import TaskMetadata

__all__ = ["Data", "LocalTask"]


class Data(Protocol):
    """What a task's data tells about itself."""

    @property
    def name(self) -> str:
        """Of the task."""

    @property
    def path(self) -> Path:
        """Of the file or folder."""

    @property
    def sha256(self) -> str:
        """Of everything that is scored."""

    @property
    def modalities(self) -> frozenset[str]:
        """What a model must read: "text", "image"."""


class LocalTask(ABC):
    """Comes before the MTEB class of its kind among the bases of a task; `main_score` and the rest are MTEB's names."""

    kind: ClassVar[str]
    category: ClassVar[str] = "t2t"
    main_score: ClassVar[str] = "accuracy"

    def __init__(self, data: Data, *, seed: int = 0) -> None:
        self.data = data
        self.metadata = TaskMetadata(
            name=f"local/{data.name}",
            description=f"{self.kind} on {data.path.name}",
            dataset={"path": str(data.path), "revision": getattr(data, "pixels", data.sha256)},
            type=self.kind,
            category=self.category,
            modalities=sorted(data.modalities, reverse=True),
            eval_langs=["und-Zyyy"],
            main_score=self.main_score,
        )
        super().__init__(seed=seed)  # type: ignore[call-arg]
        self.load_data()
        self.data_loaded = True

    @abstractmethod
    def load_data(self, *args: Any, **kwargs: Any) -> None:
        """Hands over the data; nothing is downloaded."""

    @property
    def prediction_file_name(self) -> str:
        """The same for all: each is written into a folder of its own, and a name may be too long for a file."""
        return "predictions.json"
