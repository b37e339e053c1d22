"""Makes packed layers and fused encoders operators of torch, for `torch.compile` and `torch.export`.

What a backend prepares (repacked weights, handles of a compiled library) is no tensor that a graph could hold. So a
graph names a layer by a number, and the operator looks the layer up when it runs. A graph can run only in the process
that has the model, while the model lives.

    torch.ops.ternarize.linear          one packed linear
    torch.ops.ternarize.encode          a whole fused encoder: embeddings, blocks, and the last norm
"""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.errors import UnavailableError

__all__ = ["encode", "linear", "number_of"]

_NUMBERS = itertools.count()
_RUNS: dict[int, "weakref.WeakMethod[Callable[..., Tensor]]"] = {}


def number_of(run: Callable[..., Tensor]) -> int:
    """Returns a new number for a method that computes an operator's output; it is kept as long as its object lives.

    Args:
        run: a bound method that takes the operator's tensors.
    """
    number = next(_NUMBERS)
    _RUNS[number] = weakref.WeakMethod(run, lambda _: _RUNS.pop(number, None))
    return number


def _run(number: int) -> Callable[..., Tensor]:
    found = _RUNS.get(number)
    run = found() if found is not None else None
    if run is None:
        raise UnavailableError(
            "this graph was made of a packed model that is no longer loaded",
            hint="keep the model as long as its graph, and compile or export it again in each process",
        )
    return run


@torch.library.custom_op("ternarize::linear", mutates_args=())
def linear(x: Tensor, number: int, out_features: int) -> Tensor:
    """Runs a packed linear: `[..., in]` to `[..., out_features]` in the dtype of `x`."""
    return _run(number)(x)


@linear.register_fake
def _(x: Tensor, number: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


@torch.library.custom_op("ternarize::encode", mutates_args=())
def encode(inputs: list[Tensor], names: str, number: int, tokens: int, width: int) -> Tensor:
    """Runs a fused encoder.

    Args:
        inputs: the tensors that the model's `forward` takes.
        names: their names, separated by spaces.
        number: the number of the encoder.
        tokens: the number of tokens of an output; 0 if it is that of the first input, `[batch, tokens]`.
        width: the width of the model.

    Returns:
        The last hidden states, float32 `[batch, tokens, width]`.
    """
    return _run(number)(**dict(zip(names.split(), inputs, strict=True)))


@encode.register_fake
def _(inputs: list[Tensor], names: str, number: int, tokens: int, width: int) -> Tensor:
    first: Any = inputs[0]
    made: Tensor = first.new_empty((first.shape[0], tokens or first.shape[1], width), dtype=torch.float32)
    return made
