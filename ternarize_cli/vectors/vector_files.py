"""Writes vectors to a NumPy, JSON Lines or Parquet file, chunk by chunk.

    npy      one float32 array [n, dim]; ids are not kept (row i is text i)
    jsonl    {"id": "…", "vector": [0.01, …]} per line, with as many digits as float32 needs to come back bit for bit
    parquet  columns `id` (string) and `vector` (list of dim float32); `about` is the metadata

A chunk is written as soon as it is encoded, so the number of texts need not be known. The npy header holds that
number, so it is written again at the end; a pipe does not allow this, so for a pipe the array is kept in memory until
the end. To add a format, add a class to `WRITERS`.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy

from ternarize_cli.errors import InputError

__all__ = ["WRITERS", "VectorWriter", "file_format"]


class VectorWriter(Protocol):
    """Writes chunks of ids and float32 vectors `[n, dim]` to a stream. `close` ends the file and leaves it open.

    `about` says where the vectors come from; formats without metadata leave it out.
    """

    def __init__(self, stream: IO[bytes], about: Mapping[str, str] = MappingProxyType({})) -> None: ...

    def write(self, ids: list[str], vectors: np.ndarray) -> None: ...

    def close(self) -> None: ...


def file_format(output: Path | None, asked: str | None) -> str:
    """Chooses the format to write: `asked`, else the one that the output's suffix names, else jsonl for stdout.

    Raises:
        InputError: `asked` is not a key of WRITERS, or the suffix names no format.
    """
    name = asked or (output.suffix.lower().removeprefix(".") if output else "jsonl")
    if name not in WRITERS:
        known = ", ".join(WRITERS)
        if asked:
            raise InputError(f"there is no vector format {asked!r}", hint=f"--format takes {known}")
        raise InputError(f"{output} has no suffix that names a vector format", hint=f"--format takes {known}")
    return name


class _Npy:
    def __init__(self, stream: IO[bytes], about: Mapping[str, str] = MappingProxyType({})) -> None:
        self._target = stream
        self._stream = stream if stream.seekable() else io.BytesIO()
        self._rows = self._dim = 0

    def write(self, ids: list[str], vectors: np.ndarray) -> None:
        if not self._rows:
            self._dim = vectors.shape[1]
            self._header()
        self._rows += len(vectors)
        self._stream.write(np.ascontiguousarray(vectors, dtype="<f4").data)

    def close(self) -> None:
        # NumPy pads the header so that a longer first axis takes the same room.
        self._stream.seek(0)
        self._header()
        if self._stream is not self._target:
            self._target.write(self._stream.getvalue())  # type: ignore[attr-defined]

    def _header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self._rows, self._dim)}
        npy.write_array_header_1_0(self._stream, header)


_FEW = 4096  # numbers, which take less time one by one than the import of pyarrow


def _shortest(numbers: np.ndarray) -> list[str]:
    """Writes float32 `[numbers]` with the fewest digits that give them back, as pyarrow does, which writes many."""
    if numbers.size <= _FEW:
        return [_shortest_of(x) for x in numbers]
    import pyarrow as pa

    # pa.array, and arguments that are no arrays, would import pandas, to see whether they are something of it.
    texts: list[str] = (
        pa.Array.from_buffers(pa.float32(), numbers.size, [None, pa.py_buffer(numbers)]).cast(pa.string()).to_pylist()
    )
    return texts


def _shortest_of(x: np.float32) -> str:
    if x == 0 or 1e-6 <= abs(x) < 1e10:
        return np.format_float_positional(x, unique=True, trim="-")
    return np.format_float_scientific(x, unique=True, trim="-", exp_digits=1)


class _Jsonl:
    def __init__(self, stream: IO[bytes], about: Mapping[str, str] = MappingProxyType({})) -> None:
        self._stream = stream

    def write(self, ids: list[str], vectors: np.ndarray) -> None:
        dim = vectors.shape[1]
        texts = _shortest(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        rows = (", ".join(texts[start : start + dim]) for start in range(0, len(texts), dim))
        for name, row in zip(ids, rows, strict=True):
            self._stream.write(f'{{"id": {json.dumps(name, ensure_ascii=False)}, "vector": [{row}]}}\n'.encode())
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()


class _Parquet:
    def __init__(self, stream: IO[bytes], about: Mapping[str, str] = MappingProxyType({})) -> None:
        self._stream, self._about = stream, dict(about)
        self._writer: Any = None

    def write(self, ids: list[str], vectors: np.ndarray) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
        column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        table = pa.table({"id": pa.array(ids, pa.string()), "vector": column}).replace_schema_metadata(self._about)
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._stream, table.schema)
        self._writer.write_table(table)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


WRITERS: dict[str, type[VectorWriter]] = {"npy": _Npy, "jsonl": _Jsonl, "parquet": _Parquet}
