"""Reads NumPy's files within bounds.

NumPy allocates the size that a header or a zip directory names before it checks whether the bytes exist. Here a header
must fit the size of its file, and the members of an .npz file must be stored uncompressed, so no file takes more memory
than its own size. Arrays must hold numbers; objects, which are pickles, are refused.
"""

import math
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from ternarize_cli.errors import TernarizeError, reason
from ternarize_cli.storage.bounds import require_regular

__all__ = ["read_npy", "read_npz"]

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, IndexError, OverflowError, MemoryError),
    *(RecursionError, NotImplementedError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
"""Errors that damaged headers and zip directories raise in NumPy and zipfile."""


def read_npy(path: Path, error: type[TernarizeError]) -> np.ndarray:
    """Reads the array of numbers in an .npy file.

    Raises:
        TernarizeError (of the class `error`): the path is no regular file, the file is damaged or holds no numbers, or
            its header does not fit its size.
    """
    size = require_regular(path, error).st_size
    try:
        with path.open("rb") as stream:
            return _array(stream, size)
    except _DAMAGE as e:
        raise error(f"{path} is no array of numbers: {reason(e)}", hint="make or fetch the file again") from e


def read_npz(
    path: Path, error: type[TernarizeError], needed: Collection[str], optional: Collection[str] = ()
) -> dict[str, np.ndarray]:
    """Reads the arrays of numbers in an .npz file that `numpy.savez` wrote, by their names.

    Args:
        path: the file.
        error: the class of the error to raise.
        needed: names of arrays that the file must hold.
        optional: names of further arrays that the file may hold.

    Raises:
        TernarizeError (of the class `error`): the path is no regular file, or the file is damaged, is compressed, lacks
            a needed array, or holds an array of another name or one that is not of numbers.
    """
    require_regular(path, error)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as stored:
            names = sorted(stored.namelist())
            members = {name: f"{name}.npy" for name in (*needed, *optional) if f"{name}.npy" in names or name in needed}
            if names != sorted(members.values()):
                raise ValueError(f"it holds {', '.join(names)[:200] or 'nothing'}")
            for name, member in members.items():
                info = stored.getinfo(member)
                if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                    raise ValueError(f"{member} is compressed")
                with stored.open(info) as stream:
                    arrays[name] = _array(stream, info.file_size)
    except _DAMAGE as e:
        raise error(f"{path} is damaged: {reason(e)}", hint="make the file again") from e
    return arrays


def _array(stream: IO[bytes], size: int) -> np.ndarray:
    """Reads an array in .npy format from a stream of `size` bytes.

    Raises:
        ValueError, or another error of `_DAMAGE`: the stream holds no array of numbers.
    """
    with warnings.catch_warnings(action="ignore"):  # NumPy warns of headers that Python 2 wrote
        shape, fortran, dtype = _HEADERS[npy.read_magic(stream)](stream)
    header = stream.tell()
    if dtype.hasobject or dtype.kind not in "biuf":
        raise ValueError(f"it holds {dtype}, not numbers")
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or header + expected != size:
        raise ValueError(f"its header says {header + expected} bytes, it has {size}")
    content = bytearray(expected)
    if stream.readinto(content) != expected:  # type: ignore[attr-defined]
        raise EOFError("it is cut off")
    stream.read(1)  # reading to its end makes a zip member compare its checksum
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")
