"""The heads of rerankers and classifiers: from hidden states to a score for each label.

    one vector of a text ──linear, activation, norm──▶ … ──linear──▶ logits

They are those of transformers' classes XForSequenceClassification, and their weights stay floats in a packed model.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ternarize_cli.errors import CheckpointError, UnavailableError, named, shown
from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights
from ternarize_cli.runtime.packed_file import IN_TORCH, PackedFile
from ternarize_cli.runtime.text_blocks import PackedText
from ternarize_cli.runtime.tokenizing import Tokens

__all__ = ["ACTIVATIONS", "HeadWeights"]


class _Head(NamedTuple):
    """The head of a family, by the names of its modules.

    Attributes:
        pooling: the vector that the head reads: "cls", the first token's; "mean"; "last", that of the last token that
            is no padding; or "late", where the head reads each token, and its scores are averaged.
        layers: the linears before the last, each with an activation and a norm ("" for none).
        last: the linear that gives a score for each label.
    """

    pooling: str
    layers: tuple[tuple[str, str, str], ...]
    last: str


_POOLED = _Head("cls", (("pooler.dense", "tanh", ""),), "classifier")
_FIRST = _Head("cls", (("classifier.dense", "tanh", ""),), "classifier.out_proj")
_DECODER = _Head("last", (), "score")
_HEADS: dict[str, Callable[[Mapping[str, Any]], _Head]] = {
    **dict.fromkeys(("bert", "ernie", "nomic_bert", "gte"), lambda config: _POOLED),
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert", "mpnet"), lambda config: _FIRST),
    "electra": lambda config: _Head("cls", (("classifier.dense", "gelu", ""),), "classifier.out_proj"),
    "distilbert": lambda config: _Head("cls", (("pre_classifier", "relu", ""),), "classifier"),
    "modernbert": lambda config: _Head(
        str(config.get("classifier_pooling", "cls")),
        (("head.dense", str(config.get("classifier_activation", "gelu")), "head.norm"),),
        "classifier",
    ),
    "eurobert": lambda config: _Head(
        str(config.get("classifier_pooling", "late")).replace("bos", "cls"), (("dense", "gelu", ""),), "classifier"
    ),
    **dict.fromkeys(("qwen3", "llama", "mistral", "gemma3_text"), lambda config: _DECODER),
}
"""The heads by the `model_type` of config.json, as the classes XForSequenceClassification of transformers have them."""


def _gelu(x: np.ndarray) -> np.ndarray:
    """Computes x·Φ(x), with an error of up to 1.5e-7·|x|: Abramowitz and Stegun, formula 7.1.26, for erf."""
    size = np.abs(x.astype(np.float64)) / np.sqrt(2.0)
    t = 1.0 / (1.0 + 0.3275911 * size)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    erf = np.copysign(1.0 - series * np.exp(-size * size), x)
    made: np.ndarray = (0.5 * x * (1.0 + erf)).astype(np.float32)
    return made


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return (1.0 / (1.0 + np.exp(-np.clip(x.astype(np.float64), -700, 700)))).astype(np.float32)


ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, np.float32(0)),
    "tanh": np.tanh,
    "gelu": _gelu,
    "sigmoid": _sigmoid,
    "silu": lambda x: x * _sigmoid(x),
}
"""The activations of heads and of scores, by name."""


class HeadWeights:
    """The head of a model, laid out for the compiled library.

    Attributes:
        outputs: the number of scores.
    """

    def __init__(self, text: PackedText) -> None:
        """Reads the weights of a head.

        Raises:
            FormatError: a tensor is missing, or has another shape.
            UnavailableError: the head is not known here.
        """
        kind = text.config.get("model_type")
        if kind not in _HEADS:
            raise UnavailableError(
                f"{text.folder} has the head of {shown(kind)}, which is not known here", hint=IN_TORCH
            )
        head = _HEADS[str(kind)](text.config)
        if head.pooling not in ("cls", "mean", "last", "late"):
            raise UnavailableError(f"{text.folder} pools for its head by {named(head.pooling)}", hint=IN_TORCH)
        if head.pooling == "cls" and text.tokenizer.pads_left:
            raise UnavailableError(f"{text.folder} pads on the left, and its head reads the first token", hint=IN_TORCH)
        self._pooling, self._padding = head.pooling, text.config.get("pad_token_id")
        pads = text.tokenizer.padding
        if head.pooling == "last" and not text.tokenizer.pads_left and self._padding not in (None, pads):
            what = f"pads with the token {pads}, and its head takes {shown(self._padding)} for padding"
            raise UnavailableError(f"{text.folder} {what}", hint=IN_TORCH)
        width = text.blocks.width
        self._layers: list[tuple[DenseWeights, Callable[[np.ndarray], np.ndarray], NormWeights | None]] = []
        for name, activation, norm in head.layers:
            if activation not in ACTIVATIONS:
                raise UnavailableError(f"{text.folder} has {named(activation)} in its head", hint=IN_TORCH)
            layer = _linear(text.file, name, width)
            width = layer.linear.outputs
            self._layers.append((layer, ACTIVATIONS[activation], _norm(text, norm, width) if norm else None))
        self._last = _linear(text.file, head.last, width)
        self.outputs: int = self._last.linear.outputs

    def __call__(self, lib: Library, hidden: np.ndarray, starts: np.ndarray, tokens: Sequence[Tokens]) -> np.ndarray:
        """Computes logits, float32 `[texts, labels]`, of the last hidden states `[tokens, width]` of texts."""
        if self._pooling == "late":
            return lib.pool(self._through(lib, hidden), starts, ("mean",))
        if self._pooling == "last":
            x = np.zeros((len(tokens), hidden.shape[1]), dtype=np.float32)  # what a text without tokens is read as
            for i, text in enumerate(tokens):
                if text.ids:
                    x[i] = hidden[starts[i] + self._place(text.ids)]
            return self._through(lib, x)
        return self._through(lib, lib.pool(hidden, starts, (self._pooling,)))

    def _through(self, lib: Library, x: np.ndarray) -> np.ndarray:
        for linear, activation, norm in self._layers:
            x = np.ascontiguousarray(activation(lib.dense(linear, x)))
            if norm is not None:
                lib.norm(norm, x)
        return lib.dense(self._last, x)

    def _place(self, ids: Sequence[int]) -> int:
        """Returns the place of the last token that is not the one that pads, as transformers finds it."""
        if self._padding is None:
            return len(ids) - 1
        return next((i for i in reversed(range(len(ids))) if ids[i] != self._padding), 0)


def _linear(file: PackedFile, name: str, width: int) -> DenseWeights:
    weights = file.floats(f"{name}.weight", -1, width)
    bias = f"{name}.bias"
    return DenseWeights(weights, file.floats(bias, len(weights)) if file.has(bias) else None)


def _norm(text: PackedText, name: str, width: int) -> NormWeights:
    bias = f"{name}.bias"
    shift = text.file.floats(bias, width) if text.file.has(bias) else np.zeros(width, dtype=np.float32)
    eps = text.config.get("norm_eps", 1e-5)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise CheckpointError(f"{text.folder / 'config.json'}: norm_eps is {shown(eps)}", hint="fetch the files again")
    return NormWeights("layer", text.file.floats(f"{name}.weight", width), shift, eps)
