"""A folder of vectors in numbered shards, written by any number of processes, and read by `index build`.

    000012.parquet              rows of a shard: `id` (string) and `vector` (a list of `dim` numbers), with the model's
                                content hash, dtype and metric in the metadata; or
    000012.npy                  the vectors alone, with
    000012.ids                  a JSON array of the ids
    __records__/vectors.json    what all shards have in common: `VectorRecord`, with a checksum (`checksummed`)
    __records__/000012.json     the shard's record (`finished_work`), with digests of its rows and of all rows before;
                                the record of the last shard is marked as the last

A shard whose record fits its rows of the corpus is left alone. So running a command again goes on where it was killed,
encodes damaged shards again, and encodes the shards whose rows have changed.

Numbers are float32, float16, or int8. An int8 vector is round(127 · v / max|v|) of a vector v of length 1; no scale is
stored, because reading scales the vector to length 1 again.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.errors import DataError, quoted, reason, shown
from ternarize_cli.storage.arrays import read_npy
from ternarize_cli.storage.bounds import MAX_TOKENIZER, read_json, require_regular
from ternarize_cli.storage.checksummed import check_types, read_checksummed
from ternarize_cli.vectors.finished_work import RECORDS, ShardFiles
from ternarize_cli.vectors.origin import Origin

__all__ = [
    "DTYPES",
    "FORMATS",
    "RECORD",
    "VectorFolder",
    "VectorRecord",
    "chained",
    "holds_vectors",
    "metadata",
    "read_record",
]

RECORD = f"{RECORDS}/vectors.json"
DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
FORMATS = ("parquet", "npy")
_VERSION = 2
_AGAIN = "run the `ternarize encode` that wrote the folder again: it encodes what is missing"
_DAMAGED = "remove the file and run the `ternarize encode` that wrote the folder again"
_WRITTEN = "pass the folder that `encode --shards` wrote"
_REMAKE = "remove the folder and encode again"
_SHARD_KINDS = {"files": dict, "rows": int, "of": str, "chain": str, "last": bool}
_MAX_DIM, _MAX_ROWS = 1 << 20, 1 << 31


@dataclass(frozen=True, kw_only=True)
class VectorRecord(Origin):
    """What the shards of a folder have in common.

    Attributes:
        dim: number of dimensions of the vectors.
        similarity: name of the similarity by which the model compares vectors.
        dtype, format: keys of `DTYPES` and `FORMATS`.
        shard_size: number of rows of every shard but the last, which may have fewer.
    """

    dim: int
    similarity: str
    dtype: str
    format: str
    shard_size: int
    format_version: int = _VERSION


def metadata(*, model: str, model_sha256: str, dtype: str, similarity: str, normalized: bool | None) -> dict[str, str]:
    """Makes the metadata of a Parquet file, which says where its vectors come from and how they are compared.

    Args:
        model: MODEL as the user typed it; model_sha256: content hash of its folder.
        dtype: a key of `DTYPES`.
        similarity: sentence-transformers' name of the similarity by which the model compares vectors.
        normalized: whether vectors were scaled to length 1; None: as the model does it.
    """
    about = {"model": model, "model_sha256": model_sha256, "dtype": dtype, "metric": similarity}
    return {f"ternarize.{name}": value for name, value in about.items()} | (
        {} if normalized is None else {"ternarize.normalized": str(normalized).lower()}
    )


def holds_vectors(path: str | Path) -> bool:
    """Whether `encode --shards` wrote a folder, also a version of it whose folders `read_record` refuses."""
    folder = Path(path)
    return (folder / RECORD).is_file() or _is_old(folder)


def _is_old(folder: Path) -> bool:
    """Whether a folder has its records beside its vectors, as older versions wrote them."""
    return (folder / "vectors.json").is_file() and any(folder.glob("000000.*"))


def read_record(folder: Path) -> VectorRecord:
    """Reads the record of a folder of vectors.

    Raises:
        DataError: the record is missing, damaged, edited, or of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        where = quoted(folder)
        old = _is_old(folder)
        hint = f"mkdir {where}/{RECORDS} && mv {where}/*.json {where}/{RECORDS}/" if old else _WRITTEN
        what = f"has its records beside its vectors, not in {RECORDS}" if old else "holds no vectors of ternarize"
        raise DataError(f"{folder} {what}", hint=hint)
    found = read_checksummed(path, _VERSION, "vector folder", _REMAKE)
    check_types(found, VectorRecord, path, _REMAKE)
    wrong = _fault(found)
    if wrong is not None:
        raise DataError(f"{path} is damaged: {wrong}", hint=_REMAKE)
    return VectorRecord(**found)


