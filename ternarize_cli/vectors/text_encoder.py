"""Encodes lists of texts with a running model in PyTorch.

sentence-transformers' modules do the work: tokenising, pooling, normalising, and the prompts that some models want in
front of queries or documents. `text_batches` says what an encoder here adds.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from ternarize_cli.data.length_buckets import by_length
from ternarize_cli.encoders.vision import vector_width
from ternarize_cli.errors import CheckpointError
from ternarize_cli.vectors import gpu_batches, model_run
from ternarize_cli.vectors.flat_tokens import FlatTokens
from ternarize_cli.vectors.quick_tokenizing import QuickTokenizer, quick_tokenizer
from ternarize_cli.vectors.text_batches import (
    FILLER,
    Prepared,
    Role,
    TextBatches,
    cut_by_length,
    prompt_for,
    shown_text,
)

if TYPE_CHECKING:
    pass

__all__ = ["TextEncoder"]

_BATCH = 32
_LONG = 64  # a text with more characters per readable token than this may be cut before it is tokenised


class TextEncoder(TextBatches):
    """Encodes lists of texts, and counts texts and tokens.

    Args:
        encoder: the running model.
        role: "query" and "document" use the prompt and the route that the model has for them, "text" its default.
        prompt_name: name of a prompt of the model, used instead of the role's prompt.
        normalize: True scales vectors to length 1. False leaves them as the pooling made them, even if the model
            would normalise them (the model's last module is then removed from `encoder`). None does what the model
            does.
        batch_size: texts per forward pass; None takes texts of similar length, up to as many tokens a batch as
            `gpu_batches.budgets` says.

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
        name = prompt_for(encoder.prompts, encoder.default_prompt_name, role, prompt_name)
        if normalize is False:
            model_run.unnormalize(encoder)
        super().__init__(encoder.max_seq_length or float("inf"), batch_size, name)
        self.encoder = encoder
        self._normalize = bool(normalize)
        self._prompt = encoder.prompts.get(self.prompt_name or "")
        self._task = {} if role == "text" else {"task": role}
        self._quick: QuickTokenizer | None = None
        self._looked = False
        self.on_gpu = encoder.device.type == "cuda"
        if self.on_gpu:
            self._chunk, self._room = gpu_batches.CHUNK, gpu_batches.CHARACTERS

    def prepare(self, texts: list[str]) -> Prepared:
        """Tokenises texts and cuts them into batches. May run in another thread than `forward`."""
        return self.tokenised(texts)()

    def tokenised(self, texts: list[str]) -> Callable[[], Prepared]:
        """Tokenises texts; returns a function that makes what `prepare` makes of them, perhaps in another thread.

        So a tokenizer in a process of its own has the next texts while these are padded.
        """
        room = _LONG * self.limit
        texts = [text if len(text) <= room else self._readable_end(text) for text in texts]
        if not self._looked:
            self._quick = quick_tokenizer(self._features, self.encoder.tokenizer, self._prompt or "", self.limit)
            self._looked = True
        elif self.on_gpu and self._quick is not None:  # a second chunk: the process is worth its start
            self._quick.apart()
        if self._quick is None:
            made = self._pinned(self._padded(texts))
            return lambda: made
        return partial(self._quickly_padded, texts, self._quick, self._quick.begun(texts))

    def _pinned(self, made: Prepared) -> Prepared:
        if not self.on_gpu:
            return made
        batches = [(rows, gpu_batches.pinned(features, self.encoder.device)) for rows, features in made.batches]
        return replace(made, batches=batches)

    def _quickly_padded(self, texts: list[str], quick: QuickTokenizer, begun: Callable[[], FlatTokens]) -> Prepared:
        tokens = begun()
        groups = self._groups(tokens.lengths)
        batches = list(zip(groups, quick.padded(tokens, groups), strict=True))
        return self._pinned(Prepared(batches, shown_text(texts), int(tokens.lengths.sum()), tokens.truncated))

    def _padded(self, texts: list[str]) -> Prepared:
        features = self._features(texts)
        mask = features.get("attention_mask")
        if mask is not None and not mask.any():  # empty texts, and a tokenizer without special tokens
            features = self._features([*texts, FILLER])
            if not features["attention_mask"].shape[1]:
                raise CheckpointError("the tokenizer makes no token of any text", hint="fetch the whole model again")
            features = _cut(features, list(range(len(texts))), np.ones(features["attention_mask"].shape[1], dtype=bool))
            mask = features["attention_mask"]
        if mask is None or len(mask) != len(texts):  # bags of words and unpadded sequences can't be cut by rows
            groups = cut_by_length([len(text) for text in texts], self._batch_size or _BATCH)
            return Prepared(
                [(rows, self._features([texts[row] for row in rows])) for rows in groups], shown_text(texts)
            )
        real = mask.numpy() != 0
        lengths = real.sum(axis=1)
        groups = self._groups(lengths)
        return Prepared(
            [(rows, _cut(features, rows, real[rows].any(axis=0))) for rows in groups],
            shown_text(texts),
            int(lengths.sum()),
            self._count_longer(texts, self._prompt or "") if lengths.max() >= self.limit else 0,
        )

    def _groups(self, lengths: np.ndarray) -> list[list[int]]:
        """Cuts texts with these numbers of tokens into batches."""
        if self._batch_size:
            return cut_by_length(lengths.tolist(), self._batch_size)
        return [group.tolist() for group in by_length(lengths, *gpu_batches.budgets(self.encoder))]

    def vectors(self, prepared: Prepared) -> np.ndarray:
        """Encodes a prepared chunk: float32 `[texts, dim]`, in the order of the texts that were prepared.

        Raises:
            InputError: a text has a token that the word table has no row for, or has no token where the model
                pools by the maximum over tokens, for which sentence-transformers gives -inf or NaN.
            TernarizeError: a vector is not finite; the message shows the text.
        """
        return self.started(prepared)()

    def started(self, prepared: Prepared) -> Callable[[], np.ndarray]:
        """Starts to encode a prepared chunk, and returns a function that waits for what `vectors` gives.

        Raises:
            InputError: a text has a token that the word table has no row for.
        """
        return model_run.started(self.encoder, prepared, self._normalize, **self._task)

    def for_role(self, role: Role, *, normalize: bool | None = None) -> "TextEncoder":
        """Makes an encoder of the same model for queries or documents, whose counts begin at 0."""
        return TextEncoder(self.encoder, role=role, normalize=normalize)

    @property
    def dim(self) -> int:
        """The number of dimensions of a vector."""
        return vector_width(self.encoder) or len(self.encoder.encode("dimension"))

    def _features(self, texts: list[str]) -> dict[str, Any]:
        return self.encoder.preprocess(texts, prompt=self._prompt, **self._task)

    def _readable_end(self, text: str) -> str:
        """Cuts a very long text to the end that the model reads, if that alone has more tokens than the model reads.

        That end is the beginning, or the last part for a tokenizer that truncates on the left. This saves memory:
        tokenising takes some 300 bytes a character.
        """
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
