"""What encoders of lists share, whether they run in PyTorch (`text_encoder`) or not (`runtime_encoder`).

A list is prepared first, which another thread can do ahead: texts are tokenised at once, and cut into batches of like
length, up to `BATCH_TOKENS` tokens each, so that short texts share a pass and long ones take no more memory than they
must.
Texts, tokens and texts that were longer than the model reads are counted, so that a caller can report them once.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ternarize_cli.errors import InputError, TernarizeError, counted
from ternarize_cli.runtime.modules import require_prompt

__all__ = [
    "CHUNK",
    "FILLER",
    "Prepared",
    "Role",
    "TextBatches",
    "check_finite",
    "cut_by_length",
    "prompt_for",
    "shown_text",
]

CHUNK, _CHARACTERS = 1024, 1 << 20
"""The most texts in a chunk, and the number of characters after which a chunk takes no more texts."""
FILLER = "a"
"""A text with a token, which stands beside texts without one, because no model runs a batch that is 0 tokens wide."""
Role = Literal["text", "query", "document"]
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class Prepared:
    """A chunk, prepared for the model and cut into batches.

    Attributes:
        batches: pairs of row numbers of the chunk and the model's input for these rows.
        name: gives the name by which a message calls a row of the chunk.
        tokens: number of tokens of all texts, special tokens included, padding not.
        truncated: number of texts that are longer than the model reads.
    """

    batches: list[tuple[list[int], Any]]
    name: Callable[[int], str]
    tokens: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return sum(len(rows) for rows, _ in self.batches)


class TextBatches(ABC):
    """Encodes lists of texts, and counts texts and tokens.

    Attributes:
        limit: the most tokens of a text that the model reads; infinite if it reads any number.
        prompt_name: the name of the prompt that is put before each text; None for none.
        texts, tokens, truncated: number of texts encoded, of tokens that the model read (special tokens included,
            padding not), and of texts that were longer than `limit` tokens.
        on_gpu: whether `started` returns before the vectors are there.
    """

    on_gpu = False

    def __init__(self, limit: float, batch_size: int | None, prompt_name: str | None) -> None:
        self.limit, self.prompt_name = limit, prompt_name
        self.texts = self.tokens = self.truncated = 0
        self._batch_size = batch_size
        self._chunk, self._room = CHUNK, _CHARACTERS

    def __call__(self, texts: list[str]) -> np.ndarray:
        """Encodes texts: float32 `[texts, dim]`, in the order of `texts`.

        Raises:
            InputError: a text has a token that the word table has no row for, or has no token where the model
                pools by the maximum over tokens, for which sentence-transformers gives -inf or NaN.
            TernarizeError: a vector is not finite; the message shows the text.
        """
        return self.forward(self.prepare(texts))

    @abstractmethod
    def prepare(self, texts: list[str]) -> Prepared:
        """Tokenises texts and cuts them into batches. May run in another thread than `forward`."""

    def tokenised(self, texts: list[str]) -> Callable[[], Prepared]:
        """Tokenises texts; returns a function that makes what `prepare` makes of them, perhaps in another thread."""
        made = self.prepare(texts)
        return lambda: made

    @abstractmethod
    def vectors(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[texts, dim]`, in the order of the texts that were prepared."""

    def started(self, prepared: Prepared) -> Callable[[], np.ndarray]:
        """Starts to encode a prepared chunk, and returns a function that waits for what `vectors` gives."""
        made = self.vectors(prepared)
        return lambda: made

    @abstractmethod
    def for_role(self, role: Role, *, normalize: bool | None = None) -> "TextBatches":
        """Makes an encoder of the same model for queries or documents, whose counts begin at 0."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """The number of dimensions of a vector."""

    def forward(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[texts, dim]`, in the order of the texts that were prepared.

        Raises:
            InputError, TernarizeError: as `__call__`.
        """
        return self.finished(prepared, self.started(prepared))

    def finished(self, prepared: Prepared, wait: Callable[[], np.ndarray]) -> np.ndarray:
        """Waits for the vectors of a chunk that was `started`, and counts its texts."""
        made = wait()
        self.texts += len(prepared)
        self.tokens += prepared.tokens
        self.truncated += prepared.truncated
        return made

    @property
    def chunking(self) -> dict[str, Any]:
        """How a corpus of ids and texts is cut into chunks: arguments of `prefetch.in_chunks`."""
        return {"count": max(self._chunk, self._batch_size or 0), "room": self._room, "size": lambda item: len(item[1])}

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


def prompt_for(prompts: Collection[str], default: str | None, role: Role, named: str | None) -> str | None:
    """Chooses the name of a prompt.

    Args:
        prompts: the names of the model's prompts.
        default: the name of the one that the model uses if none is named.
        role: what the texts are; queries and documents have prompts of their own where the model has them.
        named: the name of the prompt that is asked for, instead of the role's.

    Raises:
        InputError: the model has no prompt of the name that is asked for.
    """
    if named is not None:
        require_prompt(prompts, named)
    candidates = {"query": ("query",), "document": _DOCUMENT_PROMPTS, "text": ()}[role]
    return named or next((name for name in candidates if name in prompts), default)


def shown_text(texts: Sequence[str]) -> Callable[[int], str]:
    """Returns the function that names a row of a chunk of texts in messages."""
    return lambda row: f"the text {texts[row][:60]!r}"


def cut_by_length(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Sorts positions by their length, longest first, and cuts them into lists of `size`."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    return [order[start : start + size] for start in range(0, len(order), size)]


def check_finite(vectors: np.ndarray, name: Callable[[int], str], silent: Collection[int]) -> None:
    """Checks that all vectors are finite.

    Args:
        vectors: float32 `[rows, dim]`.
        name: gives the name by which a message calls a row.
        silent: the rows of texts without a token.

    Raises:
        InputError: a vector of a text without a token is not finite.
        TernarizeError: another vector is not finite.
    """
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
