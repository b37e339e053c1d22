"""Reads tensors of a safetensors file, which stays mapped: a tensor is a view of the file.

The file starts with the length of a header, 8 bytes little-endian, and the header, a JSON object from the name of each
tensor to its dtype, its shape, and the places of its first byte and of the byte behind its last, counted from the end
of the header. The header is checked before any tensor is made of it. NumPy alone reads the file, since an exported
model has to run where NumPy and tokenizers are installed, and nothing else.
"""

import math
import mmap
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ternarize_cli.errors import FormatError, named, shown
from ternarize_cli.storage.bounds import parse_json, read_object, require_regular

__all__ = ["TensorFile", "TensorShards", "open_tensors"]

_DTYPES = {"U8": np.uint8, "I8": np.int8, "F16": np.float16, "F32": np.float32, "I64": np.int64, "BF16": np.uint16}
_LONGEST_HEADER = 100 << 20
_AGAIN = "fetch the file again"
_SHARD = re.compile(r"[\w.-]+\.safetensors")


class TensorFile:
    """A safetensors file that is mapped into memory.

    Attributes:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        """Maps a file, and checks its header.

        Raises:
            FormatError: it is no regular file, can't be read, or its header is damaged.
        """
        self.path = path
        size = require_regular(path, FormatError).st_size
        try:
            with path.open("rb") as stream:
                begin = stream.read(8)
                length = int.from_bytes(begin, "little")
                if len(begin) < 8 or length > min(size - 8, _LONGEST_HEADER):
                    raise FormatError(f"{path} is no safetensors file", hint=_AGAIN)
                header = stream.read(length)
                self._bytes = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), dtype=np.uint8)
        except OSError as e:
            raise FormatError(f"{path} can't be read: {e.strerror}", hint=_AGAIN) from e
        values = parse_json(header, str(path), error=FormatError)
        if not isinstance(values, dict):
            raise FormatError(f"{path} is no safetensors file", hint=_AGAIN)
        values.pop("__metadata__", None)
        self._start = 8 + length
        self._places = {name: self._place(name, value, size - self._start) for name, value in values.items()}

    def __contains__(self, name: str) -> bool:
        """Returns whether the file has a tensor of a name."""
        return name in self._places

    @property
    def names(self) -> list[str]:
        """The names of the tensors, in the order of the header."""
        return list(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor.

        Raises:
            FormatError: there is no such tensor.
        """
        return self._found(name)[1]

    def get(self, name: str, *shape: int, dtype: str | tuple[str, ...] = ()) -> np.ndarray:
        """Returns a tensor: a view that can't be written to, or a copy if the tensor is bfloat16 or is not aligned.

        Args:
            name: the name of the tensor.
            shape: the shape that it must have; a -1 stands for any number. None given: any shape.
            dtype: the dtypes that it may have, by the names of safetensors, such as "F32"; none given: any.

        Returns:
            An array of the dtype in the file; float32 for bfloat16.

        Raises:
            FormatError: there is no such tensor, or it has another shape or dtype.
        """
        kind, found, begin, end = self._found(name)
        wanted = (dtype,) if isinstance(dtype, str) else dtype
        fits = len(found) == len(shape) and all(w in (-1, n) for w, n in zip(shape, found, strict=True))
        if (shape and not fits) or (wanted and kind not in wanted):
            raise FormatError(
                f"{self.path}: {named(name)} is {kind} {list(found)}"
                + (f", and should be {' or '.join(wanted) or kind} {list(shape) or ''}".rstrip()),
                hint="pack the model again",
            )
        raw = self._bytes[self._start + begin : self._start + end]
        if raw.ctypes.data % np.dtype(_DTYPES[kind]).itemsize:
            raw = raw.copy()
        made = raw.view(_DTYPES[kind]).reshape(found)
        return (made.astype(np.uint32) << 16).view(np.float32) if kind == "BF16" else made

    def floats(self, name: str, *shape: int) -> np.ndarray:
        """Returns a tensor of floats as a contiguous float32 array; `shape` is as `get` takes it.

        Raises:
            FormatError: there is no such tensor, it has another shape, is not of floats, or holds NaN or infinity.
        """
        made = self.get(name, *shape, dtype=("F32", "F16", "BF16")).astype(np.float32, order="C", copy=False)
        if not np.isfinite(made).all():
            raise FormatError(f"{self.path}: {named(name)}: a value is not finite", hint="fetch or make it again")
        return made

    def _found(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        if name not in self._places:
            raise FormatError(f"{self.path} has no tensor {named(name)}", hint="fetch or make the model again")
        return self._places[name]

    def _place(self, name: str, value: Any, room: int) -> tuple[str, tuple[int, ...], int, int]:
        described: Mapping[str, Any] = value if isinstance(value, Mapping) else {}
        kind, shape, places = (described.get(key) for key in ("dtype", "shape", "data_offsets"))
        if kind in _DTYPES and _are_counts(shape) and _are_counts(places) and len(places) == 2:
            begin, end = places
            if begin <= end <= room and end - begin == math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize:
                return kind, tuple(shape), begin, end
        raise FormatError(f"{self.path}: {named(name)} is described as {shown(value)}", hint=_AGAIN)


def _are_counts(values: Any) -> TypeGuard[list[int]]:
    """Returns whether a JSON value is a list of whole numbers that are not negative."""
    return isinstance(values, list) and all(type(n) is int and n >= 0 for n in values)


class TensorShards(TensorFile):
    """Several safetensors files whose tensors belong to one model.

    Attributes:
        path: the model's folder.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Maps the files of these names, and checks their headers.

        Raises:
            FormatError: a file is damaged, or two files have a tensor of the same name.
        """
        self.path = folder
        self._owners: dict[str, TensorFile] = {}
        for file in (TensorFile(folder / name) for name in names):
            if twice := self._owners.keys() & set(file.names):
                raise FormatError(f"{folder} has the tensor {named(min(twice))} twice", hint=_AGAIN)
            self._owners |= dict.fromkeys(file.names, file)

    def __contains__(self, name: str) -> bool:
        """Returns whether one of the files has a tensor of a name."""
        return name in self._owners

    @property
    def names(self) -> list[str]:
        """The names of the tensors, file by file."""
        return list(self._owners)

    def _found(self, name: str) -> tuple[str, tuple[int, ...], int, int]:
        return self._owner(name)._found(name)

    def get(self, name: str, *shape: int, dtype: str | tuple[str, ...] = ()) -> np.ndarray:
        """Returns a tensor, as `TensorFile.get` does.

        Raises:
            FormatError: as `TensorFile.get`.
        """
        return self._owner(name).get(name, *shape, dtype=dtype)

    def _owner(self, name: str) -> TensorFile:
        if name not in self._owners:
            raise FormatError(f"{self.path} has no tensor {named(name)}", hint=_AGAIN)
        return self._owners[name]


def open_tensors(folder: Path) -> TensorFile:
    """Maps the weights of a model: model.safetensors, or the files that its index names.

    Raises:
        FormatError: a file is missing or damaged, or the index names files outside the folder.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return TensorFile(single)
    listed = read_object(index, error=FormatError).get("weight_map")
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    if not names or not all(_SHARD.fullmatch(name) for name in names):
        raise FormatError(f"{index} names no weights files", hint=_AGAIN)
    return TensorShards(folder, names)
