"""Loads models with a head: cross-encoders, which score pairs of texts, and sparse encoders, which weigh tokens.

    kind            loaded as                              gives
    cross-encoder   sentence_transformers.CrossEncoder     float32 `[pairs]`, or `[pairs, labels]` if it has several
    sparse          sentence_transformers.SparseEncoder    float32 `[texts, vocabulary]`, nearly all of it 0

Both classes run the encoder inside the model fused if its backend can, and the head in PyTorch.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ternarize_cli.encoders.loading import load_encoder, load_whole
from ternarize_cli.errors import CheckpointError
from ternarize_cli.model_folder.folder_check import LOADING, loading_arguments
from ternarize_cli.model_folder.model_kind import Kind, kind_of, require_kind

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SparseEncoder

__all__ = ["load_cross_encoder", "load_sparse_encoder", "load_with_head", "logits", "outputs"]

_BATCH = 32


def load_cross_encoder(folder: Path, **how: Any) -> "CrossEncoder":
    """Loads a cross-encoder of any stage.

    Args:
        folder: a model folder, as `loading.resolve` returns it.
        how: `backend`, `device`, `threads` and `allow_pickle`, as `loading.load_encoder` takes them.

    Raises:
        CheckpointError: the folder holds a model of another kind, or a file is missing or damaged.
        InputError, UnavailableError: as `loading.load_encoder` raises them.
    """
    require_kind(folder, "cross-encoder")
    model: CrossEncoder = load_whole(folder, _cross_encoder, **how)
    return model


def load_sparse_encoder(folder: Path, **how: Any) -> "SparseEncoder":
    """Loads a sparse encoder of any stage.

    Args:
        folder: a model folder, as `loading.resolve` returns it.
        how: `backend`, `device`, `threads` and `allow_pickle`, as `loading.load_encoder` takes them.

    Raises:
        CheckpointError: the folder holds a model of another kind, or a file is missing or damaged.
        InputError, UnavailableError: as `loading.load_encoder` raises them.
    """
    require_kind(folder, "sparse")
    model: SparseEncoder = load_whole(folder, _sparse_encoder, **how)
    return model


def load_with_head(folder: Path, **how: Any) -> Any:
    """Loads a model with the head that belongs to it, or an encoder that has none.

    Args:
        folder: a model folder, as `loading.resolve` returns it.
        how: `backend`, `device`, `threads` and `allow_pickle`, as `loading.load_encoder` takes them.

    Raises:
        CheckpointError, InputError, UnavailableError: as `loading.load_encoder` raises them.
    """
    loads: dict[Kind, Callable[..., Any]] = {
        "cross-encoder": load_cross_encoder,
        "sparse": load_sparse_encoder,
        "encoder": load_encoder,
    }
    return loads[kind_of(folder)](folder, **how)


def logits(model: "CrossEncoder", pairs: Sequence[tuple[str, str]], *, batch_size: int = _BATCH) -> np.ndarray:
    """Scores pairs of texts before the activation: float32 `[pairs]`, or `[pairs, labels]` if there are several labels.

    Raises:
        CheckpointError: a score is not finite.
    """
    from torch import nn

    predict: Any = model.predict
    found = np.asarray(
        predict(list(pairs), batch_size=batch_size, activation_fn=nn.Identity(), show_progress_bar=False),
        dtype=np.float32,
    )
    if not np.isfinite(found).all():
        raise CheckpointError("the model gives scores that are not finite", hint="check it with ternarize inspect")
    return found


def outputs(model: Any, folder: Path, texts: Sequence[str]) -> np.ndarray:
    """Returns what a model of any kind gives for a few texts: what two stages of a model agree on.

    Args:
        model: the model, as `load_with_head` returns it.
        folder: its folder.
        texts: the texts; a cross-encoder scores each together with the next, and the last with the first.

    Returns:
        Float32 with a row for each text: logits `[texts]` or `[texts, labels]` of a cross-encoder, weights of tokens
        `[texts, vocabulary]` of a sparse encoder, vectors `[texts, dim]` of an encoder.

    Raises:
        CheckpointError: a score is not finite.
    """
    kind = kind_of(folder)
    if kind == "cross-encoder":
        return logits(model, list(zip(texts, [*texts[1:], texts[0]], strict=True)))
    sparse = {"convert_to_sparse_tensor": False} if kind == "sparse" else {}
    found = model.encode(list(texts), batch_size=_BATCH, convert_to_tensor=True, show_progress_bar=False, **sparse)
    return np.asarray(found.float().cpu())


def _cross_encoder(folder: Path, device: str, allow_pickle: bool) -> "CrossEncoder":
    from sentence_transformers import CrossEncoder

    model: Any = CrossEncoder  # its decorator hides its type
    made: CrossEncoder = model(str(folder), device=device, **LOADING, **loading_arguments(allow_pickle=allow_pickle))
    return made


def _sparse_encoder(folder: Path, device: str, allow_pickle: bool) -> "SparseEncoder":
    from sentence_transformers import SparseEncoder

    return SparseEncoder(str(folder), device=device, **LOADING, **loading_arguments(allow_pickle=allow_pickle))
