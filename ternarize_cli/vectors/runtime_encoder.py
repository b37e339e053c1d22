"""Encodes lists of texts or images with the runtime, which starts in a tenth of a second and needs no PyTorch.

`opened` says whether a model runs there: a packed one whose every part the runtime knows, on a CPU, by the backend that
`auto` would choose.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.format.scheme import METHOD
from ternarize_cli.measuring.nvml import nvml
from ternarize_cli.runtime import Encoder
from ternarize_cli.runtime.text_blocks import batches
from ternarize_cli.storage.bounds import read_object
from ternarize_cli.vectors.image_batches import ImageBatches
from ternarize_cli.vectors.options import EncoderOptions
from ternarize_cli.vectors.text_batches import (
    Prepared,
    Role,
    TextBatches,
    check_finite,
    cut_by_length,
    prompt_for,
    shown_text,
)

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["RuntimeEncoder", "RuntimeImageEncoder", "opened"]


class RuntimeEncoder(TextBatches):
    """Encodes lists of texts with the runtime.

    Args:
        encoder: the opened model.
        role: "query" and "document" use the prompt that the model has for them, "text" its default.
        prompt_name: name of a prompt of the model, used instead of the role's prompt.
        normalize: True scales vectors to length 1. False leaves them as the pooling made them, even if the model
            would normalise them. None does what the model does.
        batch_size: texts per forward pass; None takes texts of similar length, up to 8,192 tokens a batch.

    Raises:
        InputError: the model has no prompt of that name.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        role: Role = "text",
        prompt_name: str | None = None,
        normalize: bool | None = None,
        batch_size: int | None = None,
    ) -> None:
        name = prompt_for(encoder.prompts, encoder.default_prompt_name, role, prompt_name)
        super().__init__(encoder.limit, batch_size, name)
        self.encoder = encoder
        self._prompt = encoder.prompts.get(self.prompt_name or "") or ""
        self._normalize = normalize

    def prepare(self, texts: list[str]) -> Prepared:
        """Tokenises texts and cuts them into batches. May run in another thread than `forward`."""
        tokens = self.encoder.tokenize(texts, prompt=self._prompt)
        lengths = [len(one.ids) for one in tokens]
        groups = cut_by_length(lengths, self._batch_size) if self._batch_size else batches(tokens)
        made = [(rows, [tokens[row] for row in rows]) for rows in groups]
        return Prepared(made, shown_text(texts), sum(lengths), sum(one.truncated for one in tokens))

    def vectors(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[texts, dim]`, in the order of the texts that were prepared.

        Raises:
            InputError: a text has a token that the word table has no row for, or has no token where the model
                pools by the maximum over tokens.
            TernarizeError: a vector is not finite; the message shows the text.
        """
        made = np.empty((len(prepared), self.dim), dtype=np.float32)
        silent: set[int] = set()
        for rows, tokens in prepared.batches:
            silent |= {row for row, one in zip(rows, tokens, strict=True) if not one.ids}
            try:
                made[rows] = self.encoder.encode_tokens(tokens, prompt=self._prompt, normalize=self._normalize)
            except InputError:
                for row, one in zip(rows, tokens, strict=True):  # the message has to name the text
                    try:
                        self.encoder.encode_tokens([one], prompt=self._prompt)
                    except InputError as e:
                        raise InputError(f"{prepared.name(row)}: {e}", hint=e.hint) from e
                raise
        check_finite(made, prepared.name, silent)
        return made

    def for_role(self, role: Role, *, normalize: bool | None = None) -> "RuntimeEncoder":
        """Makes an encoder of the same model for queries or documents, whose counts begin at 0."""
        return RuntimeEncoder(self.encoder, role=role, normalize=normalize)

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        return self.encoder.dim


class RuntimeImageEncoder(ImageBatches):
    """Encodes lists of images with the runtime.

    Args:
        encoder: the opened model.
        normalize: True scales vectors to length 1, False leaves them as the pooling made them, None does what the
            model does.
        batch_size: images per forward pass; None takes 32.
    """

    def __init__(self, encoder: Encoder, *, normalize: bool | None = None, batch_size: int | None = None) -> None:
        super().__init__(batch_size)
        self.encoder, self._normalize = encoder, normalize

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        return self.encoder.dim

    def prepare(self, images: "list[Image]") -> Prepared:
        """Resizes and normalises images as the model's processor does. May run in another thread than `forward`.

        Raises:
            InputError: an image has a mode that the model does not read, or would become too large.
        """
        before = self.images
        pixels = self.encoder.process_images(images, lambda row: f"image {before + row}")
        batch: Any = (list(range(len(images))), pixels)
        return Prepared([batch], lambda row: f"image {before + row}")

    def vectors(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[images, dim]`, in the order of the images that were prepared.

        Raises:
            TernarizeError: a vector is not finite; the message names the image.
        """
        ((_, pixels),) = prepared.batches
        made = self.encoder.encode_pixels(pixels, normalize=self._normalize)
        check_finite(made, prepared.name, ())
        return made


def opened(folder: Path, kind: str, options: EncoderOptions) -> Encoder | None:
    """Opens a packed model with the runtime; None if it has to run in PyTorch.

    PyTorch runs full-precision models and checkpoints, any other backend than `native`, models on GPUs, and what the
    runtime does not know. TERNARIZE_RUNTIME=torch sends all models there.

    Args:
        folder: the model's folder, as `loading.resolve` returns it.
        kind: "text" or "image", what the model is to read.
        options: how the model is loaded.

    Raises:
        CheckpointError: a file of the folder is missing or damaged, or asks for something that no folder may ask for.
        InputError: `threads` is below 1 or above four for each core.
    """
    if os.environ.get("TERNARIZE_RUNTIME") == "torch" or options.backend not in ("auto", "native"):
        return None
    if options.device not in (None, "cpu") or (options.device is None and options.backend == "auto" and nvml()):
        return None
    described = read_object(folder / "config.json").get("quantization_config")
    if not isinstance(described, dict) or (described.get("quant_method"), described.get("stage")) != (METHOD, "packed"):
        return None
    from ternarize_cli.encoders.loading import checked_threads
    from ternarize_cli.runtime.native.library import library
    from ternarize_cli.runtime.native.threads import set_threads
    from ternarize_cli.runtime.opening import open_model

    threads = None if options.threads is None else checked_threads(options.threads)
    try:
        if options.backend == "auto" and library().chosen == "scalar":
            return None
        made = open_model(folder)
    except UnavailableError:
        return None
    if not isinstance(made, Encoder) or kind not in made.reads:
        return None
    if threads is not None:
        set_threads(lambda: threads)
    return made
