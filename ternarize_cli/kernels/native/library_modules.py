"""Lets sentence-transformers' modules pool and normalise in the compiled library what a fused encoder computed there.

The runtime without PyTorch uses the same functions, so both give equal vectors, bit for bit. A tensor that the library
made is marked; the modules behind the encoder pass the mark on. Everything else, such as a model on a GPU, a model in
training or one that is not ours, goes through the modules' own `forward`.

    NativeForward ──marked──▶ Pooling ──marked──▶ Dense, LayerNorm ──marked──▶ Normalize
"""

import sys
from threading import Lock
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ternarize_cli.kernels.module_tensors import states
from ternarize_cli.layers import PackedLinear
from ternarize_cli.runtime.native.interface import POOLINGS
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights

__all__ = ["is_marked", "mark", "normalized"]

_MARK = "_ternarize_native"
_EXTENDING = Lock()

_laid_out: "WeakKeyDictionary[nn.Module, tuple[object, DenseWeights | NormWeights]]" = WeakKeyDictionary()


def mark(tensor: Tensor) -> Tensor:
    """Marks a tensor as made by the compiled library, and returns it.

    sentence-transformers' modules are extended here: a process that got its model as a pickle has loaded none.
    """
    if "sentence_transformers" in sys.modules:
        _extend_all()
    setattr(tensor, _MARK, True)
    return tensor


def is_marked(tensor: object) -> TypeGuard[Tensor]:
    """Returns whether a tensor is marked as made by the compiled library."""
    return isinstance(tensor, Tensor) and getattr(tensor, _MARK, False) is True


def _extend_all() -> None:
    """Extends `forward` of Pooling, Dense, LayerNorm and Normalize; once in a process."""
    from sentence_transformers.base.modules import Dense, Normalize
    from sentence_transformers.sentence_transformer.modules import LayerNorm, Pooling

    for module, made in ((Pooling, _pooled), (Dense, _dense), (LayerNorm, _normed), (Normalize, _normalized)):
        if not getattr(module, "_asks_ternarize", False):
            with _EXTENDING:
                _extend(module, made)


def _extend(module: Any, made: Any) -> None:
    if getattr(module, "_asks_ternarize", False):  # another thread was first
        return
    own = module.forward

    def forward(self: Any, features: dict[str, Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        vectors = None if self.training or torch.compiler.is_compiling() else made(self, features)
        if vectors is None:
            found: dict[str, Any] = own(self, features, *arguments, **options)
            return found
        features["sentence_embedding"] = mark(torch.from_numpy(vectors))
        return features

    module.forward = forward
    module._asks_ternarize = True


def _pooled(module: Any, features: dict[str, Any]) -> np.ndarray | None:
    hidden, mask = features.get("token_embeddings"), features.get("attention_mask")
    modes = (module.pooling_mode,) if isinstance(module.pooling_mode, str) else tuple(module.pooling_mode)
    unusual = {"cls_token_embeddings", "token_weights_sum", "cu_seq_lens_q"} & features.keys()
    if unusual or not is_marked(hidden) or not all(mode in POOLINGS for mode in modes):
        return None
    skipped = 0 if module.include_prompt else int(torch.as_tensor(features.get("prompt_length") or 0).flatten()[0])
    batch, tokens, width = hidden.shape
    if not isinstance(mask, Tensor) or mask.shape != (batch, tokens) or bool(mask.all()):
        rows, lengths = hidden.reshape(-1, width), torch.full((batch,), tokens)
    else:
        real = mask.bool()
        rows, lengths = hidden[real], real.sum(dim=1)
    starts = np.zeros(batch + 1, dtype=np.int32)
    np.cumsum(lengths.numpy(), out=starts[1:])
    return library().pool(rows.contiguous().numpy(), starts, modes, skipped)


def _dense(module: Any, features: dict[str, Any]) -> np.ndarray | None:
    x, linear = features.get("sentence_embedding"), module.linear
    names = (getattr(module, "module_input_name", None), getattr(module, "module_output_name", None))
    if not is_marked(x) or any(name not in (None, "sentence_embedding") for name in names):
        return None
    if not isinstance(module.activation_function, nn.Identity | nn.Tanh) or getattr(module, "use_residual", False):
        return None
    if isinstance(linear, PackedLinear):
        y = linear(x).numpy()
    elif type(linear) is nn.Linear and linear.weight.dtype == torch.float32:
        weights: Any = _of(linear, lambda weight, bias: DenseWeights(weight, bias))
        y = library().dense(weights, x.contiguous().numpy())
    else:
        return None
    made: np.ndarray = np.tanh(y) if isinstance(module.activation_function, nn.Tanh) else y
    return made


def _normed(module: Any, features: dict[str, Any]) -> np.ndarray | None:
    x, norm = features.get("sentence_embedding"), module.norm
    if not is_marked(x) or norm.weight.dtype != torch.float32:
        return None
    weights: Any = _of(norm, lambda gain, bias: NormWeights("layer", gain, bias, norm.eps))
    y: np.ndarray = x.clone().contiguous().numpy()
    library().norm(weights, y)
    return y


def _normalized(module: Any, features: dict[str, Any]) -> np.ndarray | None:
    x = features.get("sentence_embedding")
    names = (getattr(module, "module_input_name", None), getattr(module, "module_output_name", None))
    if not is_marked(x) or any(name not in (None, "sentence_embedding") for name in names):
        return None
    made: np.ndarray = normalized(x).numpy()
    return made


def normalized(x: Tensor) -> Tensor:
    """Scales the rows of a marked tensor, float32 `[rows, width]`, to length 1 in the library; the result is marked."""
    y = x.detach().clone(memory_format=torch.contiguous_format)
    library().normalize(y.numpy())
    return mark(y)


def _of(module: Any, lay_out: Any) -> Any:
    """Returns the weights of a module in the library's layout, which are laid out again when they have changed."""
    tensors = (module.weight, module.bias)
    state = states(tensors)
    known = _laid_out.get(module)
    if known is None or known[0] != state:
        arrays = [None if t is None else t.detach().numpy() for t in tensors]
        known = _laid_out[module] = (state, lay_out(*arrays))
    return known[1]
