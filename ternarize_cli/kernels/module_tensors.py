"""Gives parts of a model in PyTorch to the functions of the runtime, by the names of its modules."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ternarize_cli.errors import CheckpointError
from ternarize_cli.layers import PackedLinear
from ternarize_cli.runtime.image_tensors import Linear
from ternarize_cli.runtime.native.library import library
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights

__all__ = ["ModuleTensors", "is_replaced", "states"]


def states(tensors: Iterable[Tensor | None]) -> list[tuple[int, int] | None]:
    """Returns what tells that tensors have changed: the address and the number of changes in place of each.

    A tensor that was made in inference mode does not count its changes; it has its address alone.
    """
    return [None if t is None else (t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors]


class ModuleTensors:
    """Gives tensors, norms and linears of a model on the CPU, as `runtime.image_tensors.ImageTensors` asks for them.

    Attributes:
        library: the compiled library.
    """

    def __init__(self, model: nn.Module) -> None:
        """Keeps the model.

        Raises:
            UnavailableError: the compiled library is missing.
        """
        self.library, self._model = library(), model

    def has(self, name: str) -> bool:
        """Returns whether the model has a parameter or buffer of a name."""
        return self._found(name) is not None

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a parameter or buffer as float32; `shape` is as `ImageTensors.floats` takes it.

        Raises:
            CheckpointError: it is missing, or has another shape.
        """
        tensor = self._found(name)
        if tensor is None:
            raise CheckpointError(f"{type(self._model).__name__} has no {name}")
        made: np.ndarray = tensor.detach().float().contiguous().numpy()
        fits = made.ndim == len(shape) and all(w in (-1, n) for w, n in zip(shape, made.shape, strict=True))
        if shape and not fits:
            raise CheckpointError(f"{name} is {list(made.shape)}, and should be {list(shape)}")
        return made

    def table(self, name: str, width: int) -> np.ndarray:
        """Returns all rows of an embedding table, as its module looks them up: float32 `[rows, width]`.

        Raises:
            CheckpointError: it has another width.
        """
        table: Any = self._model.get_submodule(name)
        made: np.ndarray = table(torch.arange(table.num_embeddings, device="cpu")).detach().float().numpy()
        if made.shape[1:] != (width,):
            raise CheckpointError(f"{name} is {list(made.shape)}, and should be {width} wide")
        return made

    def norm(self, name: str, width: int) -> NormWeights:
        """Returns a layer norm.

        Raises:
            CheckpointError: it has another width.
        """
        module: Any = self._model.get_submodule(name)
        gain, shift = (self.floats(f"{name}.{part}", width) for part in ("weight", "bias"))
        return NormWeights("layer", gain, shift, module.eps)

    def linear(self, name: str, inputs: int) -> Linear:
        """Returns a linear; a packed one runs on the backend that was chosen for it.

        Raises:
            CheckpointError: it has another number of inputs.
        """
        module: Any = self._model.get_submodule(name)
        if isinstance(module, PackedLinear):
            return lambda x: module(torch.from_numpy(x)).numpy()
        weights = self.floats(f"{name}.weight", -1, inputs)
        bias = self.floats(f"{name}.bias", len(weights)) if self.has(f"{name}.bias") else None
        dense = DenseWeights(weights, bias)
        return lambda x: self.library.dense(dense, x)

    def _found(self, name: str) -> torch.Tensor | None:
        where, _, own = name.rpartition(".")
        try:
            found = getattr(self._model.get_submodule(where), own, None)
        except AttributeError:
            return None
        return found if isinstance(found, torch.Tensor) else None


def is_replaced(module: nn.Module) -> bool:
    """Returns whether the `forward` of a module, or of one inside it, is another than its class has."""
    return any("forward" in m.__dict__ for m in module.modules())
