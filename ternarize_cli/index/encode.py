"""Texts or images to vectors, as the model wants it.

sentence-transformers does the work: tokenising, sorting by length, pooling, normalising, and the prompts that some
models want in front of queries or documents. This module adds what a run over a whole file needs: chunks, so that a
stream of any length encodes in bounded memory and in order; a count of the tokens that went through the model, seen by
a hook on its forward pass; and a count of the texts that were longer than the model reads, so that it can be said once.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from ternarize_cli import files, models, vision
from ternarize_cli.errors import CheckpointError, InputError, TernarizeError
from ternarize_cli.images import is_images, read_parts
from ternarize_cli.index.vectors import WRITERS
from ternarize_cli.texts import STDIN, read_texts

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "CHUNK",
    "ImageEncoder",
    "Role",
    "TextEncoder",
    "encode_to_file",
    "encode_to_stream",
    "image_folder",
    "open_input",
    "text_folder",
]

CHUNK = 1024
Role = Literal["text", "query", "document"]
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
)


def text_folder(model: str, *, allow_pickle: bool = False) -> Path:
    """Resolves MODEL to a folder and makes sure that what is in it reads text.

    Raises:
        ModelNotFoundError, CheckpointError: as `models.resolve`; CheckpointError also for a model that reads images
            only and for one without a tokenizer.
    """
    folder = models.resolve(model, allow_pickle=allow_pickle)
    vision.require(folder, "text", model)
    if not any(next(folder.rglob(name), None) for name in (*_TOKENIZER_FILES, "sentencepiece*.model")):
        raise CheckpointError(
            f"{model} has no tokenizer, so it can't read text",
            hint="copy the tokenizer's files (tokenizer.json, …) into the folder",
        )
    return folder


def image_folder(model: str, *, allow_pickle: bool = False) -> Path:
    """Resolves MODEL to a folder and makes sure that what is in it reads images.

    Raises:
        ModelNotFoundError, CheckpointError: as `models.resolve`; CheckpointError also for a model that reads text only.
    """
    folder = models.resolve(model, allow_pickle=allow_pickle)
    vision.require(folder, "image", model)
    return folder


def open_input(source: str) -> tuple[Iterator[tuple[str, Any]], bool]:
    """Opens what is to be encoded: pairs of id and content, and whether the content is images.

    Args:
        source: a file of texts, `-` for stdin, or images as `images.read_parts` finds them, all parts in order.

    Raises:
        DataError: as `texts.read_texts` and `images.read_parts`.
    """
    if source != STDIN and (is_images(source) or Path(source).expanduser().is_dir()):
        parts = read_parts(source).values()
        return (pair for images in parts for pair in zip(images.ids, images, strict=True)), True
    return ((document.id, document.text) for document in read_texts(source)), False


class TextEncoder:
    """Encodes lists of texts and keeps count.

    Args:
        encoder: the running model.
        role: "query" and "document" use the prompt and the route that the model keeps for them, "text" its default.
        prompt_name: one of the model's prompts, instead of the role's.
        normalize: True: vectors of length 1. False: as they leave the pooling, even if the model would normalise them
            (its last module is then taken off the encoder). None: as the model does.
        batch_size: texts per forward pass.

    Attributes:
        texts, tokens, truncated: texts encoded, tokens seen by the model (with special ones, without padding), and
            texts that were longer than `limit` tokens.

    Raises:
        InputError: the model has no prompt of that name.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        *,
        role: Role = "text",
        prompt_name: str | None = None,
        normalize: bool | None = None,
        batch_size: int = 32,
    ) -> None:
        if prompt_name is not None and prompt_name not in encoder.prompts:
            known = ", ".join(sorted(encoder.prompts)) or "none"
            raise InputError(f"the model has no prompt named {prompt_name!r}", hint=f"its prompts: {known}")
        if normalize is False:
            _unnormalize(encoder)
        self.encoder = encoder
        self.prompt_name = prompt_name or _prompt_name(encoder, role)
        self.limit: float = encoder.max_seq_length or float("inf")
        self.texts = self.tokens = self.truncated = 0
        self._encode = {"query": encoder.encode_query, "document": encoder.encode_document, "text": encoder.encode}[
            role
        ]
        self._options = {"normalize_embeddings": bool(normalize), "batch_size": batch_size, "show_progress_bar": False}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Returns float32 `[texts, dim]`, in the order of `texts`.

        Raises:
            TernarizeError: a vector is not finite; the message shows the text.
        """
        full = 0

        def count(_module: Any, arguments: tuple[Any, ...]) -> None:
            nonlocal full
            mask = arguments[0].get("attention_mask")
            if mask is not None:
                lengths = mask.sum(dim=1)
                self.tokens += int(lengths.sum())
                full += int((lengths >= self.limit).sum())

        hook = self.encoder.register_forward_pre_hook(count)
        try:
            vectors = np.asarray(self._encode(texts, prompt_name=self.prompt_name, **self._options), dtype=np.float32)
        finally:
            hook.remove()
        _check_finite(vectors, lambda row: f"the text {texts[row][:60]!r}")
        self.texts += len(texts)
        if full:
            self.truncated += self._count_longer(texts)
        return vectors

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.encoder.get_embedding_dimension() or len(self.encoder.encode("dimension"))

    @property
    def chunk(self) -> int:
        """How many texts are worth having in memory."""
        return CHUNK

    @property
    def counts(self) -> dict[str, int]:
        """What was encoded, in numbers."""
        return {"count": self.texts, "dim": self.dim, "tokens": self.tokens, "truncated": self.truncated}

    @property
    def summary(self) -> str:
        """What was encoded, in words."""
        return f"{self.texts} texts, {self.tokens} tokens"

    @property
    def truncation(self) -> str | None:
        """One sentence about texts that were cut; None if all were read to their end."""
        if not self.truncated:
            return None
        of, are = ("1 text", "is") if self.texts == 1 else (f"{self.truncated} of {self.texts} texts", "are")
        return f"{of} {are} longer than the {self.limit} tokens this model reads: the rest was cut off"

    def _count_longer(self, texts: list[str]) -> int:
        """Texts with more tokens than `limit`. A token covers a byte at least, so short texts need no tokenising."""
        tokenizer = self.encoder.tokenizer
        prompt = self.encoder.prompts.get(self.prompt_name, "")
        room = self.limit - tokenizer.num_special_tokens_to_add()
        long = [prompt + text for text in texts if len((prompt + text).encode()) > room]
        # verbose=False: transformers would say by itself, in other words, that a text is long.
        ids = tokenizer(long, truncation=False, verbose=False, return_attention_mask=False)["input_ids"] if long else []
        return sum(len(one) > self.limit for one in ids)


class ImageEncoder:
    """Encodes lists of images.

    Args:
        encoder: the running model.
        normalize: as `TextEncoder` takes it.
        batch_size: images per forward pass.

    Attributes:
        images, dim: how many were encoded, and the length of their vectors (0 before the first).
        chunk, counts, summary, truncation: as those of `TextEncoder`; decoded images are large: a chunk is a batch.
    """

    truncation: str | None = None

    def __init__(self, encoder: SentenceTransformer, *, normalize: bool | None = None, batch_size: int = 32) -> None:
        if normalize is False:
            _unnormalize(encoder)
        self.encoder = encoder
        self.images = self.dim = 0
        self.chunk = batch_size
        self._options = {"normalize_embeddings": bool(normalize), "batch_size": batch_size, "show_progress_bar": False}

    def __call__(self, images: "list[Image]") -> np.ndarray:
        """Returns float32 `[images, dim]`, in the order of `images`.

        Raises:
            TernarizeError: a vector is not finite; the message says of which image.
        """
        vectors = np.asarray(self.encoder.encode(images, **self._options), dtype=np.float32)
        _check_finite(vectors, lambda row: f"image {self.images + row}")
        self.images += len(images)
        self.dim = vectors.shape[1]
        return vectors

    @property
    def counts(self) -> dict[str, int]:
        """What was encoded, in numbers."""
        return {"count": self.images, "dim": self.dim}

    @property
    def summary(self) -> str:
        """What was encoded, in words."""
        return f"{self.images} images"


def encode_to_stream(
    encode: TextEncoder | ImageEncoder, items: Iterable[tuple[str, Any]], stream: IO[bytes], kind: str
) -> None:
    """Writes ids and vectors in the order of `items`, a chunk at a time.

    Args:
        encode: what makes vectors of the contents.
        items: id, and text or image, of each.
        stream: where to.
        kind: a key of `vectors.WRITERS`.
    """
    writer = WRITERS[kind](stream)
    iterator = iter(items)
    while batch := list(islice(iterator, encode.chunk)):
        writer.write([identity for identity, _ in batch], encode([content for _, content in batch]))
    writer.close()


def encode_to_file(
    encode: TextEncoder | ImageEncoder,
    items: Iterable[tuple[str, Any]],
    output: Path,
    kind: str,
    *,
    force: bool = False,
) -> None:
    """As `encode_to_stream`, into a file that appears when it is whole (`files.atomic_file`)."""
    with files.atomic_file(output, force=force) as partial, partial.open("wb") as stream:
        encode_to_stream(encode, items, stream, kind)


def _unnormalize(encoder: SentenceTransformer) -> None:
    while len(encoder) > 1 and isinstance(encoder[-1], Normalize):
        del encoder[len(encoder) - 1]


def _check_finite(vectors: np.ndarray, name: Callable[[int], str]) -> None:
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise TernarizeError(
            f"the model gave a vector that is not finite for {name(int(bad[0]))}",
            hint="ternarize inspect MODEL; a damaged or badly trained model does this",
        )


def _prompt_name(encoder: SentenceTransformer, role: Role) -> str | None:
    candidates = {"query": ("query",), "document": _DOCUMENT_PROMPTS, "text": ()}[role]
    return next((name for name in candidates if name in encoder.prompts), encoder.default_prompt_name)
