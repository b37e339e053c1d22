"""Wraps a loaded encoder for MTEB, and silences MTEB's output.

MTEB names every model from a folder `no_model_name/available`, so results under that name mix models up; here the name
is the model's own, and the revision is its content hash. Texts are encoded longest first, one batch at a time, which
bounds padding as in sentence-transformers and lets a progress bar move. Prompts follow MTEB's order (task type and
side, task type, side), then the model's own defaults. Images are encoded in MTEB's batches, so that only one batch is
decoded at a time.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

import datasets
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType
from scipy.stats import ConstantInputWarning, NearConstantInputWarning
from sentence_transformers import SentenceTransformer
from sklearn.exceptions import ConvergenceWarning, UndefinedMetricWarning
from tqdm import tqdm  # type: ignore[import-untyped]

from ternarize_cli.errors import CheckpointError
from ternarize_cli.progress import Track, silent
from ternarize_cli.vectors.text_batches import FILLER

__all__ = ["LocalEncoder", "quiet_mteb"]

# Warnings of MTEB's metrics about scores that are not the main one, or that `compare` reports itself.
_EXPECTED_WARNINGS = (ConstantInputWarning, NearConstantInputWarning, ConvergenceWarning, UndefinedMetricWarning)


class LocalEncoder(AbsEncoder):
    """Wraps an encoder for MTEB.

    Args:
        encoder: a loaded model.
        name: the name of the model in messages and in MTEB.
        content_hash: content hash of its folder (`digests.content_hash`), which is MTEB's revision.
        track: reports progress over batches.
        meta: the description of the model in MTEB's results (`model_meta`); None has name, hash and modalities only.

    Attributes:
        held_out: for each task, the vectors of its test images, [images, dim].
        passes: a list to which each call with texts appends its vectors; None keeps none.

    Local tasks over the same images share their vectors; MTEB knows the images by the hash of their pixels.
    """

    mteb_model_meta: ModelMeta

    def __init__(
        self,
        encoder: SentenceTransformer,
        *,
        name: str,
        content_hash: str,
        track: Track = silent,
        meta: ModelMeta | None = None,
    ) -> None:
        self.model = encoder
        self.name = name
        self.model_prompts = {key: prompt for key, prompt in encoder.prompts.items() if prompt is not None}
        modalities = [m for m in encoder.modalities if m in ("text", "image")]
        self.mteb_model_meta = meta or ModelMeta.create_empty(
            {"name": f"local/{name}", "revision": content_hash, "modalities": modalities}
        )
        self.held_out: dict[str, np.ndarray] = {}
        self.passes: list[np.ndarray] | None = None
        self._of_images: dict[tuple[str, str], np.ndarray] = {}
        self._track = track

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        batch_size: int = 32,
        **kwargs: Any,
    ) -> np.ndarray:
        """Encodes all texts or images: float32 [inputs, dim], in the order of `inputs`.

        Raises:
            CheckpointError: the model gives a vector that is not finite.
        """
        first = next(iter(inputs))
        if "image" in first and "text" not in first:
            images = self._encode_images(inputs, task_metadata, hf_split)
            if hf_split == "test":
                self.held_out[task_metadata.name.removeprefix("local/")] = images
            return images
        texts = [text for batch in inputs for text in batch["text"]]
        by_side = {PromptType.query: self.model.encode_query, PromptType.document: self.model.encode_document}
        encode = by_side.get(prompt_type, self.model.encode) if prompt_type else self.model.encode
        prompt = (self.model_prompts or {}).get(self.get_prompt_name(task_metadata, prompt_type) or "")
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        vectors: list[np.ndarray] = [np.empty(0)] * len(texts)
        for batch in self._track(batches, f"{self.name} on {task_metadata.name.removeprefix('local/')}"):
            encoded = self._encode_batch(encode, [texts[i] for i in batch], prompt=prompt)
            for i, vector in zip(batch, encoded, strict=True):
                vectors[i] = vector
        found = np.asarray(vectors, dtype=np.float32)
        if self.passes is not None:
            self.passes.append(found)
        return found

    def _encode_images(self, inputs: Any, task_metadata: Any, split: str) -> np.ndarray:
        name = task_metadata.name.removeprefix("local/")
        is_local, key = name != task_metadata.name, (task_metadata.dataset["revision"], split)
        if is_local and key in self._of_images:
            return self._of_images[key]
        tracked = self._track(inputs, f"{self.name} on {name}, {split}")
        images = np.concatenate([self._encode_batch(self.model.encode, batch["image"]) for batch in tracked])
        if is_local:
            self._of_images[key] = images
        return images

    def _encode_batch(self, encode: Any, batch: list[Any], **kwargs: Any) -> np.ndarray:
        whole = batch if any(batch) else [*batch, FILLER]  # a batch of empty texts may have no token
        found = encode(whole, batch_size=len(whole), show_progress_bar=False, **kwargs)
        encoded = np.asarray(found, dtype=np.float32)[: len(batch)]
        if not np.isfinite(encoded).all():
            raise CheckpointError(
                f"{self.name} gives vectors that are not finite (NaN or infinite), so it can't be scored",
                hint="check the model with ternarize inspect; its training may have diverged",
            )
        return encoded


@contextmanager
def quiet_mteb() -> Iterator[None]:
    """Keeps MTEB's log lines, progress bars and expected warnings off stderr while the body runs."""
    logger = logging.getLogger("mteb")
    level, bars_were_off = logger.level, datasets.are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    bar = tqdm.__init__
    tqdm.__init__ = partialmethod(bar, disable=True)  # some of MTEB's evaluators ignore the setting that hides bars
    try:
        with warnings.catch_warnings():
            for category in _EXPECTED_WARNINGS:
                warnings.simplefilter("ignore", category)
            warnings.filterwarnings("ignore", "To copy construct from a tensor", UserWarning)
            yield
    finally:
        tqdm.__init__ = bar
        logger.setLevel(level)
        if not bars_were_off:
            datasets.enable_progress_bars()
