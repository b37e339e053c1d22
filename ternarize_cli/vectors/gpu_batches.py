"""Keeps a GPU busy while texts or images are encoded: what goes there and comes back, and how much at once.

    tokenise ──thread──▶ pad, pin ──thread──▶ copy, start the model, start the copy back ──thread──▶ wait, check, write

The host only waits for a chunk's vectors, when the next chunk is already on the card (`prefetch`). Copies to the card
are made from pinned memory, since the driver would wait for copies from any other. A batch's copies take some hundredth
of its work, so they stand in the stream of the kernels.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from ternarize_cli.kernels.fused_encoder import FusedForward
from ternarize_cli.kernels.gpu import pass_sizes
from ternarize_cli.layers.text_lengths import lengths_of, with_lengths
from ternarize_cli.runtime.blocks import BATCH_TOKENS

__all__ = ["CHARACTERS", "CHUNK", "budgets", "fetched", "on_device", "pinned"]

CHUNK, CHARACTERS = 8192, 1 << 22
"""The most texts in a chunk, and the number of characters after which a chunk takes no more texts."""
_TOKENS = 1 << 17
"""The most tokens in a batch with padding; without it, the most of a pass that is recorded."""
_NUMBERS = 1 << 27
"""The most numbers in the hidden states of a batch."""


def budgets(encoder: SentenceTransformer) -> tuple[int, int | None]:
    """Returns the most tokens of a batch with padding, and without it: arguments of `by_length`.

    Where the model runs fused on a GPU, these are 131,072, fewer if it is wider than 1,024, and 32,768: it runs real
    tokens alone, and most batches of a corpus are then equally large, so that few passes are recorded for all. A model
    that runs by modules keeps a batch's attention and all else in memory, so its batches stay as on a CPU.
    """
    model: Any = getattr(encoder[0], "auto_model", None)
    forward = getattr(model, "forward", None)
    if not isinstance(forward, FusedForward) or forward.device != "cuda":
        return BATCH_TOKENS, None
    width = int(getattr(model.config, "hidden_size", 0)) or 1
    return max(BATCH_TOKENS, min(_TOKENS, _NUMBERS // width)), pass_sizes.MOST


def pinned(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Copies the tensors of a batch to pinned memory, if they are for a GPU."""
    if device.type != "cuda":
        return features
    with torch.cuda.device(device):  # another card would start for it
        return {name: _moved(value, Tensor.pin_memory) for name, value in features.items()}


def on_device(features: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Copies the tensors of a batch to the model's device, and does not wait if they are pinned."""
    return {name: _moved(value, lambda t: t.to(device, non_blocking=True)) for name, value in features.items()}


def fetched(made: Tensor) -> Callable[[], np.ndarray]:
    """Starts to copy vectors to the host, and returns a function that waits for them: float32 `[rows, dim]`."""
    made = made.float()
    if made.device.type != "cuda":
        return made.cpu().numpy
    with torch.cuda.device(made.device):
        host = torch.empty(made.shape, pin_memory=True)
        host.copy_(made, non_blocking=True)
        arrived = torch.cuda.Event(blocking=True)  # else the wait takes a processor from the tokenizer
        arrived.record()

    def wait() -> np.ndarray:
        arrived.synchronize()
        return host.numpy()

    return wait


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    return with_lengths(move(value), lengths_of(value)) if isinstance(value, Tensor) else value
