"""Tokenises many texts in little time, to what sentence-transformers' `preprocess` makes of them.

`preprocess` looks at each text several times, makes Python objects of each, and pads all texts to the longest. For
short texts that takes longer than the tokenizer itself. Here the tokenizer's own library is called, and NumPy pads
texts of like length together. What the model's settings ask for besides (prompts, which tensors, values that do not
depend on the texts) is taken from what `preprocess` makes of a few texts. Where the two differ on these, `preprocess`
stays.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ternarize_cli.errors import TernarizeError
from ternarize_cli.layers.text_lengths import with_lengths
from ternarize_cli.measuring.child import Child
from ternarize_cli.vectors.flat_tokens import FlatTokens, open_here, tokens_here, tokens_of

__all__ = ["QuickTokenizer", "quick_tokenizer"]

_LOG = logging.getLogger(__name__)

_IDS, _MASK, _TYPES = "input_ids", "attention_mask", "token_type_ids"
_SAMPLE = [
    "",
    "a",
    " The Cat  sat\ton the mat. ",
    "ÄÖÜ 你好, naïve – 12,345!",
    "x" * 300,
    "one two three four five " * 4,
]
_BEYOND = 4  # words of a sample text for each token that the model reads
_MOST = 1 << 16  # tokens of a text up to which a text that is cut is among the sample


class QuickTokenizer:
    """Tokenises lists of texts, and pads batches of them."""

    def __init__(self, tokenizer: Any, prompt: str, limit: float, features: dict[str, Any]) -> None:
        """Takes a fast tokenizer of transformers, and `features` that `preprocess` made of some texts."""
        self._tokenizer, self._prompt = tokenizer, prompt
        self._limit = int(limit)
        self._constant = {name: value for name, value in features.items() if not isinstance(value, Tensor)}
        types = features.get(_TYPES)
        self._has_types = isinstance(types, Tensor) and bool(types.any())  # what a type is depends on no text
        self._tensors = {name for name, value in features.items() if isinstance(value, Tensor)}
        self._pads_right = tokenizer.padding_side == "right"
        self._child: Child | None = None
        self._was_started, self._lock = False, threading.Lock()

    def makes(self, expected: dict[str, Any], texts: Sequence[str]) -> bool:
        """Returns whether these features are what it makes of some texts."""
        if not {_IDS, _MASK} <= self._tensors <= {_IDS, _MASK, _TYPES}:
            return False
        found = self.padded(self(texts), [range(len(texts))])[0]
        return found.keys() == expected.keys() and all(
            torch.equal(value, found[name]) and value.dtype == found[name].dtype
            for name, value in expected.items()
            if isinstance(value, Tensor)
        )

    def apart(self) -> None:
        """Tokenises in a process of its own from now on, which is started once, and not again after a failure."""
        with self._lock:
            if self._was_started:
                return
            self._was_started = True
            described = self._own().to_str()
        self._child = Child("the tokenizer")
        try:
            self._child.call(open_here, described, self._limit, self._has_types)
        except TernarizeError as e:
            self._give_up(e)

    def __call__(self, texts: Sequence[str]) -> FlatTokens:
        """Tokenises texts behind the prompt, and cuts them at the limit."""
        return self.begun(texts)()

    def begun(self, texts: Sequence[str]) -> Callable[[], FlatTokens]:
        """Starts to tokenise texts, and returns a function that waits for what a call gives.

        A process of its own finds these texts waiting when it has tokenised those before. One thread may begin and
        another one wait, in the order in which texts were begun. Without such a process all is done before it returns.
        """
        given = [self._prompt + text for text in texts] if self._prompt else list(texts)
        child = self._child
        if child is None:
            made = self._here(given)
            return lambda: made
        try:
            wait = child.begin(tokens_here, given)
        except TernarizeError as e:
            self._give_up(e)
            return partial(self._here, given)

        def finish() -> FlatTokens:
            try:
                found: FlatTokens = wait()
            except TernarizeError as e:  # such as a process that was killed because memory was short
                self._give_up(e)
                return self._here(given)
            return found

        return finish

    def _give_up(self, error: TernarizeError) -> None:
        """Leaves a process that failed, and says so once; what was begun in it meanwhile fails, too."""
        with self._lock:
            if self._child is not None:
                _LOG.warning("texts are tokenised in this process, which is slower: %s", error)
                self._child = None

    def _here(self, texts: list[str]) -> FlatTokens:
        with self._lock:  # the thread that begins and the one that waits may both come here
            return tokens_of(self._own(), texts, self._limit, with_types=self._has_types)

    def _own(self) -> Any:
        """Returns the tokenizer of the library tokenizers, which pads nothing and cuts texts at the limit."""
        own = self._tokenizer.backend_tokenizer
        own.no_padding()
        own.enable_truncation(self._limit, strategy="longest_first", direction=self._tokenizer.truncation_side)
        return own

    def padded(self, texts: FlatTokens, groups: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """Makes the model's input for each of some groups of texts, padded to the longest text of the group."""
        order = np.concatenate([np.asarray(group, dtype=np.int64) for group in groups])
        lengths = texts.lengths[order]
        starts = np.cumsum(texts.lengths)[order] - lengths  # of texts, in the order of the groups
        place = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        flat = {_IDS: texts.ids[place]} | ({} if texts.types is None else {_TYPES: texts.types[place]})
        padding = {_IDS: self._tokenizer.pad_token_id, _TYPES: self._tokenizer.pad_token_type_id}
        made = []
        start = first = 0
        for group in groups:
            own = lengths[start : start + len(group)]
            last = first + int(own.sum())
            width = max(1, int(own.max()))
            places = np.arange(width) < own[:, None]
            places = places if self._pads_right else places[:, ::-1]
            mask = torch.from_numpy(places.astype(np.int64))
            features: dict[str, Any] = {_MASK: with_lengths(mask, own if self._pads_right else None)}
            for name, values in flat.items():
                rows = np.full(places.shape, padding[name], dtype=np.int64)
                rows[places] = values[first:last]
                features[name] = torch.from_numpy(rows)
            if _TYPES in self._tensors and not self._has_types:
                features[_TYPES] = torch.zeros(places.shape, dtype=torch.int64)
            made.append({**self._constant, **features})
            start, first = start + len(group), last
        return made


def quick_tokenizer(
    preprocess: Callable[[list[str]], dict[str, Any]], tokenizer: Any, prompt: str, limit: float
) -> QuickTokenizer | None:
    """Makes the quick tokenizer of a model, if it makes of some texts what `preprocess` makes of them; else None.

    Args:
        preprocess: makes the model's input of texts.
        tokenizer: the model's.
        prompt: what stands before each text.
        limit: the most tokens of a text; a model that reads more than 65,536 has no quick tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False) or tokenizer.pad_token_id is None or limit > _MOST:
        return None
    sample = [*_SAMPLE, "cat " * (_BEYOND * int(limit))]
    expected = preprocess(sample)
    quick = QuickTokenizer(tokenizer, prompt, limit, expected)
    return quick if quick.makes(expected, sample) else None
