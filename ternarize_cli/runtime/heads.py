"""Packed models with a head that run without PyTorch: rerankers, which score pairs of texts, and classifiers.

    texts or pairs ──tokenizing──▶ Tokens ──text_blocks──▶ hidden states ──one vector──▶ linears ──activation──▶ scores

The hidden states are those of the backend `native`, bit for bit. The head is a few linears of floats, which PyTorch
sums in another order: scores differ from its by some 1e-7.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ternarize_cli.errors import CheckpointError, InputError, UnavailableError, named, shown
from ternarize_cli.runtime.checked_folder import check_packed
from ternarize_cli.runtime.head_weights import ACTIVATIONS, HeadWeights
from ternarize_cli.runtime.modules import listed_modules, read_prompts
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.packed_file import IN_TORCH
from ternarize_cli.runtime.text_blocks import PackedText, batches, open_text
from ternarize_cli.runtime.tokenizing import Tokens
from ternarize_cli.storage.bounds import optional_object

__all__ = ["Classifier", "Reranker"]

Pair = tuple[str, str]


class _Headed:
    """A packed model with a head, read from its folder.

    Attributes:
        folder: the model's folder.
        kind: "reranker" or "classifier".
        reads: what it reads: "text".
        labels: the names of the labels, in the order of their scores.
        limit: the most tokens of a text or a pair that are read, special tokens included.
        prompts: the prompts by name; default_prompt_name: the name of the one that is used if none is given.
    """

    kind: ClassVar[str]
    reads = frozenset({"text"})

    def __init__(self, folder: str | Path) -> None:
        """Reads a packed model, whose files are first compared with those that were packed.

        Raises:
            CheckpointError: a file is missing or damaged, asks for something that no folder may ask for, or is not the
                one that was packed (FormatError).
            UnavailableError: the compiled library is missing, or the model asks for something that this runtime does
                not do, which the message names.
        """
        self.folder = folder = Path(folder)
        check_packed(folder)
        _check_modules(folder)
        text = open_text(folder, task="sequence-classification")
        self._library, self._blocks, self._tokenizer = library(), text.blocks, text.tokenizer
        self._head = HeadWeights(text)
        self.limit = self._tokenizer.limit
        self.labels = _labels(text, self._head.outputs)
        settings = folder / "config_sentence_transformers.json"
        own = optional_object(settings) if (folder / "modules.json").is_file() else {}
        self.prompts, self.default_prompt_name = read_prompts(own, folder)
        self._activation = _activation(own, text.config, len(self.labels), folder)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:  # a copy, in another process or not, opens the folder again
        _Headed.__init__(self, state["folder"])

    def tokenize(self, texts: Sequence[str], *, prompt: str | None = None) -> list[Tokens]:
        """Tokenises texts behind a prompt, with special tokens, and cuts them at `limit` tokens.

        Args:
            texts: the texts.
            prompt: the prompt; None: the model's default, if it has one.

        Raises:
            InputError: something is no text.
        """
        return self._tokenizer(texts, self._prompt(prompt))

    def pairs(self, pairs: Sequence[Pair], *, prompt: str | None = None) -> list[Tokens]:
        """Tokenises pairs of texts, with special tokens; where a pair is too long, its longer text is cut first.

        Args:
            pairs: the pairs.
            prompt: what is put before the first text of each; None: the model's default, if it has one.

        Raises:
            InputError: something is no pair of texts.
        """
        for pair in pairs:
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise InputError(f"{shown(pair)} is no pair of texts", hint='pass a list of pairs: [("a", "b")]')
        return self._tokenizer.pairs(pairs, self._prompt(prompt))

    def logits(self, tokens: Sequence[Tokens]) -> np.ndarray:
        """Computes the scores before the activation: float32 `[texts, labels]`, as one batch.

        Raises:
            InputError: a token is no row of the model's table, or a text has more tokens than there are positions.
        """
        hidden, starts = self._blocks(tokens)
        return self._head(self._library, hidden, starts, tokens)

    def _scores(self, tokens: Sequence[Tokens], *, raw: bool) -> np.ndarray:
        made = np.empty((len(tokens), len(self.labels)), dtype=np.float32)
        for rows in batches(tokens):
            made[rows] = self.logits([tokens[i] for i in rows])
        return made if raw else self._activation(made)

    def _prompt(self, prompt: str | None) -> str:
        if prompt is not None or self.default_prompt_name is None:
            return prompt or ""
        return self.prompts[self.default_prompt_name]


class Reranker(_Headed):
    """A packed cross-encoder.

        reranker = Reranker("my-packed")
        scores = reranker.score([("a query", "a passage"), ("a query", "another passage")])   # float32 [2]

    Calls may come from any thread; the compiled library uses all processors for each.
    """

    kind = "reranker"

    def score(self, pairs: Sequence[Pair], *, prompt: str | None = None, raw: bool = False) -> np.ndarray:
        """Scores pairs of texts, as `CrossEncoder.predict` does.

        Args:
            pairs: the pairs, such as a query and a passage.
            prompt: what is put before the first text of each; None: the model's default, if it has one.
            raw: whether scores are as the head gives them, without the model's activation.

        Returns:
            Float32 `[pairs]`; `[pairs, labels]` if the model has several labels.

        Raises:
            InputError: something is no pair of texts, or a text has a token that the model's table has no row for.
        """
        scores = self._scores(self.pairs(pairs, prompt=prompt), raw=raw)
        return scores[:, 0] if len(self.labels) == 1 else scores


class Classifier(_Headed):
    """A packed classifier.

        classifier = Classifier("my-packed")
        scores = classifier.classify(["a text", "another one"])   # float32 [2, labels]

    Calls may come from any thread; the compiled library uses all processors for each.
    """

    kind = "classifier"

    def classify(self, texts: Sequence[str | Pair], *, prompt: str | None = None, raw: bool = False) -> np.ndarray:
        """Scores each label for texts, or for pairs of texts.

        Args:
            texts: the texts or pairs.
            prompt: what is put before each; None: the model's default, if it has one.
            raw: whether scores are as the head gives them, without the model's activation.

        Returns:
            Float32 `[texts, labels]`.

        Raises:
            InputError: something is neither a text nor a pair, or a text has a token that the model's table has no row
                for.
        """
        if isinstance(texts, str):
            raise InputError("classify takes a list of texts", hint="classify([text])")
        single = iter(self.tokenize([text for text in texts if isinstance(text, str)], prompt=prompt))
        double = iter(self.pairs([text for text in texts if not isinstance(text, str)], prompt=prompt))
        return self._scores([next(single if isinstance(text, str) else double) for text in texts], raw=raw)


def _check_modules(folder: Path) -> None:
    """Checks that modules.json, if there is one, names nothing behind the model itself."""
    for i, (kind, _) in enumerate(listed_modules(folder)):
        if kind not in (("Transformer",) if i == 0 else ("Dropout",)):
            raise UnavailableError(
                f"{folder / 'modules.json'} names the module {named(kind)} at place {i}", hint=IN_TORCH
            )


def _labels(text: PackedText, outputs: int) -> tuple[str, ...]:
    """Returns the names of the labels.

    Raises:
        CheckpointError: config.json has other labels than the head has outputs.
    """
    path, given = text.folder / "config.json", text.config.get("id2label")
    if given is None:
        return tuple(f"LABEL_{i}" for i in range(outputs))
    found = [given.get(str(i)) for i in range(outputs)] if isinstance(given, dict) and len(given) == outputs else [None]
    if not all(isinstance(label, str) for label in found):
        raise CheckpointError(f"{path}: id2label does not name the {outputs} outputs", hint="fetch the files again")
    return tuple(map(str, found))


def _activation(
    settings: Mapping[str, Any], config: Mapping[str, Any], labels: int, folder: Path
) -> Callable[[np.ndarray], np.ndarray]:
    """Finds the activation that CrossEncoder applies: the one that a config names, or sigmoid for a single label."""
    of_config = config.get("sentence_transformers")
    given = settings.get("activation_fn")
    if given is None and isinstance(of_config, dict) and "activation_fn" in of_config:
        given = of_config["activation_fn"]
    elif given is None:
        given = config.get("sbert_ce_default_activation_function")
    name = ("Sigmoid" if labels == 1 else "Identity") if given is None else str(given).rpartition(".")[2]
    if name.lower() not in ACTIVATIONS:
        raise UnavailableError(f"{folder} has the activation {named(name)}", hint=IN_TORCH)
    return ACTIVATIONS[name.lower()]
