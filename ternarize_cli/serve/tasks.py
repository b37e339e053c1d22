"""What can be computed for an item of a request, such as a vector of a text.

A task first *prepares* items, which gives each a cost in tokens, and then *runs* prepared items in a pass of the model.
Tasks of one `group` may share a pass. Tasks are compared by what they do, so that texts that are prepared alike go
through the tokenizer in one call.
"""

import io
import sys
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ternarize_cli.data.image_decoding import decoded_rgb
from ternarize_cli.runtime import Encoder, Tokens
from ternarize_cli.runtime.head_weights import ACTIVATIONS
from ternarize_cli.runtime.heads import Classifier, Reranker
from ternarize_cli.serve.answers import Fault, Refusal
from ternarize_cli.serve.image_urls import image_bytes, pixels
from ternarize_cli.serve.models import Model

__all__ = ["ImageVectors", "Prepared", "Scores", "Task", "TokenVectors", "Tokenization", "Vectors"]

_IMAGE_COST, _PIXELS = 256, 4096
"""What an image costs at least, in tokens: about as many as a ViT-B/16 makes of one; and the pixels that cost one.

Images are decoded only in their pass, so that a pass and not the queue bounds the memory for their pixels.
"""
_MOST_VALUES = 1 << 23
"""The most numbers in the vectors of all tokens of a request, which are some 90 MB of JSON."""


class Prepared(NamedTuple):
    """An item that can go into a pass.

    Attributes:
        content: what the model takes.
        tokens: its tokens, which the client is told of.
        extra: what counts towards the bound of a pass in addition.
    """

    content: Any
    tokens: int
    extra: int = 0

    @property
    def cost(self) -> int:
        """What counts towards the bound of a pass."""
        return self.tokens + self.extra


@dataclass(frozen=True)
class Task(ABC):
    """What is computed for the items of a request."""

    @property
    def group(self) -> Hashable:
        """What tasks that may share a pass have in common."""
        return self

    @property
    def most_tokens(self) -> int:
        """The most tokens in all items of a request."""
        return sys.maxsize

    def size(self, item: Any) -> int:
        """Estimates how much work it is to prepare an item, in letters."""
        return len(item)

    @abstractmethod
    def prepare(self, items: Sequence[Any]) -> list[Prepared]:
        """Prepares items.

        Raises:
            Refusal: an item can't be computed.
        """

    @abstractmethod
    def run(self, contents: Sequence[Any]) -> Sequence[np.ndarray] | np.ndarray:
        """Computes the results of prepared items, in their order."""

    def join(self, parts: list[Any]) -> Any:
        """Joins the results of several passes."""
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclass(frozen=True)
class _OfTokens(Task):
    """A task for texts, which are tokenised first, or for tokens.

    Attributes:
        model: the model.
        prompt: the prompt that is put before a text.
        truncate: whether a text with too many tokens is cut; otherwise it is refused.
    """

    model: Model
    prompt: str = ""
    truncate: bool = True

    def size(self, item: str | Tokens) -> int:
        return len(item) if isinstance(item, str) else len(item.ids)

    def prepare(self, items: Sequence[str | Tokens]) -> list[Prepared]:
        tokens = iter(self.model.tokenize([i for i in items if isinstance(i, str)], prompt=self.prompt))
        return [self._prepared(next(tokens) if isinstance(item, str) else item) for item in items]

    def _prepared(self, tokens: Tokens) -> Prepared:
        count, limit = len(tokens.ids), self.model.limit
        if count > limit or (tokens.truncated and not self.truncate):
            raise Refusal(Fault.INVALID, f"an input has more than the {limit:,} tokens that the model reads")
        if count == 0:
            raise Refusal(Fault.EMPTY, "an input has no tokens")
        return Prepared(tokens, count)


