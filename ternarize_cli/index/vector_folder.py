"""A folder of vectors in numbered shards, written by any number of processes, and read by `index build`.

    vectors.json      what all shards are of: `VectorRecord`, with a digest of itself (`records`)
    000012.parquet    rows of a shard: `id` (string) and `vector` (a list of `dim` numbers), or
    000012.npy        the vectors alone, with
    000012.ids        a JSON array of the ids
    000012.json       the record (`shards`), with digests of its rows and of all before; the last says that it is

A shard whose record fits what there is to encode is left alone, so the same command goes on where it was killed, does
again what was damaged, and does what has changed in the corpus.

Numbers are float32, float16, or int8: round(127 · v / max|v|) of vectors of length 1, whose length is not kept since it
is known; reading gives vectors of length 1 again.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ternarize_cli.errors import DataError
from ternarize_cli.index.origin import Origin
from ternarize_cli.index.records import read_signed
from ternarize_cli.index.shards import ShardFiles

__all__ = ["DTYPES", "FORMATS", "RECORD", "VectorFolder", "VectorRecord", "chained", "read_record"]

RECORD = "vectors.json"
DTYPES = {"fp32": np.float32, "fp16": np.float16, "int8": np.int8}
FORMATS = ("parquet", "npy")
_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class VectorRecord(Origin):
    """What the shards of a folder have in common.

    Attributes:
        dim, similarity: of the vectors, and how the model compares them.
        dtype, format: keys of `DTYPES` and `FORMATS`; shard_size: rows of all shards but the last.
    """

    dim: int
    similarity: str
    dtype: str
    format: str
    shard_size: int
    format_version: int = _VERSION


def read_record(folder: Path) -> VectorRecord:
    """The record of a folder.

    Raises:
        DataError: it is missing, damaged, was edited, or is of another version.
    """
    path = folder / RECORD
    if not path.is_file():
        raise DataError(f"{folder} holds no vectors of ternarize", hint="pass the folder that `encode --shards` wrote")
    return VectorRecord(**read_signed(path, _VERSION, "vector folder", "remove the folder and encode again"))


class VectorFolder:
    """A finished folder of vectors, as `index build` reads it.

    Attributes:
        record: what the shards are of.
        shards: how many there are; count: of vectors.

    Raises:
        DataError: a shard is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.record = read_record(folder)
        self._files = ShardFiles(folder)
        again = "run the same `ternarize encode` again: it does what is missing"
        self.shards = self.count = 0
        chain = ""
        while True:
            found = self._files.record(self.shards)
            if found is None:
                path = self._files.path(self.shards, f".{self.record.format}")
                what = "or its record is damaged" if path.exists() else "is missing"
                raise DataError(f"{path} {what}", hint=again)
            chain = chained(chain, found["of"])
            if found["chain"] != chain:
                raise DataError(
                    f"{self._files.path(self.shards, '.json')} is of another version of the corpus than those before",
                    hint="run `ternarize encode` again, all jobs of it, on the corpus as it is now",
                )
            self.shards, self.count = self.shards + 1, self.count + found["rows"]
            if found["last"]:
                break
            if found["rows"] != self.record.shard_size:
                wrong = self._files.path(self.shards - 1, ".json")
                raise DataError(f"{wrong} has {found['rows']} rows, not {self.record.shard_size}", hint=again)

    def ids(self) -> Iterator[str]:
        """The ids of all vectors, in order."""
        for shard in range(self.shards):
            if self.record.format == "npy":
                yield from json.loads(self._files.path(shard, ".ids").read_text(encoding="utf-8"))
            else:
                import pyarrow.parquet as pq

                yield from pq.read_table(self._files.path(shard, ".parquet"), columns=["id"])["id"].to_pylist()

    def load(self, shard: int) -> np.ndarray:
        """A shard's vectors, float32 `[rows, dim]`.

        Raises:
            DataError: they have another width than the folder's record says.
        """
        if self.record.format == "npy":
            numbers = np.load(self._files.path(shard, ".npy"))
        else:
            import pyarrow.parquet as pq

            column = pq.read_table(self._files.path(shard, ".parquet"), columns=["vector"])["vector"].combine_chunks()
            numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        if numbers.ndim != 2 or numbers.shape[1] != self.record.dim:
            raise DataError(
                f"shard {shard} has vectors of {numbers.shape[-1]}, and {RECORD} says {self.record.dim}",
                hint=f"{RECORD} was edited, or is another folder's: put back the one that was written with the vectors",
            )
        vectors = numbers.astype(np.float32)
        if self.record.dtype == "int8":
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return vectors

    def rows(self, rows: np.ndarray) -> np.ndarray:
        """Some vectors, by their numbers in rising order: float32 `[len(rows), dim]`."""
        shards = rows // self.record.shard_size
        return np.concatenate([self.load(i)[rows[shards == i] - i * self.record.shard_size] for i in np.unique(shards)])


def chained(before: str, digest: str) -> str:
    """`Shard.chain` of a shard with `digest`, after one whose chain is `before`."""
    return hashlib.sha256((before + digest).encode()).hexdigest()
