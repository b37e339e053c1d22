"""Computes what image encoders give as `pooler_output`: one vector of the tokens of an image.

Poolers map the last hidden states, float32 `[images, tokens, width]`, to float32 `[images, width]`. The vector of an
image does not depend on the images beside it. Models in PyTorch pool here, too (`kernels.pooled_output`).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ternarize_cli.errors import CheckpointError
from ternarize_cli.runtime.image_tensors import ImageTensors, Linear
from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights

__all__ = ["AttentionPooler", "FirstPooler", "MeanPooler", "Pooler", "TanhPooler"]

Pooler = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class FirstPooler:
    """Takes the first token (DINOv2, DINOv3), and norms it if there is a norm (CLIP)."""

    library: Library
    norm: NormWeights | None = None

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        """Pools `[images, tokens, width]` to `[images, width]`."""
        made = np.array(hidden[:, 0], order="C")
        if self.norm is not None:
            self.library.norm(self.norm, made)
        return made


@dataclass(frozen=True)
class MeanPooler:
    """Norms the mean of all tokens but the first (BEiT)."""

    library: Library
    norm: NormWeights

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        """Pools `[images, tokens, width]` to `[images, width]`."""
        images, tokens, width = hidden.shape
        starts = np.arange(images + 1, dtype=np.int32) * np.int32(tokens)
        rows = np.ascontiguousarray(hidden).reshape(images * tokens, width)
        made = self.library.pool(rows, starts, ("mean",), skipped=1)
        self.library.norm(self.norm, made)
        return made


@dataclass(frozen=True)
class TanhPooler:
    """Computes tanh of a linear of the first token (BERT, ViT)."""

    dense: Linear

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        """Pools `[images, tokens, width]` to `[images, width]`."""
        made: np.ndarray = np.tanh(self.dense(np.ascontiguousarray(hidden[:, 0])))
        return made


class AttentionPooler:
    """Lets a learned query attend to all patches, and a feed-forward follow (SigLIP).

    The only query is a parameter. So keys and values need not be made for each patch: the query goes through the
    weights of the keys first, and the weighted mean of the patches through those of the values. A bias of the keys adds
    the same to all scores of a head, and softmax takes it off again.
    """

    def __init__(self, tensors: ImageTensors, name: str, width: int, heads: int, activation: str) -> None:
        """Lays the weights out.

        Args:
            tensors: the model's tensors.
            name: the module.
            width: the width of the hidden states.
            heads: number of heads, which divides the width.
            activation: the activation of the feed-forward, one of `format.block.ACTIVATIONS`.

        Raises:
            CheckpointError: a tensor is missing, or has another shape.
        """
        if width % heads:
            raise CheckpointError(f"{name}: {heads} heads don't divide {width}", hint="fetch or pack the model again")
        self._library = library = tensors.library
        weights = tensors.floats(f"{name}.attention.in_proj_weight", 3 * width, width)
        bias = tensors.floats(f"{name}.attention.in_proj_bias", 3 * width)
        probe = tensors.floats(f"{name}.probe", 1, 1, width)
        head = width // heads
        query = library.dense(DenseWeights(weights[:width], bias[:width]), probe[0]).reshape(heads, 1, head)
        query *= np.float32(head**-0.5)
        keys, values = (part.reshape(heads, head, width) for part in (weights[width : 2 * width], weights[2 * width :]))
        seeking = [library.dense(DenseWeights(key.T, None), one) for key, one in zip(keys, query, strict=True)]
        self._seeking = DenseWeights(np.concatenate(seeking), None)
        value_bias = bias[2 * width :].reshape(heads, head)
        self._values = [DenseWeights(value, own) for value, own in zip(values, value_bias, strict=True)]
        self._output = tensors.linear(f"{name}.attention.out_proj", width)
        self._norm = tensors.norm(f"{name}.layernorm", width)
        self._up = tensors.linear(f"{name}.mlp.fc1", width)
        inner = len(tensors.floats(f"{name}.mlp.fc1.bias"))
        self._down = tensors.linear(f"{name}.mlp.fc2", inner)
        self._activation = _ACTIVATIONS[activation]

    def __call__(self, hidden: np.ndarray) -> np.ndarray:
        """Pools `[images, patches, width]` to `[images, width]`."""
        images, patches, width = hidden.shape
        scores = self._library.dense(self._seeking, np.ascontiguousarray(hidden).reshape(images * patches, width))
        means = np.empty((len(self._values), images, width), dtype=np.float32)
        mean = DenseWeights(np.zeros((width, patches), dtype=np.float32), None)
        for i, of_patches in enumerate(scores.reshape(images, patches, -1)):
            weights = np.exp(of_patches - of_patches.max(axis=0))
            weights /= weights.sum(axis=0)
            _replace(mean, hidden[i])
            means[:, i] = self._library.dense(mean, weights.T)
        pooled = [self._library.dense(value, of_head) for value, of_head in zip(self._values, means, strict=True)]
        state = self._output(np.concatenate(pooled, axis=1))
        normed = state.copy()
        self._library.norm(self._norm, normed)
        made: np.ndarray = state + self._down(self._activation(self._up(normed)))
        return made


def _replace(linear: DenseWeights, weights: np.ndarray) -> None:
    """Writes other weights, float32 `[in, out]`, over those of a linear, whose memory is warm."""
    panel = linear.weights.shape[2]
    for i, to in enumerate(linear.weights):
        part = weights[:, i * panel : (i + 1) * panel]
        to[:, : part.shape[1]] = part


def _gelu(x: np.ndarray) -> np.ndarray:
    error = np.array([math.erf(value) for value in (x.ravel() * math.sqrt(0.5)).tolist()], dtype=np.float32)
    made: np.ndarray = np.float32(0.5) * x * (np.float32(1) + error.reshape(x.shape))
    return made


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
    made: np.ndarray = np.float32(0.5) * x * (np.float32(1) + np.tanh(inner))
    return made


def _times_sigmoid(x: np.ndarray, factor: float) -> np.ndarray:
    with np.errstate(over="ignore"):  # of a large negative number the sigmoid is 0
        made: np.ndarray = x / (np.float32(1) + np.exp(np.float32(-factor) * x))
    return made


_ACTIVATIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": lambda x: _times_sigmoid(x, 1.702),
    "silu": lambda x: _times_sigmoid(x, 1.0),
    "relu": lambda x: np.maximum(x, np.float32(0)),
}
"""The activations by their names in a description of blocks."""