@dataclass(frozen=True)
class Vectors(_OfTokens):
    """Makes a vector of each text: results are float32 `[texts, dimensions]`.

    Attributes:
        normalize: whether vectors get length 1; None: as the model does.
        dimensions: the number of leading dimensions that are kept; None: as the model does.
    """

    model: Encoder
    normalize: bool | None = None
    dimensions: int | None = None

    @property
    def group(self) -> Hashable:
        return (Vectors, self.model, self.prompt, self.normalize, self.dimensions)

    def run(self, contents: Sequence[Tokens]) -> np.ndarray:
        return self.model.encode_tokens(
            contents, prompt=self.prompt, normalize=self.normalize, dimensions=self.dimensions
        )


@dataclass(frozen=True)
class TokenVectors(_OfTokens):
    """Makes a vector of each token: results are a list of float32 `[tokens, width]`, one for each text."""

    model: Encoder

    @property
    def group(self) -> Hashable:
        return (TokenVectors, self.model)

    @property
    def most_tokens(self) -> int:
        return _MOST_VALUES // self.model.dim

    def run(self, contents: Sequence[Tokens]) -> list[np.ndarray]:
        return self.model.token_vectors(contents)

    def join(self, parts: list[list[np.ndarray]]) -> list[np.ndarray]:
        return [array for part in parts for array in part]


@dataclass(frozen=True)
class Tokenization(_OfTokens):
    """Lists the tokens of each text: results are, for each text, tuples of id, string, begin, end, and specialness."""

    model: Encoder

    @property
    def group(self) -> Hashable:
        return (Tokenization, self.model)

    def prepare(self, items: Sequence[str | Tokens]) -> list[Prepared]:
        made = []
        for item, prepared in zip(items, super().prepare(items), strict=True):
            spans = self.model.token_spans(f"{self.prompt}{item}", prepared.content)
            listed = [(i, *span) for i, span in zip(prepared.content.ids, spans, strict=True)]
            made.append(Prepared(listed, prepared.tokens))
        return made

    def run(self, contents: Sequence[Any]) -> Any:
        return contents

    def join(self, parts: list[list[Any]]) -> list[Any]:
        return [listed for part in parts for listed in part]


@dataclass(frozen=True)
class Scores(_OfTokens):
    """Scores texts, or pairs of texts, with a reranker or classifier: results are float32 `[texts, labels]`.

    Attributes:
        raw: whether scores are as the head gives them; otherwise a single one gets a sigmoid, and several a softmax, as
            text-embeddings-inference does, whatever activation the model's config names.
    """

    model: Reranker | Classifier
    raw: bool = False

    @property
    def group(self) -> Hashable:
        return (Scores, self.model, self.raw)

    def size(self, item: Any) -> int:
        return len(item) if isinstance(item, str) else sum(map(len, item))

    def prepare(self, items: Sequence[Any]) -> list[Prepared]:
        texts = iter(self.model.tokenize([i for i in items if isinstance(i, str)], prompt=self.prompt))
        pairs = iter(self.model.pairs([i for i in items if not isinstance(i, str)], prompt=self.prompt))
        return [self._prepared(next(texts if isinstance(item, str) else pairs)) for item in items]

    def run(self, contents: Sequence[Tokens]) -> np.ndarray:
        logits = self.model.logits(contents)
        if self.raw:
            return logits
        if logits.shape[1] == 1:
            return ACTIVATIONS["sigmoid"](logits)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class ImageVectors(Task):
    """Makes a vector of each image, which is given as a data URL: results are float32 `[images, dimensions]`.

    Attributes:
        model: an encoder that reads images.
        normalize: whether vectors get length 1; None: as the model does.
        dimensions: the number of leading dimensions that are kept; None: as the model does.
        max_pixels: the most pixels of an image.
    """

    model: Encoder
    normalize: bool | None
    dimensions: int | None
    max_pixels: int

    def prepare(self, items: Sequence[str]) -> list[Prepared]:
        encoded = [image_bytes(item) for item in items]
        return [Prepared(one, 0, max(_IMAGE_COST, pixels(one, self.max_pixels) // _PIXELS)) for one in encoded]

    def run(self, contents: Sequence[bytes]) -> np.ndarray:
        images = [decoded_rgb(io.BytesIO(one), "an image") for one in contents]
        return self.model.encode_images(images, normalize=self.normalize, dimensions=self.dimensions)
