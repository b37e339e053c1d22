"""Encodes lists of images with a running model in PyTorch, by the processor that sentence-transformers gives it."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ternarize_cli.encoders.vision import vector_width
from ternarize_cli.errors import CheckpointError, TernarizeError, reason
from ternarize_cli.vectors import gpu_batches, model_run
from ternarize_cli.vectors.image_batches import ImageBatches
from ternarize_cli.vectors.text_batches import Prepared

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageEncoder"]


class ImageEncoder(ImageBatches):
    """Encodes lists of images with sentence-transformers.

    Args:
        encoder: the running model.
        normalize: True scales vectors to length 1, False leaves them as the pooling made them, None does what the
            model does.
        batch_size: images per forward pass; None takes 32.
    """

    def __init__(
        self, encoder: SentenceTransformer, *, normalize: bool | None = None, batch_size: int | None = None
    ) -> None:
        super().__init__(batch_size)
        if normalize is False:
            model_run.unnormalize(encoder)
        self.encoder = encoder
        self._dim, self._normalize = vector_width(encoder), bool(normalize)
        self.on_gpu = encoder.device.type == "cuda"

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        return self._dim

    def prepare(self, images: "list[Image]") -> Prepared:
        """Resizes and normalises images with the model's processor. May run in another thread than `forward`.

        Raises:
            CheckpointError: the processor can't make pixels of the images, such as one stack of several sizes.
        """
        try:
            features = self.encoder.preprocess(images)
        except Exception as e:  # a processor with other values than its class expects can raise any error
            raise _disagreement("prepares no images", e) from e
        features = gpu_batches.pinned(dict(features), self.encoder.device)
        return Prepared([(list(range(len(images))), features)], lambda row: f"image {self.images + row}")

    def vectors(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[images, dim]`, in the order of the images that were prepared.

        Raises:
            CheckpointError: the processor makes other pixels than the model takes, in size or channels.
            TernarizeError: a vector is not finite; the message names the image.
        """
        return self.started(prepared)()

    def started(self, prepared: Prepared) -> Callable[[], np.ndarray]:
        """Starts to encode a prepared chunk, and returns a function that waits for what `vectors` gives.

        Raises:
            CheckpointError: the processor makes other pixels than the model takes, in size or channels.
        """
        try:
            wait = model_run.started(self.encoder, prepared, self._normalize)
        except (ValueError, IndexError, RuntimeError) as e:
            if isinstance(e, torch.OutOfMemoryError) or not _is_shape(e):
                raise
            raise _disagreement("makes pixels that the model does not take", e) from e

        def finish() -> np.ndarray:
            made = wait()
            self._dim = made.shape[1]
            return made

        return finish


def _disagreement(what: str, error: Exception) -> Exception:
    """The error about an image processor whose values do not fit the images or the model."""
    if isinstance(error, TernarizeError | MemoryError | OSError):
        return error
    return CheckpointError(
        f"the model's image processor {what}: {reason(error)}",
        hint="preprocessor_config.json and config.json disagree over size, channels or resizing: fetch both again",
    )


def _is_shape(error: Exception) -> bool:
    """Whether an error that a model raises is about the shape of its input."""
    return bool(re.search(r"size|shape|channel|dimension|expected|match", str(error), re.IGNORECASE))
