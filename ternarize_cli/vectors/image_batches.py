"""What encoders of lists of images share, whether they run in PyTorch (`image_encoder`) or not (`runtime_encoder`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ternarize_cli.errors import counted
from ternarize_cli.vectors.text_batches import Prepared

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["ImageBatches"]

_BATCH = 32


class ImageBatches(ABC):
    """Encodes lists of images, and counts them.

    The methods do for images what those of `TextBatches` do for texts. Decoded images are large, so a chunk is one
    batch.

    Attributes:
        images: the number of images encoded.
        truncation: always None; texts alone are cut.
        on_gpu: whether `started` returns before the vectors are there.
    """

    truncation: str | None = None
    on_gpu = False

    def __init__(self, batch_size: int | None) -> None:
        self.images = 0
        self._batch_size = batch_size or _BATCH

    @abstractmethod
    def prepare(self, images: "list[Image]") -> Prepared:
        """Resizes and normalises images with the model's processor. May run in another thread than `forward`."""

    @abstractmethod
    def vectors(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[images, dim]`, in the order of the images that were prepared."""

    def started(self, prepared: Prepared) -> Callable[[], np.ndarray]:
        """Starts to encode a prepared chunk, and returns a function that waits for what `vectors` gives."""
        made = self.vectors(prepared)
        return lambda: made

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of dimensions of a vector."""

    def forward(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[images, dim]`, in the order of the images that were prepared.

        Raises:
            CheckpointError: the processor makes other pixels than the model takes, in size or channels.
            TernarizeError: a vector is not finite; the message names the image.
        """
        return self.finished(prepared, self.started(prepared))

    def finished(self, prepared: Prepared, wait: Callable[[], np.ndarray]) -> np.ndarray:
        """Waits for the vectors of a chunk that was `started`, and counts its images."""
        made = wait()
        self.images += len(prepared)
        return made

    @property
    def chunking(self) -> dict[str, Any]:
        """How a corpus of ids and images is cut into chunks, of one batch each: arguments of `prefetch.in_chunks`."""
        return {"count": self._batch_size}

    @property
    def counts(self) -> dict[str, int]:
        """Counts of what was encoded, and the number of dimensions of a vector."""
        return {"count": self.images, "dim": self.dim}

    @property
    def summary(self) -> str:
        """A phrase that says how much was encoded."""
        return counted(self.images, "image")
