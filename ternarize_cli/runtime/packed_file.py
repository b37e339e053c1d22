"""Reads the weights of a packed model from its file, by the names in the description of its blocks.

A file keeps the names of the model that it was made from, so all of them may begin with the name of the encoder inside
a larger model, such as `bert.`; norms of old checkpoints are called `gamma` and `beta`. Where transformers renames more
than that, the artifact's description has the names (`Artifact.names`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ternarize_cli.errors import FormatError, UnavailableError, named
from ternarize_cli.format.block import Block
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.runtime.blocks import StoredLinear
from ternarize_cli.runtime.native.interface import BITS
from ternarize_cli.runtime.tensor_file import TensorFile

__all__ = ["IN_TORCH", "FileSource", "PackedFile", "Table", "TensorNames", "packed_artifact"]

IN_TORCH = "run it in PyTorch: ternarize.load(MODEL), or SentenceTransformer(MODEL)"
"""What to do with a packed model that is valid, and that this runtime can't run."""

_FLOATS = ("F32", "F16", "BF16")
_OLD = {"weight": "gamma", "bias": "beta"}
_NIBBLE_GROUP = 32
_AGAIN = "pack the model again with this version of ternarize"


def packed_artifact(described: Any, where: str) -> Artifact:
    """Reads the `quantization_config` of a packed model that runs here.

    Raises:
        FormatError: the description breaks the format, or is not of a packed model.
        UnavailableError: the linears are neither ternary nor int4, or don't have int8 activations and a scale a row.
    """
    if not isinstance(described, dict):
        raise FormatError(f"{where} is no packed model", hint="ternarize convert, then ternarize pack")
    artifact = Artifact.from_dict(described)
    scheme = artifact.scheme
    if artifact.stage != "packed":
        raise FormatError(f"{where} is not packed", hint="ternarize pack")
    if scheme.levels not in BITS or scheme.granularity == "group" or scheme.activation_bits != 8:
        what = f"{scheme.levels} codes, scales by {scheme.granularity}, activations of {scheme.activation_bits} bits"
        raise UnavailableError(f"{where} has {what}; {' or '.join(BITS)}, by row and 8 bits run here", hint=IN_TORCH)
    return artifact


class TensorNames:
    """Finds the tensors of a model among those of a file.

    A tensor has the name that the description of an artifact gives it (`Artifact.names`); or its own name, or with
    `gamma` for `weight` and `beta` for `bias`; or one of these with a prefix, if a single name in the file ends so.
    """

    def __init__(self, keys: Iterable[str], where: str, names: Mapping[str, str] | None = None) -> None:
        """Keeps the names.

        Args:
            keys: the names of the tensors in the file.
            where: the name of the file in messages.
            names: the name in the file for each tensor of the model that has quite another name there. Those that the
                file does not have count for nothing: transformers may have saved it again, with other names.
        """
        self._keys, self._where = frozenset(keys), where
        self._names = {name: key for name, key in (names or {}).items() if key in self._keys}
        self._ending: dict[str, list[str]] = {}
        for key in sorted(self._keys):
            end = key.find(".")
            while end >= 0:
                self._ending.setdefault(key[end + 1 :], []).append(key)
                end = key.find(".", end + 1)

    def find(self, name: str) -> str | None:
        """Returns the name in the file of a tensor of the model; None if the file does not have it.

        Raises:
            FormatError: the file has several tensors whose names end in this one.
        """
        if name in self._names:
            return self._names[name]
        stem, _, last = name.rpartition(".")
        spellings = [name, f"{stem}.{_OLD[last]}"] if last in _OLD else [name]
        own = [spelling for spelling in spellings if spelling in self._keys]
        found = own[:1] or [key for spelling in spellings for key in self._ending.get(spelling, ())]
        if len(found) > 1:
            raise FormatError(f"{self._where} has several tensors {named(name)}", hint=_AGAIN)
        return found[0] if found else None