def _fault(found: Mapping[str, Any]) -> str | None:
    """Says what is wrong with the fields of a vector record; None if nothing is."""
    for name, known in (("dtype", DTYPES), ("format", FORMATS), ("kind", ("text", "image"))):
        if found[name] not in known:
            return f"{name} is {shown(found[name])}, not one of {', '.join(known)}"
    for name, largest in (("dim", _MAX_DIM), ("shard_size", _MAX_ROWS)):
        if not 0 < found[name] <= largest:
            return f"{name} is {found[name]}, not from 1 to {largest:,}"
    return None


class VectorFolder:
    """A finished folder of vectors, as `index build` reads it.

    Attributes:
        record: what all shards have in common.
        shards: number of shards.
        count: number of vectors in all shards.

    Raises:
        DataError: a shard is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.record = read_record(folder)
        self._files = ShardFiles(folder)
        self.shards = self.count = 0
        chain = ""
        while True:
            found = self._shard(self.shards)
            chain = chained(chain, found["of"])
            if found["chain"] != chain:
                raise DataError(
                    f"{self._files.path(self.shards, '.json')} is of another version of the corpus than those before",
                    hint="run all jobs of `ternarize encode` again, on the corpus as it is now",
                )
            self.shards, self.count = self.shards + 1, self.count + found["rows"]
            if found["last"]:
                break
            if found["rows"] != self.record.shard_size:
                wrong = self._files.path(self.shards - 1, ".json")
                raise DataError(f"{wrong} has {found['rows']} rows, not {self.record.shard_size}", hint=_AGAIN)

    def _shard(self, shard: int) -> dict[str, Any]:
        """Reads the record of a shard, and checks that its files are whole."""
        suffixes = [".npy", ".ids"] if self.record.format == "npy" else [".parquet"]
        for path in (self._files.path(shard, suffix) for suffix in suffixes):
            if path.exists():  # reading a pipe would wait for a writer
                require_regular(path, DataError)
        try:
            read_json(self._files.path(shard, ".json"), error=DataError)
            found = self._files.record(shard)
        except DataError:
            found = None
        if found is None:
            path = self._files.path(shard, suffixes[0])
            what = "or its record is damaged" if path.exists() else "is missing"
            raise DataError(f"{path} {what}", hint=_AGAIN)
        path = self._files.path(shard, ".json")
        for name, kind in _SHARD_KINDS.items():
            value = found.get(name)
            if type(value) is not kind or (isinstance(value, str) and not value.isascii()):
                raise DataError(f"{path} is damaged: {name} is {shown(value)}", hint=_DAMAGED)
        if found["files"].keys() != set(suffixes):
            raise DataError(f"{path} is damaged: its files are {shown(list(found['files']))}", hint=_DAMAGED)
        if not 0 < found["rows"] <= self.record.shard_size:
            raise DataError(f"{path} has {found['rows']} rows, not {self.record.shard_size} at most", hint=_AGAIN)
        return found

    def _count(self, shard: int) -> int:
        """Number of rows of a shard."""
        return min(self.record.shard_size, self.count - shard * self.record.shard_size)

    def ids(self) -> Iterator[str]:
        """The ids of all vectors, in order.

        Raises:
            DataError: a file of ids is damaged, or holds another number of ids than its record says.
        """
        for shard in range(self.shards):
            if self.record.format == "npy":
                path = self._files.path(shard, ".ids")
                ids = read_json(path, limit=MAX_TOKENIZER, error=DataError)
            else:
                path = self._files.path(shard, ".parquet")
                ids = _column(path, "id", self._count(shard), _is_string).to_pylist()
            try:
                "".join(ids).encode()
                fits = isinstance(ids, list) and len(ids) == self._count(shard)
            except (TypeError, UnicodeEncodeError):  # others than strings, or halves of surrogate pairs
                fits = False
            if not fits:
                raise DataError(f"{path} does not hold {self._count(shard)} ids", hint=_DAMAGED)
            yield from ids

    def load(self, shard: int) -> np.ndarray:
        """Reads the vectors of a shard: float32 `[rows, dim]`.

        Raises:
            DataError: the file is damaged, a number is not finite, or the number of vectors, their dimensions or their
                dtype differ from the records.
        """
        expected = self._count(shard), self.record.dim
        if self.record.format == "npy":
            path = self._files.path(shard, ".npy")
            numbers = read_npy(path, DataError)
        else:
            path = self._files.path(shard, ".parquet")
            numbers = _numbers(path, expected[0])
        if numbers.ndim != 2 or numbers.shape[1] != self.record.dim:
            width = numbers.shape[-1] if numbers.ndim else "nothing"
            raise DataError(
                f"shard {shard} has vectors of {width}, and vectors.json says {self.record.dim}",
                hint="it was edited, or is another folder's: restore the one that was written with the vectors",
            )
        if numbers.shape != expected or numbers.dtype != DTYPES[self.record.dtype]:
            raise DataError(
                f"{path} holds {len(numbers)} vectors of {numbers.dtype}, its records say {expected[0]} of "
                f"{self.record.dtype}",
                hint=_DAMAGED,
            )
        vectors = numbers.astype(np.float32)
        if not np.isfinite(vectors).all():
            raise DataError(f"{path} holds a number that is not finite", hint=_DAMAGED)
        if self.record.dtype == "int8":
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Reads the vectors of some rows: float32 `[len(rows), dim]`. `rows` holds row numbers in rising order."""
        shards = rows // self.record.shard_size
        return np.concatenate([self.load(i)[rows[shards == i] - i * self.record.shard_size] for i in np.unique(shards)])


