"""Opens a packed model as what it is: an encoder, a reranker or a classifier."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.errors import UnavailableError
from ternarize_cli.model_folder.folder_check import check_folder
from ternarize_cli.model_folder.model_kind import kind_of
from ternarize_cli.runtime.encoder import Encoder
from ternarize_cli.runtime.heads import Classifier, Reranker
from ternarize_cli.storage.bounds import read_object

__all__ = ["open_model"]


def open_model(folder: str | Path) -> Encoder | Reranker | Classifier:
    """Opens a packed model.

    A model with a head is a reranker if it gives one score, or if it was made by CrossEncoder; otherwise a classifier.

    Raises:
        CheckpointError: a file is missing or damaged, asks for something that no folder may ask for, or is not the one
            that was packed.
        UnavailableError: the compiled library is missing, or the model asks for something that this runtime does not
            do, which the message names.
    """
    folder = Path(folder)
    config = check_folder(folder)
    kind = kind_of(folder)
    if kind == "sparse":
        raise UnavailableError(
            f"{folder} is a sparse encoder, and those run in PyTorch only",
            hint="sentence_transformers.SparseEncoder(MODEL)",
        )
    if kind == "encoder":
        return Encoder(folder)
    return Reranker(folder) if _ranks(folder, config) else Classifier(folder)


def _ranks(folder: Path, config: Mapping[str, Any]) -> bool:
    """Returns whether a model with a head scores pairs, and not single texts."""
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    path = folder / "config_sentence_transformers.json"
    named = read_object(path).get("model_type") if path.is_file() else None
    own = {"sentence_transformers", "sbert_ce_default_activation_function"}
    return count == 1 or named == "CrossEncoder" or not own.isdisjoint(config)
