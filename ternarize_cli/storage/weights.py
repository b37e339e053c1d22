"""Finds, reads and writes a model's weights files, one tensor at a time.

Weights are `model.safetensors`, or shards that `model.safetensors.index.json` names. Files are mapped into memory, and
pages that were read count as this process's memory until the mapping ends. So every tensor gets its own mapping, which
ends with the tensor, and `ShardWriter` holds each tensor only while it writes it. A pass over a checkpoint of any size
therefore needs memory only for the tensors in use.

`pytorch_model.bin` is a pickle: it is refused unless the user allows it, and then only tensors are unpickled. Pickled
shards are mapped one at a time.
"""

import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ternarize_cli.errors import CheckpointError, named
from ternarize_cli.storage.bounds import MAX_TOKENIZER, read_json

__all__ = [
    "DTYPES",
    "ShardData",
    "ShardWriter",
    "WeightShard",
    "all_finite",
    "bytes_on_disk",
    "file_bytes",
    "open_files",
    "open_shards",
    "weight_files",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"

DTYPES = {
    "U64": torch.uint64,
    "I64": torch.int64,
    "F64": torch.float64,
    "C64": torch.complex64,
    "F32": torch.float32,
    "U32": torch.uint32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "I16": torch.int16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""The dtypes by the names that safetensors gives them, in the order in which a file holds tensors of these dtypes."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_RANK = {dtype: rank for rank, dtype in enumerate(DTYPES.values())}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class WeightShard:
    """A weights file that is open for reading.

    Attributes:
        name: name of the file in which an artifact made of this model holds these tensors, always `*.safetensors`.
        path: path of the file that is read.
    """

    name: str
    path: Path
    _headers: Mapping[str, tuple[tuple[int, ...], str]]
    _read: Callable[[str], Tensor]

    def keys(self) -> list[str]:
        """Lists the names of the file's tensors, sorted."""
        return sorted(self._headers)

    def shape(self, key: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading its values."""
        return self._headers[key][0]

    def dtype(self, key: str) -> str:
        """Returns the dtype of a tensor as safetensors names it, such as "F32" or "U8", without reading its values."""
        return self._headers[key][1]

    def get(self, key: str) -> Tensor:
        """Reads a tensor to the CPU."""
        return self._read(key)


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """Lists the weights files of a folder: one file, or the shards sorted by name.

    Args:
        folder: the model folder.
        allow_pickle: accept pytorch_model.bin where the folder has no safetensors files.

    Raises:
        CheckpointError: the folder has no weights files, a shard is missing, or the files are pickles and
            `allow_pickle` is False.
    """
    for single, index in ((SINGLE, INDEX), (PICKLE, PICKLE_INDEX)):
        if (folder / single).is_file():
            found = [folder / single]
        elif (folder / index).is_file():
            found = _indexed(folder, index)
        else:
            continue
        if single == PICKLE and not allow_pickle:
            raise CheckpointError(
                f"{found[0]} is a pickle: loading one can run code, so it is refused",
                hint="ternarize convert --allow-pickle if you trust its author (only tensors are read), "
                "or fetch model.safetensors",
            )
        return found
    raise CheckpointError(f"{folder} holds no weights: no {SINGLE} and no {INDEX}", hint="fetch the whole model again")


def _indexed(folder: Path, index: str) -> list[Path]:
    values = read_json(folder / index, limit=MAX_TOKENIZER)
    places = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise CheckpointError(f"{folder / index} names no shards", hint="fetch the file again")
    names, suffix = sorted(set(places.values())), ".safetensors" if index == INDEX else ".bin"
    for name in names:
        if Path(name).name != name or Path(name).suffix != suffix or not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / index} names the shard {named(name)}, which is not there", hint="fetch it again"
            )
    return [folder / name for name in names]


def bytes_on_disk(folder: Path, *, allow_pickle: bool = False) -> int:
    """Adds up the sizes of a folder's weights files, in bytes.

    Raises:
        CheckpointError: the folder has no weights files, a shard is missing, or the files are pickles and
            `allow_pickle` is False.
    """
    return sum(path.stat().st_size for path in weight_files(folder, allow_pickle=allow_pickle))


@contextmanager
def open_shards(folder: Path, *, allow_pickle: bool = False) -> Iterator[list[WeightShard]]:
    """Opens a folder's weights files for reading tensor by tensor, and yields them in the order of `weight_files`.

    Raises:
        CheckpointError: a file is missing, truncated or damaged, or the files are pickles and `allow_pickle` is False.
    """
    with open_files(weight_files(folder, allow_pickle=allow_pickle)) as shards:
        yield shards


@contextmanager
def open_files(paths: Iterable[str | Path]) -> Iterator[list[WeightShard]]:
    """Opens weights files for reading tensor by tensor, and yields them in the order of `paths`.

    Raises:
        CheckpointError: a file is truncated or damaged.
    """
    unpickle = lru_cache(maxsize=1)(_unpickle)
    try:
        yield [_open(Path(path), unpickle) for path in paths]
    finally:
        unpickle.cache_clear()


def _open(path: Path, unpickle: Callable[[Path], dict[str, Tensor]]) -> WeightShard:
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
                headers = {key: (tuple(s.get_shape()), str(s.get_dtype())) for key, s in slices.items()}
            return WeightShard(path.name, path, headers, lambda key: _read(path, key))
        tensors = unpickle(path)
    except OSError as e:
        if e.errno is not None:  # an error of the system (memory, open files), not of the file
            raise
        raise CheckpointError(f"{path} is damaged or cut off: {e}", hint="fetch the file again") from e
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as e:
        text = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{path} is damaged or cut off: {text}", hint="fetch the file again") from e
    name = path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
    headers = {key: (tuple(t.shape), _NAMES.get(t.dtype, str(t.dtype))) for key, t in tensors.items()}
    return WeightShard(name, path, headers, lambda key: unpickle(path)[key])


def _read(path: Path, key: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
        return tensor


def _unpickle(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a pickle, mapped into memory; files written by torch before 1.6 are read as a whole."""
    try:
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings(action="ignore"):  # torch warns of the pickle protocol
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as e:
        raise CheckpointError(f"{path} holds more than tensors, or no pickle at all, and is refused") from e
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds no state dict but a {type(tensors).__name__}")
    return {key: value for key, value in tensors.items() if isinstance(value, Tensor)}


def all_finite(tensor: Tensor) -> bool:
    """Computes `torch.isfinite(tensor).all()` without a mask of the size of the tensor."""
    return tensor.numel() == 0 or bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())


class ShardWriter:
    """Writes a folder's weights, shard by shard and tensor by tensor, and the index file that several shards need.

        with writer.shard("model-00001-of-00002.safetensors") as shard:
            shard.add("a.weight", tensor)
        writer.finish()

    A shard has the bytes that `safetensors.save_file` would write: 8 bytes with the header's length, the header, and
    the data, ordered by dtype, the widest first, then by name. That order is known only with the last tensor, so data
    is collected in `NAME.data` beside the shard and then copied; there is one such file at a time. The metadata is only
    {"format": "pt"}: safetensors writes further keys in random order, and files would differ from run to run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weight_map: dict[str, str] = {}
        self._file_bytes = self._tensor_bytes = 0

    @property
    def bytes(self) -> int:
        """The size in bytes of the shards written so far."""
        return self._file_bytes

    @contextmanager
    def shard(self, name: str) -> Iterator["ShardData"]:
        """Yields the object to which the tensors of the shard `name` are added; writes no file if there are none."""
        path = self._folder / name
        data = path.with_name(f"{name}.data")
        try:
            with data.open("w+b") as stream:
                shard = ShardData(stream)
                yield shard
                if not shard.tensors:
                    return
                with path.open("wb") as file:
                    shard.write_to(file)
        finally:
            data.unlink(missing_ok=True)
        self._file_bytes += path.stat().st_size
        self._tensor_bytes += sum(tensor.bytes for tensor in shard.tensors.values())
        self._weight_map |= dict.fromkeys(shard.tensors, name)

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Writes a shard of tensors that are all in memory."""
        with self.shard(name) as shard:
            for key, tensor in tensors.items():
                shard.add(key, tensor)

    def finish(self) -> None:
        """Writes the index file, unless all tensors are in `model.safetensors`. To be called after the last shard."""
        if set(self._weight_map.values()) != {SINGLE}:
            size = {"total_size": self._tensor_bytes}
            index = {"metadata": size, "weight_map": dict(sorted(self._weight_map.items()))}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class _Written:
    """Describes a tensor in a shard's data: its dtype and shape, its first byte, and its length in bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    bytes: int


class ShardData:
    """Collects the tensors of a shard that `ShardWriter` is writing."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.tensors: dict[str, _Written] = {}

    def add(self, key: str, tensor: Tensor) -> None:
        """Writes a tensor to the shard's data file; the caller may free it then.

        Raises:
            ValueError: the shard has a tensor of this name already.
        """
        if key in self.tensors:
            raise ValueError(f"{key} is in the shard already")
        start = self._stream.tell()
        self._stream.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.tensors[key] = _Written(tensor.dtype, tuple(tensor.shape), start, self._stream.tell() - start)

    def write_to(self, file: IO[bytes]) -> None:
        """Copies the collected tensors into a file in the format and the order of safetensors."""
        header, order = _header({key: (tensor.dtype, tensor.shape) for key, tensor in self.tensors.items()})
        file.write(header)
        for key in order:
            self._stream.seek(self.tensors[key].start)
            left = self.tensors[key].bytes
            while left:
                chunk = self._stream.read(min(left, _CHUNK))
                file.write(chunk)
                left -= len(chunk)


def _header(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, list[str]]:
    """Makes a safetensors header with its length; also returns the names in the order of their data."""
    order = sorted(tensors, key=lambda key: (_RANK[tensors[key][0]], key))
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key in order:
        dtype, shape = tensors[key]
        offsets = [end, end := end + dtype.itemsize * math.prod(shape)]
        entries[key] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": offsets}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, order


def file_bytes(tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> int:
    """Computes the size in bytes of the shard that `ShardWriter` writes for tensors of these dtypes and shapes.

    An empty mapping has size 0: no file is written for it.
    """
    data = sum(dtype.itemsize * math.prod(shape) for dtype, shape in tensors.values())
    return len(_header(tensors)[0]) + data if tensors else 0
