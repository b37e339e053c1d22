"""A model's weights files: found, opened lazily, written.

Weights are `model.safetensors`, or shards that `model.safetensors.index.json` names; both are read a tensor at a time.
`pytorch_model.bin` is a pickle: it is refused unless the user allows it, and then only tensors are unpickled.
"""

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ternarize_cli.errors import CheckpointError

__all__ = [
    "DTYPES",
    "INDEX_FILES",
    "Shard",
    "ShardWriter",
    "bytes_on_disk",
    "open_files",
    "open_shards",
    "weight_files",
]

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
INDEX_FILES = (INDEX, PICKLE_INDEX)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


@dataclass
class Shard:
    """One weights file, opened.

    Attributes:
        name: the file name that an artifact gives to its twin, always `*.safetensors`.
        path: the file.
    """

    name: str
    path: Path
    _reader: Any

    def keys(self) -> list[str]:
        """Tensor names, sorted."""
        return sorted(self._reader.keys())

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        if isinstance(self._reader, dict):
            return tuple(self._reader[key].shape)
        return tuple(self._reader.get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        """The dtype of a tensor as safetensors names it, such as "F32" or "U8", without reading it."""
        if isinstance(self._reader, dict):
            dtype = self._reader[key].dtype
            return next((name for name, known in DTYPES.items() if known == dtype), str(dtype))
        return str(self._reader.get_slice(key).get_dtype())

    def get(self, key: str) -> Tensor:
        """One tensor, on the CPU."""
        return self._reader[key] if isinstance(self._reader, dict) else self._reader.get_tensor(key)


def weight_files(folder: Path, *, allow_pickle: bool = False) -> list[Path]:
    """The files that hold a folder's weights, in order.

    Raises:
        CheckpointError: there are none, a shard is missing, or they are pickles and pickles are not allowed.
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
    try:
        names = sorted(set(json.loads((folder / index).read_text(encoding="utf-8"))["weight_map"].values()), key=str)
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as e:
        raise CheckpointError(f"{folder / index} is no shard index: {e}", hint="fetch the file again") from e
    if not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{folder / index} names no shards", hint="fetch the file again")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / index} names the shard {name}, which is not there", hint="fetch it again")
    return [folder / name for name in names]


def bytes_on_disk(folder: Path, *, allow_pickle: bool = False) -> int:
    """Size of a folder's weights files; raises as `weight_files`."""
    return sum(path.stat().st_size for path in weight_files(folder, allow_pickle=allow_pickle))


@contextmanager
def open_shards(folder: Path, *, allow_pickle: bool = False) -> Iterator[list[Shard]]:
    """Opens a folder's weights for reading tensor by tensor.

    Raises:
        CheckpointError: as `weight_files`, or a file that is truncated or damaged.
    """
    with open_files(weight_files(folder, allow_pickle=allow_pickle)) as shards:
        yield shards


@contextmanager
def open_files(paths: Iterable[str | Path]) -> Iterator[list[Shard]]:
    """Opens weights files for reading tensor by tensor; raises as `open_shards`."""
    with ExitStack() as stack:
        yield [_open(Path(path), stack) for path in paths]


def _open(path: Path, stack: ExitStack) -> Shard:
    try:
        if path.suffix == ".safetensors":
            return Shard(path.name, path, stack.enter_context(safe_open(path, framework="pt")))
        tensors = _unpickle(path)
    except OSError as e:
        if e.errno is not None:  # the system's trouble (memory, open files), not the file's
            raise
        raise CheckpointError(f"{path} is damaged or cut off: {e}", hint="fetch the file again") from e
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as e:
        text = " ".join(str(e).split())[:200]
        raise CheckpointError(f"{path} is damaged or cut off: {text}", hint="fetch the file again") from e
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{path} holds no state dict but a {type(tensors).__name__}")
    name = path.name.replace("pytorch_model", "model").replace(".bin", ".safetensors")
    return Shard(name, path, {k: v for k, v in tensors.items() if isinstance(v, Tensor)})


def _unpickle(path: Path) -> Any:
    """The tensors of a pickle; files of torch before 1.6 can't be mapped into memory and are read whole."""
    try:
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings(action="ignore"):  # about the pickle protocol
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as e:
        raise CheckpointError(f"{path} holds more than tensors, or no pickle at all, and is refused") from e


class ShardWriter:
    """Writes a folder's weights, shard by shard, and the index if there is more than one.

    Metadata is only {"format": "pt"}: safetensors writes more keys in random order, and bytes would differ from run
    to run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weight_map: dict[str, str] = {}
        self._sizes: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        """Size of the files written so far."""
        return sum(self._sizes.values())

    def write(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Writes one shard under the file name `name`."""
        path = self._folder / name
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
        self._sizes[name] = path.stat().st_size
        self._weight_map |= dict.fromkeys(tensors, name)

    def finish(self) -> None:
        """Writes the index; call it after the last shard."""
        if len(self._sizes) > 1:
            index = {"metadata": {"total_size": self.bytes}, "weight_map": dict(sorted(self._weight_map.items()))}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