class PackedFile:
    """A packed model's weights by the names of the model's modules.

    Attributes:
        file: the mapped file.
    """

    def __init__(self, file: TensorFile, artifact: Artifact) -> None:
        """Keeps the file.

        Args:
            file: the mapped file.
            artifact: the description of the weights in it.

        Raises:
            FormatError: the description gives levels to a module that has no packed weights in the file.
        """
        self.file, self._artifact = file, artifact
        self._names = TensorNames(file.names, str(file.path), artifact.names)
        for name in artifact.module_levels:
            if not self.is_packed(name):
                raise FormatError(f"{file.path}: module_levels names {named(name)}, which is not packed", hint=_AGAIN)

    def find(self, name: str) -> str:
        """Returns the name in the file of a tensor of the model.

        Raises:
            FormatError: the file has no such tensor, or several whose names end in this one.
        """
        found = self._found(name)
        if found is None:
            raise FormatError(f"{self.file.path} has no tensor {named(name)}", hint=_AGAIN)
        return found

    def has(self, name: str) -> bool:
        """Returns whether the file has a tensor of the model."""
        return self._found(name) is not None

    def linear(self, name: str, inputs: int) -> StoredLinear:
        """Returns a packed linear, whose codes and scales are checked.

        Raises:
            FormatError: a tensor is missing, has another shape, or an invalid code; a scale is negative or not finite.
        """
        codec = codec_for(self._artifact.scheme_of(name).levels, self._artifact.codec_of(name))
        rows = self.file.get(self.find(f"{name}.weight"), -1, codec.width(inputs), dtype="U8")
        try:
            codec.check(rows, inputs)
        except ValueError as e:
            raise FormatError(f"{self.file.path}: {name}.weight: {e}", hint="fetch or make the model again") from e
        outputs = len(rows)
        scale = self.file.floats(self.find(f"{name}.weight_scale")).reshape(-1)
        if scale.shape not in ((1,), (outputs,)) or (scale < 0).any():
            raise FormatError(f"{self.file.path}: {name}.weight_scale is no scale of its rows", hint="pack it again")
        bias = f"{name}.bias"
        return StoredLinear(
            *(codec, rows, inputs, np.broadcast_to(scale, (outputs,))),
            self.floats(bias, outputs) if self.has(bias) else None,
        )

    def is_packed(self, name: str) -> bool:
        """Returns whether a linear of the model is packed, and not one of floats."""
        return self._found(f"{name}.weight_scale") is not None

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of floats as float32; `shape` is as `TensorFile.get` takes it.

        Raises:
            FormatError: it is missing, or has another shape or dtype, or a value is not finite.
        """
        return self.file.floats(self.find(name), *shape)

    def table(self, name: str, width: int) -> "Table":
        """Returns an embedding table.

        Raises:
            FormatError: it is missing, or has another shape or dtype, a scale is negative or not finite, or
                `module_levels` takes it for a linear.
        """
        if name in self._artifact.module_levels:
            raise FormatError(f"{self.file.path}: module_levels names {named(name)}, which is a table", hint=_AGAIN)
        where = self.find(f"{name}.weight")
        if not self.is_packed(name):
            return Table(self.file.get(where, -1, width, dtype=_FLOATS), None)
        shape, scale = self.file.shape(where), self.file.floats(self.find(f"{name}.weight_scale"))
        if (scale < 0).any():
            raise FormatError(f"{self.file.path}: {name}.weight_scale: a scale is negative", hint="pack it again")
        if len(shape) == 2 and shape[1] == width and scale.shape == (shape[0], 1):
            return Table(self.file.get(where, dtype="I8"), scale.reshape(-1))
        nibbles = codec_for("int4")
        codes = self.file.get(where, -1, nibbles.width(width), dtype="U8")
        if scale.shape != (len(codes), -(-width // _NIBBLE_GROUP)):
            raise FormatError(f"{self.file.path}: {name} is no table {width} wide", hint="pack the model again")
        return Table(codes, scale, width)

    def _found(self, name: str) -> str | None:
        return self._names.find(name)


class Table:
    """An embedding table: int8 with a scale a row, 4 bits with a scale for 32 values, or floats.

    Attributes:
        rows: the table as the file has it.
        scale: float32, the scales; None for a table of floats.
    """

    def __init__(self, rows: np.ndarray, scale: np.ndarray | None, nibbles: int | None = None) -> None:
        self.rows, self.scale, self._nibbles = rows, scale, nibbles

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.rows)

    @property
    def is_int8(self) -> bool:
        """Whether the library can look rows up: int8 with a scale a row."""
        return self.scale is not None and self.scale.ndim == 1

    def look_up(self, ids: np.ndarray) -> np.ndarray:
        """Returns rows as float32 `[ids, width]`, as the model's own table gives them."""
        found: np.ndarray = self.rows[ids]
        if self.scale is None:
            return found.astype(np.float32)
        values: np.ndarray
        if self.is_int8:
            values = found.astype(np.float32) * self.scale[ids][:, None]
            return values
        assert self._nibbles is not None
        values = codec_for("int4").table[found].reshape(len(ids), -1)[:, : self._nibbles].astype(np.float32)
        values *= np.repeat(self.scale[ids], _NIBBLE_GROUP, axis=1)[:, : self._nibbles]
        return values


class FileSource:
    """Gives the weights of a stack of blocks from a packed file, as `blocks.BlockSource` asks for them.

    Attributes:
        block: the description of the blocks.
    """

    def __init__(self, file: PackedFile, block: Block, prefix: str = "") -> None:
        """Keeps the file.

        Args:
            file: the packed file.
            block: the description of the blocks.
            prefix: what the names of the stack's modules begin with in the model, such as "text_model.".
        """
        self.block, self._file, self._prefix = block, file, prefix

    def linear(self, i: int, name: str, inputs: int) -> StoredLinear:
        """Returns a linear of block `i`, which has so many inputs.

        Raises:
            FormatError: as `PackedFile.linear`.
        """
        return self._file.linear(self._in_block(i, name), inputs)

    def norm(self, i: int | None, place: str, width: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns gain and shift, float32 `[width]` each, of a norm of block `i`, or of the model if `i` is None.

        None: there is no norm at that place.

        Raises:
            FormatError: a tensor is missing, or has another shape.
        """
        norms = self.block.norms if i is None else self.block.norms_of(i)
        if place not in norms:
            return None
        norm = norms[place]
        name = f"{self._prefix}{norm.name}" if i is None else self._in_block(i, norm.name)
        gain = self._file.floats(f"{name}.weight", width) + np.float32(norm.offset)
        shift = f"{name}.bias"
        return gain, self._file.floats(shift, width) if self._file.has(shift) else np.zeros(width, dtype=np.float32)

    def layer_scales(self, i: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns the factors, float32 `[width]`, of the outputs of attention and feed-forward; None for no factor."""
        if not self.block.layer_scales:
            return None, None
        found = (self._file.floats(self._in_block(i, name), self.block.width) for name in self.block.layer_scales)
        return next(found), next(found)

    def relative_table(self) -> np.ndarray | None:
        """Returns the table of relative positions, float32 `[buckets, heads]`; None if the blocks have none."""
        given = self.block.relative
        if given is None:
            return None
        table = self._file.table(f"{self._prefix}{given.name}", self.block.heads)
        return table.look_up(np.arange(min(len(table), given.buckets)))

    def _in_block(self, i: int, name: str) -> str:
        return f"{self._prefix}{self.block.layers}.{i}.{name}"
