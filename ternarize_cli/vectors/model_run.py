"""Runs a model in PyTorch on prepared batches of texts or images, whose vectors come back in the order they came in."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.util import truncate_embeddings

from ternarize_cli.encoders.anatomy import word_table
from ternarize_cli.errors import InputError
from ternarize_cli.kernels.native.library_modules import is_marked, mark, normalized
from ternarize_cli.vectors import gpu_batches
from ternarize_cli.vectors.text_batches import Prepared, check_finite

__all__ = ["started", "unnormalize"]


@torch.inference_mode()
def started(encoder: SentenceTransformer, prepared: Prepared, normalize: bool, **task: str) -> Callable[[], np.ndarray]:
    """Starts to run a model on the batches of a chunk; returns a function that waits for the vectors.

    Args:
        encoder: the model.
        prepared: the chunk.
        normalize: scale vectors to length 1.
        task: what the model's modules take beside features, such as `task="query"`.

    Returns:
        A function that gives float32 `[rows, dim]`, in the order of the chunk's texts or images. It raises
        TernarizeError if a vector is not finite; the message names the text or image.

    Raises:
        InputError: a text has a token that the word table has no row for.
    """
    found, order, silent = [], [], set()
    for rows, features in prepared.batches:
        if isinstance(mask := features.get("attention_mask"), torch.Tensor) and len(mask) == len(rows):
            silent |= {row for row, tokens in zip(rows, mask.flatten(1).any(dim=1).tolist(), strict=True) if not tokens}
        _check_ids(encoder, rows, features, prepared.name)
        vectors = encoder(gpu_batches.on_device(features, encoder.device), **task)["sentence_embedding"]
        is_of_library = is_marked(vectors)
        vectors = truncate_embeddings(vectors, encoder.truncate_dim)
        vectors = mark(vectors) if is_of_library else vectors
        found.append(_normalized(vectors) if normalize else vectors)
        order += rows
    wait = gpu_batches.fetched(torch.cat(found))

    def finish() -> np.ndarray:
        made = wait()[np.argsort(order)]
        check_finite(made, prepared.name, silent)
        return made

    return finish


def _check_ids(
    encoder: SentenceTransformer, rows: list[int], features: dict[str, Any], name: Callable[[int], str]
) -> None:
    """Refuses a text with a token that the word table has no row for, such as Gemma's image token."""
    ids, transformer = features.get("input_ids"), getattr(encoder[0], "auto_model", None)
    if not isinstance(ids, torch.Tensor) or not ids.numel() or transformer is None:
        return
    count = getattr(word_table(transformer), "num_embeddings", None)
    if count is not None and int(ids.max()) >= count:
        row = int(ids.max(dim=-1).values.argmax()) if ids.ndim == 2 else 0
        raise InputError(
            f"{name(rows[row])} has a token with id {int(ids.max())}, and the model's word table has {count} rows",
            hint="leave that token out of the text, or fetch the model again: its tokenizer may be another model's",
        )


def unnormalize(encoder: SentenceTransformer) -> None:
    """Removes the modules at the end of a model that scale vectors to length 1."""
    while len(encoder) > 1 and isinstance(encoder[-1], Normalize):
        del encoder[len(encoder) - 1]


def _normalized(vectors: torch.Tensor) -> torch.Tensor:
    """Scales vectors to length 1; what the compiled library made, it normalises, too (`library_modules`)."""
    if is_marked(vectors):
        return normalized(vectors)
    return torch.nn.functional.normalize(vectors, dim=1)
