"""The models of an evaluation: what they are called, what they weigh, and how to load them when they are needed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from ternarize_cli.encoders.loading import load_encoder, model_name, resolve
from ternarize_cli.encoders.modalities import require_modality
from ternarize_cli.evaluation.reading import TaskData
from ternarize_cli.storage.files import content_hash
from ternarize_cli.storage.weights import bytes_on_disk

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["Candidate", "candidate"]


@dataclass(frozen=True)
class Candidate:
    """A model to score.

    Attributes:
        name: what tables call it.
        content_hash: of its files, and of what is done with them.
        weights_bytes: of its weights on disk.
        load: loads it.
        backend: what runs it, as far as it changes scores.
        folder: its files, or those of the teacher that a rival was made of.
        is_rival: whether it was made on the spot (`rivals`).
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
        """The loaded model, loaded once."""
        return self.load()

    def release(self) -> None:
        """Lets the loaded model go."""
        self.__dict__.pop("encoder", None)


def candidate(
    model: str | Path,
    tasks: Sequence[TaskData] = (),
    *,
    backend: str = "auto",
    device: str | None = None,
    threads: int | None = None,
    allow_pickle: bool = False,
) -> Candidate:
    """MODEL as a candidate; it is loaded later.

    Args:
        model: a folder, hub id or `package:NAME`.
        tasks: whose texts or images it must read.
        backend, device, threads: as `loading.load_encoder` takes them.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.

    Raises:
        ModelNotFoundError, CheckpointError: it can't be had, or does not read what the tasks have.
    """
    folder = resolve(model, allow_pickle=allow_pickle)
    for modality in sorted({modality for task in tasks for modality in task.modalities}):
        require_modality(folder, modality, model)
    load = partial(load_encoder, folder, backend=backend, device=device, threads=threads, allow_pickle=allow_pickle)
    weight = bytes_on_disk(folder, allow_pickle=allow_pickle)
    return Candidate(model_name(model), content_hash(folder), weight, load, backend, folder)
