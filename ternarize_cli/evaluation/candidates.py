"""The models of an evaluation: their names, their sizes, and functions that load them when they are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternarize_cli.encoders.heads import load_cross_encoder
from ternarize_cli.encoders.loading import load_encoder, model_name, resolve
from ternarize_cli.encoders.modalities import require_modality
from ternarize_cli.evaluation.ranked_pairs import RankedPairs
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.model_folder.model_kind import require_kind
from ternarize_cli.storage.digests import content_hash
from ternarize_cli.storage.weights import bytes_on_disk

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Candidate", "candidate", "find_model"]


@dataclass(frozen=True)
class Candidate:
    """A model to score.

    Attributes:
        name: the name of the model in tables.
        content_hash: hash of its files, and for a rival also of the way it is made.
        weights_bytes: bytes of its weights on disk.
        load: a function that loads the model.
        backend: the backend that runs it, as far as it changes scores.
        folder: the folder of its files, or of the teacher that a rival is made from.
        is_rival: whether it is a rival, made for this evaluation (`rivals`).
    """

    name: str
    content_hash: str
    weights_bytes: int
    load: Callable[[], "SentenceTransformer"]
    backend: str
    folder: Path
    is_rival: bool = False

    @cached_property
    def encoder(self) -> "SentenceTransformer":
        """The model, which is loaded at the first use."""
        return self.load()

    def release(self) -> None:
        """Frees the loaded model."""
        self.__dict__.pop("encoder", None)


def find_model(model: str | Path, tasks: Sequence[TaskData], *, allow_pickle: bool = False) -> Path:
    """Finds the folder of MODEL, and checks that the tasks can be put to a model of its kind.

    Raises:
        ModelNotFoundError: there is no such model.
        CheckpointError: a file of the model is missing or damaged, it is of another kind than the tasks need, or it
            does not read what they hold.
    """
    folder = resolve(model, allow_pickle=allow_pickle)
    require_kind(folder, "cross-encoder" if _have_pairs(tasks) else "encoder")
    for modality in sorted({modality for task in tasks for modality in task.modalities}):
        require_modality(folder, modality, model)
    return folder


def _have_pairs(tasks: Sequence[TaskData]) -> bool:
    return any(isinstance(task, RankedPairs) for task in tasks)


def candidate(
    model: str | Path,
    tasks: Sequence[TaskData] = (),
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> Candidate:
    """Makes a candidate of MODEL, which is loaded later.

    Args:
        model: a folder, hub id or `package:NAME`.
        tasks: the tasks, whose texts or images the model must be able to read.
        backend: name of the kernels for a packed model's linears.
        device: name of a torch device; None picks CUDA if there is a GPU, else the CPU.
        threads: number of CPU threads; None leaves it as it is.
        allow_pickle: read pytorch_model.bin if there is no safetensors file.

    Raises:
        ModelNotFoundError: there is no such model.
        CheckpointError: a file of the model is missing or damaged, it is of another kind than the tasks need, or it
            does not read what they hold.
    """
    folder = find_model(model, tasks, allow_pickle=allow_pickle)
    opens: Callable[..., Any] = load_cross_encoder if _have_pairs(tasks) else load_encoder
    load = partial(opens, folder, backend=backend, device=device, threads=threads, allow_pickle=allow_pickle)
    weight = bytes_on_disk(folder, allow_pickle=allow_pickle)
    return Candidate(model_name(model), content_hash(folder), weight, load, backend, folder)