def chained(before: str, digest: str) -> str:
    """`Shard.chain` of a shard whose own digest is `digest` and whose predecessor's chain is `before`."""
    return hashlib.sha256((before + digest).encode()).hexdigest()


def _column(path: Path, name: str, rows: int, fits: Callable[[Any], bool]) -> Any:
    """Reads a column of a shard's Parquet file as an Arrow array.

    Raises:
        DataError: the file is damaged, lacks the column, its type does not fit, or the file has not `rows` rows.
    """
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        kind = file.schema_arrow.field(name).type
        if file.metadata.num_rows != rows or not fits(kind):
            raise ValueError(f"{name!r} has {file.metadata.num_rows} rows of {kind}, its record says {rows}")
        column = file.read(columns=[name])[name].combine_chunks()
        column.validate(full=True)
        if len(column) != rows or column.null_count:
            raise ValueError(f"{name!r} has {len(column) - column.null_count} values in {rows} rows")
    except Exception as e:  # a damaged file can raise any error in Arrow
        raise DataError(f"{path} can't be read as Parquet: {reason(e)}", hint=_DAMAGED) from e
    return column


def _is_string(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind))


def _is_vector(kind: Any) -> bool:
    """Whether the Arrow type is a list of fixed length, as `ternarize encode` writes it."""
    import pyarrow as pa

    if not pa.types.is_fixed_size_list(kind):
        return False
    return bool(pa.types.is_floating(kind.value_type) or pa.types.is_int8(kind.value_type))


def _numbers(path: Path, rows: int) -> np.ndarray:
    """Reads the vectors of a shard's Parquet file: `[rows, dim]`, in the stored dtype."""
    column = _column(path, "vector", rows, _is_vector)
    vectors: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(rows, column.type.list_size)
    return vectors
