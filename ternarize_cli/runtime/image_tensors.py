"""Gives the parts of an image encoder beside its blocks, by the names of its modules.

Where they come from is left to an `ImageTensors`: the file of a packed model (`FileTensors`), or the modules of a model
in PyTorch (`kernels.module_tensors`). Both give equal numbers, so both give equal vectors.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights, PackedCodes
from ternarize_cli.runtime.packed_file import PackedFile

__all__ = ["FileTensors", "ImageTensors", "Linear"]

Linear = Callable[[np.ndarray], np.ndarray]
"""A linear: float32 `[rows, in]` to float32 `[rows, out]`. A row of the result depends on no other row."""


class ImageTensors(Protocol):
    """Gives tensors, norms and linears by names relative to the encoder.

    Attributes:
        library: the compiled library.
    """

    library: Library

    def has(self, name: str) -> bool:
        """Returns whether there is a tensor of a name."""

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of floats as float32; a -1 in `shape` stands for any number, and none given for any shape.

        Raises:
            CheckpointError: it is missing, or has another shape.
        """

    def table(self, name: str, width: int) -> np.ndarray:
        """Returns all rows of an embedding table, which may be packed: float32 `[rows, width]`.

        Raises:
            CheckpointError: it is missing, or has another width.
        """

    def norm(self, name: str, width: int) -> NormWeights:
        """Returns a layer norm.

        Raises:
            CheckpointError: it is missing, or has another width.
        """

    def linear(self, name: str, inputs: int) -> Linear:
        """Returns a linear, which may be packed.

        Raises:
            CheckpointError: it is missing, or has another number of inputs.
        """


class FileTensors:
    """Gives tensors from the file of a packed model.

    Attributes:
        library: the compiled library.
    """

    def __init__(self, library: Library, file: PackedFile, eps: float, prefix: str = "") -> None:
        """Keeps the file.

        Args:
            library: the compiled library.
            file: the packed file.
            eps: the epsilon of layer norms.
            prefix: what the names of the encoder's modules begin with in the model, such as "vision_model.".
        """
        self.library, self._file, self._eps, self._prefix = library, file, eps, prefix

    def has(self, name: str) -> bool:
        """Returns whether there is a tensor of a name."""
        return self._file.has(self._prefix + name)

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of floats as float32; `shape` is as `ImageTensors.floats` takes it.

        Raises:
            FormatError: as `PackedFile.floats`.
        """
        return self._file.floats(self._prefix + name, *shape)

    def table(self, name: str, width: int) -> np.ndarray:
        """Returns all rows of an embedding table: float32 `[rows, width]`.

        Raises:
            FormatError: as `PackedFile.table`.
        """
        table = self._file.table(self._prefix + name, width)
        return table.look_up(np.arange(len(table)))

    def norm(self, name: str, width: int) -> NormWeights:
        """Returns a layer norm.

        Raises:
            FormatError: it is missing, or has another width.
        """
        gain, shift = (self.floats(f"{name}.{part}", width) for part in ("weight", "bias"))
        return NormWeights("layer", gain, shift, self._eps)

    def linear(self, name: str, inputs: int) -> Linear:
        """Returns a linear, of codes or of floats.

        Raises:
            FormatError: as `PackedFile.linear`.
        """
        name = self._prefix + name
        if self._file.is_packed(name):
            stored = self._file.linear(name, inputs)
            codes = PackedCodes(self.library, stored.codec, stored.rows, inputs, stored.scale, stored.bias)
            return lambda x: self.library.linear(codes, x)
        weights = self._file.floats(f"{name}.weight", -1, inputs)
        bias = self._file.floats(f"{name}.bias", len(weights)) if self._file.has(f"{name}.bias") else None
        dense = DenseWeights(weights, bias)
        return lambda x: self.library.dense(dense, x)
