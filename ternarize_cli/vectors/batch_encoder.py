"""Encodes lists of texts or images with a running model.

sentence-transformers' modules do the work: tokenising, pooling, normalising, and the prompts that some models want in
front of queries or documents. An encoder here adds

- batches by length: a list is tokenised at once, and texts of similar length go through the model together, up to
  `BUDGET` tokens a batch, so that short texts share a pass and long ones take no more memory than they must;
- counts of tokens and of texts that were longer than the model reads, so that a caller can report them once;
- preparation apart from the forward pass, so that another thread can do it ahead (`encode`).
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from sentence_transformers.util import batch_to_device, truncate_embeddings

from ternarize_cli.data.length_buckets import by_length
from ternarize_cli.data.prefetch import ReadAhead
from ternarize_cli.encoders.anatomy import word_table
from ternarize_cli.encoders.vision import vector_width
from ternarize_cli.errors import CheckpointError, InputError, TernarizeError, counted, reason

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["BUDGET", "CHUNK", "FILLER", "ImageEncoder", "Prepared", "Role", "TextEncoder"]

CHUNK, _CHARACTERS = 1024, 1 << 20
"""The most texts in a chunk, and the number of characters after which a chunk takes no more texts."""
BUDGET = 8192
"""The most tokens in a batch, padding included: 32 texts of 256 tokens, or 512 texts of 16."""
FILLER = "a"
"""A text with a token, which stands beside texts without one, because no model runs a batch that is 0 tokens wide."""
_BATCH = 32
_LONG = 64  # a text with more characters per readable token than this may be cut before it is tokenised
Role = Literal["text", "query", "document"]
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Prepared:
    """A chunk, prepared for the model and cut into batches.

    Attributes:
        batches: pairs of row numbers of the chunk and the model's input features for these rows.
        name: gives the name by which a message calls a row of the chunk.
        tokens: number of tokens of all texts, special tokens included, padding not.
        truncated: number of texts that are longer than the model reads.
    """

    batches: list[tuple[list[int], dict[str, Any]]]
    name: Callable[[int], str]
    tokens: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self.batches)


class TextEncoder:
    """Encodes lists of texts, and counts texts and tokens.

    Args:
        encoder: the running model.
        role: "query" and "document" use the prompt and the route that the model has for them, "text" its default.
        prompt_name: name of a prompt of the model, used instead of the role's prompt.
        normalize: True scales vectors to length 1. False leaves them as the pooling made them, even if the model
            would normalise them (the model's last module is then removed from `encoder`). None does what the model
            does.
        batch_size: texts per forward pass; None takes texts of similar length, up to `BUDGET` tokens a batch.

    Attributes:
        texts, tokens, truncated: number of texts encoded, of tokens that the model read (special tokens included,
            padding not), and of texts that were longer than `limit` tokens.

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
        batch_size: int | None = None,
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
        self._normalize, self._batch_size = bool(normalize), batch_size
        self._prompt = encoder.prompts.get(self.prompt_name or "")
        self._task = {} if role == "text" else {"task": role}

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Encodes texts: float32 `[texts, dim]`, in the order of `texts`.

        Raises:
            InputError: a text has a token that the word table has no row for, or has no token where the model
                pools by the maximum over tokens, for which sentence-transformers gives -inf or NaN.
            TernarizeError: a vector is not finite; the message shows the text.
        """
        return self.forward(self.prepare(texts))

    def prepare(self, texts: list[str]) -> Prepared:
        """Tokenises texts and cuts them into batches. May run in another thread than `forward`."""
        texts = [self._readable_end(text) for text in texts]
        features = self._features(texts)
        mask = features.get("attention_mask")
        if mask is not None and not mask.any():  # empty texts, and a tokenizer without special tokens
            features = self._features([*texts, FILLER])
            features = _cut(features, list(range(len(texts))), np.ones(features["attention_mask"].shape[1], dtype=bool))
            mask = features["attention_mask"]
        if mask is None or len(mask) != len(texts):  # bags of words and unpadded sequences can't be cut by rows
            groups = _slices([len(text) for text in texts], self._batch_size or _BATCH)
            return Prepared([(rows, self._features([texts[row] for row in rows])) for rows in groups], _shown(texts))
        real = mask.numpy() != 0
        lengths = real.sum(axis=1)
        if self._batch_size:
            groups = _slices(lengths.tolist(), self._batch_size)
        else:
            groups = [group.tolist() for group in by_length(lengths, BUDGET)]
        return Prepared(
            [(rows, _cut(features, rows, real[rows].any(axis=0))) for rows in groups],
            _shown(texts),
            int(lengths.sum()),
            self._count_longer(texts, self._prompt or "") if lengths.max() >= self.limit else 0,
        )

    def forward(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[texts, dim]`, in the order of the texts that were prepared.

        Raises:
            InputError: a text has a token that the word table has no row for, or has no token where the model
                pools by the maximum over tokens, for which sentence-transformers gives -inf or NaN.
            TernarizeError: a vector is not finite; the message shows the text.
        """
        vectors = _forward(self.encoder, prepared, self._normalize, **self._task)
        self.texts += len(prepared)
        self.tokens += prepared.tokens
        self.truncated += prepared.truncated
        return vectors

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        return vector_width(self.encoder) or len(self.encoder.encode("dimension"))

    def chunks(self, items: Iterable[tuple[str, str]], linger: float | None) -> ReadAhead[tuple[str, str]]:
        """Cuts a stream of texts into chunks of at most `CHUNK` texts, read ahead by another thread."""
        count = max(CHUNK, self._batch_size or 0)
        return ReadAhead(items, count, room=_CHARACTERS, size=lambda item: len(item[1]), linger=linger)

    @property
    def counts(self) -> dict[str, int]:
        """Counts of what was encoded, and the number of dimensions of a vector."""
        return {"count": self.texts, "dim": self.dim, "tokens": self.tokens, "truncated": self.truncated}

    @property
    def summary(self) -> str:
        """A phrase that says how much was encoded."""
        return f"{counted(self.texts, 'text')}, {counted(self.tokens, 'token')}"

    @property
    def truncation(self) -> str | None:
        """A sentence that says how many texts were cut; None if the model read all of them to their end."""
        if not self.truncated:
            return None
        of = counted(self.texts, "text") if self.texts == 1 else f"{self.truncated:,} of {self.texts:,} texts"
        are = "is" if self.truncated == 1 else "are"
        return f"{of} {are} longer than the {self.limit} tokens this model reads: the rest was cut off"

    def _features(self, texts: list[str]) -> dict[str, Any]:
        return self.encoder.preprocess(texts, prompt=self._prompt, **self._task)

    def _readable_end(self, text: str) -> str:
        """Cuts a very long text to the end that the model reads, if that alone has more tokens than the model reads.

        That end is the beginning, or the last part for a tokenizer that truncates on the left. This saves memory:
        tokenising takes some 300 bytes a character.
        """
        if len(text) <= _LONG * self.limit:
            return text
        room = _LONG * int(self.limit)
        if getattr(self.encoder.tokenizer, "truncation_side", "right") == "left":
            space = text.find(" ", len(text) - room)
            part, prompt = text[space:] if space >= 0 else "", ""  # a prompt stands on the side that is cut off
        else:
            part, prompt = text[:room].rpartition(" ")[0], self._prompt or ""
        return part if part and self._count_longer([part], prompt) else text

    def _count_longer(self, texts: list[str], prompt: str) -> int:
        """Counts texts with more tokens than `limit`. A token covers at least a byte, so short texts are skipped."""
        tokenizer = self.encoder.tokenizer
        room = self.limit - tokenizer.num_special_tokens_to_add()
        long = [prompt + text for text in texts if len((prompt + text).encode()) > room]
        # verbose=False: otherwise transformers warns of long texts too.
        ids = tokenizer(long, truncation=False, verbose=False, return_attention_mask=False)["input_ids"] if long else []
        return sum(len(one) > self.limit for one in ids)


class ImageEncoder:
    """Encodes lists of images.

    Args:
        encoder: the running model.
        normalize: True scales vectors to length 1, False leaves them as the pooling made them, None does what the
            model does.
        batch_size: images per forward pass; None takes 32.

    Attributes:
        images, dim: number of images encoded, and number of dimensions of their vectors.

    The methods do for images what those of `TextEncoder` do for texts. Decoded images are large, so a chunk is one
    batch.
    """

    truncation: str | None = None

    def __init__(
        self, encoder: SentenceTransformer, *, normalize: bool | None = None, batch_size: int | None = None
    ) -> None:
        if normalize is False:
            _unnormalize(encoder)
        self.encoder = encoder
        self.images, self.dim = 0, vector_width(encoder)
        self._normalize, self._batch_size = bool(normalize), batch_size or _BATCH

    def prepare(self, images: "list[Image]") -> Prepared:
        """Resizes and normalises images with the model's processor. May run in another thread than `forward`.

        Raises:
            CheckpointError: the processor can't make pixels of the images, such as one stack of several sizes.
        """
        try:
            features = self.encoder.preprocess(images)
        except Exception as e:  # a processor with other values than its class expects can raise any error
            raise _disagreement("prepares no images", e) from e
        return Prepared([(list(range(len(images))), features)], lambda row: f"image {self.images + row}")

    def forward(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[images, dim]`, in the order of the images that were prepared.

        Raises:
            CheckpointError: the processor makes other pixels than the model takes, in size or channels.
            TernarizeError: a vector is not finite; the message names the image.
        """
        try:
            vectors = _forward(self.encoder, prepared, self._normalize)
        except (ValueError, IndexError, RuntimeError) as e:
            if isinstance(e, torch.OutOfMemoryError) or not _is_shape(e):
                raise
            raise _disagreement("makes pixels that the model does not take", e) from e
        self.images += len(prepared)
        self.dim = vectors.shape[1]
        return vectors

    def chunks(self, items: "Iterable[tuple[str, Image]]", linger: float | None) -> "ReadAhead[tuple[str, Image]]":
        """Cuts a stream of images into chunks of one batch, decoded ahead by another thread."""
        return ReadAhead(items, self._batch_size, linger=linger)

    @property
    def counts(self) -> dict[str, int]:
        """Counts of what was encoded, and the number of dimensions of a vector."""
        return {"count": self.images, "dim": self.dim}

    @property
    def summary(self) -> str:
        """A phrase that says how much was encoded."""
        return counted(self.images, "image")


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


def _slices(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Sorts positions by their length, longest first, and cuts them into lists of `size`."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


def _cut(features: dict[str, Any], rows: list[int], used: np.ndarray) -> dict[str, Any]:
    """Selects the features of `rows`, without the columns that are padding in all of these rows, but for one."""
    count, width = features["attention_mask"].shape
    columns = torch.from_numpy(np.flatnonzero(used) if used.any() else np.zeros(1, dtype=np.int64))
    cut = {}
    for name, value in features.items():
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count:
            value = value[rows]
            value = value[:, columns] if value.shape[1:2] == (width,) else value
        cut[name] = value
    return cut


@torch.inference_mode()
def _forward(encoder: SentenceTransformer, prepared: Prepared, normalize: bool, **task: str) -> np.ndarray:
    """Runs the model on each batch and puts the vectors in the order of the chunk: float32 `[rows, dim]`."""
    found, order, silent = [], [], set()
    for rows, features in prepared.batches:
        if isinstance(mask := features.get("attention_mask"), torch.Tensor) and len(mask) == len(rows):
            silent |= {row for row, tokens in zip(rows, mask.flatten(1).any(dim=1).tolist(), strict=True) if not tokens}
        _check_ids(encoder, rows, features, prepared.name)
        vectors = encoder(batch_to_device(dict(features), encoder.device), **task)["sentence_embedding"]
        vectors = truncate_embeddings(vectors, encoder.truncate_dim)
        found.append(torch.nn.functional.normalize(vectors, dim=1) if normalize else vectors)
        order += rows
    made = torch.cat(found).float().cpu().numpy()[np.argsort(order)]
    _check_finite(made, prepared.name, silent)
    return made


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


def _shown(texts: list[str]) -> Callable[[int], str]:
    return lambda row: f"the text {texts[row][:60]!r}"


def _unnormalize(encoder: SentenceTransformer) -> None:
    while len(encoder) > 1 and isinstance(encoder[-1], Normalize):
        del encoder[len(encoder) - 1]


def _check_finite(vectors: np.ndarray, name: Callable[[int], str], silent: Collection[int]) -> None:
    """Checks that all vectors are finite; `silent` holds the rows of texts without a token."""
    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad) and int(bad[0]) in silent:
        raise InputError(
            f"{name(int(bad[0]))} has no token, and no finite vector: a maximum over no tokens is -inf",
            hint="leave empty texts out",
        )
    if len(bad):
        raise TernarizeError(
            f"the model gave a vector that is not finite for {name(int(bad[0]))}",
            hint="ternarize inspect MODEL; a damaged or badly trained model does this",
        )


def _prompt_name(encoder: SentenceTransformer, role: Role) -> str | None:
    candidates = {"query": ("query",), "document": _DOCUMENT_PROMPTS, "text": ()}[role]
    return next((name for name in candidates if name in encoder.prompts), encoder.default_prompt_name)
