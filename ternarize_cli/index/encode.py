"""Texts to vectors, as the model wants it.

sentence-transformers does the work: tokenising, sorting by length, pooling, normalising, and the prompts that some
models want in front of queries or documents. This module adds what a run over a whole file needs: chunks, so that a
stream of any length encodes in bounded memory and in order; a count of the tokens that went through the model, seen by
a hook on its forward pass; and a count of the texts that were longer than the model reads, so that it can be said once.
"""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize

from ternarize_cli import files, models
from ternarize_cli.errors import CheckpointError, InputError, TernarizeError
from ternarize_cli.index.vectors import WRITERS
from ternarize_cli.texts import Document

__all__ = [
    "CHUNK",
    "Role",
    "TextEncoder",
    "encode_to_file",
    "encode_to_stream",
    "load_text_encoder",
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


def text_folder(model: str) -> Path:
    """Resolves MODEL to a folder and makes sure that what is in it reads text.

    Raises:
        ModelNotFoundError, CheckpointError: as `models.resolve`; CheckpointError also for a model without a tokenizer.
    """
    folder = models.resolve(model)
    if not any(next(folder.rglob(name), None) for name in (*_TOKENIZER_FILES, "sentencepiece*.model")):
        raise CheckpointError(
            f"{model} has no tokenizer, so it can't read text (an image model?)",
            hint="pass a text encoder, or copy the tokenizer's files (tokenizer.json, …) into the folder",
        )
    return folder


def load_text_encoder(
    folder: Path, *, backend: str = "auto", device: str | None = None, threads: int | None = None
) -> SentenceTransformer:
    """Loads a folder found by `text_folder`; arguments and errors as `models.load_encoder`."""
    return models.load_encoder(folder, backend=backend, device=device, threads=threads)


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
            while len(encoder) > 1 and isinstance(encoder[-1], Normalize):
                del encoder[len(encoder) - 1]
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
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise TernarizeError(
                f"the model gave a vector that is not finite for the text {texts[bad[0]][:60]!r}",
                hint="ternarize inspect MODEL; a damaged or badly trained model does this",
            )
        self.texts += len(texts)
        if full:
            self.truncated += self._count_longer(texts)
        return vectors

    @property
    def dim(self) -> int:
        """The length of a vector."""
        return self.encoder.get_embedding_dimension() or len(self.encoder.encode("dimension"))

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


def encode_to_stream(encode: TextEncoder, documents: Iterable[Document], stream: IO[bytes], kind: str) -> None:
    """Writes ids and vectors in the order of `documents`, a chunk at a time; `kind` is a key of `vectors.WRITERS`."""
    writer = WRITERS[kind](stream)
    iterator = iter(documents)
    while chunk := list(islice(iterator, CHUNK)):
        writer.write([d.id for d in chunk], encode([d.text for d in chunk]))
    writer.close()


def encode_to_file(
    encode: TextEncoder, documents: Iterable[Document], output: Path, kind: str, *, force: bool = False
) -> None:
    """As `encode_to_stream`, into a file that appears when it is whole (`files.atomic_file`)."""
    with files.atomic_file(output, force=force) as partial, partial.open("wb") as stream:
        encode_to_stream(encode, documents, stream, kind)


def _prompt_name(encoder: SentenceTransformer, role: Role) -> str | None:
    candidates = {"query": ("query",), "document": _DOCUMENT_PROMPTS, "text": ()}[role]
    return next((name for name in candidates if name in encoder.prompts), encoder.default_prompt_name)
