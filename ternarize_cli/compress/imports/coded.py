"""What files of other quantisers hold: matrices of integer codes with scales, by the names of their weights.

A weight is its code times its scale, as in our own format. A zero point is part of the code. Whatever a file says is
checked before it is used: dtypes and shapes here and in the readers, names and shapes against the model by
`checkpoint.check_tensors`, values when they are read.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ternarize_cli.errors import CheckpointError, named, shown
from ternarize_cli.layers import check_scale
from ternarize_cli.storage.weights import WeightShard

__all__ = ["FLOATS", "CodedMatrix", "CodedModel", "Tensors", "field_of", "refused"]

FLOATS = ("F16", "BF16", "F32", "F64")
_WIDEST = 1 << 24


@dataclass(frozen=True)
class CodedMatrix:
    """A matrix of codes.

    Attributes:
        shape: out and in.
        scales: the number of scales of a row; 0: one for the whole matrix.
        keys: the names of the tensors in the file that it takes up.
        read: reads codes, integers [out, in], and scales, float [1], [out, 1] or [out, groups].
    """

    shape: tuple[int, int]
    scales: int
    keys: tuple[str, ...]
    read: Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class CodedModel:
    """What a reader finds in the files of a model.

    Attributes:
        matrices: the matrices of codes by the names that their weights would have in the files.
        activation_bits: 8 if the model rounds activations to int8 per token, 16 if it leaves them as they are.
        rule: the rule of `Scheme` by which the codes were made, as far as it is known.
        beta: its threshold parameter.
    """

    matrices: Mapping[str, CodedMatrix]
    activation_bits: int
    rule: str = "optimal"
    beta: float | None = None


class Tensors:
    """The tensors of all weights files of a model, by name."""

    def __init__(self, shards: Sequence[WeightShard]) -> None:
        self._owner = {key: shard for shard in shards for key in shard.keys()}  # noqa: SIM118

    def keys(self) -> list[str]:
        """Lists the names of all tensors."""
        return list(self._owner)

    def __contains__(self, key: str) -> bool:
        return key in self._owner

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of a tensor."""
        return self._owner[key].shape(key)

    def dtype(self, key: str) -> str:
        """Returns the dtype of a tensor as safetensors names it."""
        return self._owner[key].dtype(key)

    def get(self, key: str) -> Tensor:
        """Reads a tensor."""
        return self._owner[key].get(key)

    def require(self, key: str, dtypes: Sequence[str], *shapes: tuple[int, ...]) -> None:
        """Checks by the headers that a tensor is there, in one of these dtypes and shapes.

        Raises:
            CheckpointError: it is missing, or of another dtype or shape.
        """
        if key not in self:
            raise CheckpointError(f"the tensor {named(key)} is missing", hint="fetch the whole model again")
        if self.dtype(key) not in dtypes or (shapes and self.shape(key) not in shapes):
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise CheckpointError(
                f"{named(key)} is {self.dtype(key)} {list(self.shape(key))}, and must be "
                f"{' or '.join(dtypes)} {wanted}".rstrip(),
                hint="config.json may be that of another model: fetch the whole model again",
            )

    def scale(self, key: str) -> Tensor:
        """Reads scales as float32.

        Raises:
            CheckpointError: a scale is not finite, or negative.
        """
        scale = self.get(key).float()
        check_scale(scale, key)
        return scale

    def matrix_shape(self, key: str) -> tuple[int, int]:
        """Reads the shape of a matrix from a tensor that holds it.

        Raises:
            CheckpointError: the tensor is no shape of a matrix.
        """
        self.require(key, ("I64", "I32"), (2,))
        rows, columns = (int(size) for size in self.get(key))
        if not (0 < rows < _WIDEST and 0 < columns < _WIDEST):
            raise CheckpointError(f"{named(key)} is {[rows, columns]}, no shape of a matrix", hint="fetch it again")
        return rows, columns


def field_of(values: Any, key: str, known: Sequence[Any], where: str) -> Any:
    """Reads a field of a description of others.

    Args:
        values: the description, which should be an object of JSON.
        key: the field's name.
        known: the values that ternarize can take over; the first stands for a field that is missing.
        where: the name of the description in messages.

    Raises:
        CheckpointError: the description is no object, or the field has another value.
    """
    if not isinstance(values, dict):
        raise CheckpointError(f"config.json: {where} is {shown(values)}, and must be an object", hint="fetch it again")
    value = values.get(key, known[0])
    if not any(value == one and type(value) is type(one) for one in known):
        raise refused(f"{where} has {named(key)} {shown(value)}", f"{', '.join(map(repr, known))} can be held")
    return value


def refused(what: str, why: str) -> CheckpointError:
    """Makes the error for a model that a packed model can't hold."""
    return CheckpointError(f"{what}: {why}", hint="convert its full-precision source instead: ternarize convert SOURCE")
