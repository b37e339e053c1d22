"""Reads files that hold many images: IDX, CIFAR and Parquet.

IDX, big-endian, is the format of MNIST. A `.gz` file is unpacked into memory, up to the size that its header says and
at most 4 GiB; other files are memory-mapped:

    images   00 00 08 03   count u32   height u32   width u32   count · height · width bytes, row by row
    labels   00 00 08 01   count u32   count bytes

CIFAR, the binary version (https://www.cs.toronto.edu/~kriz/cifar.html), is records of bytes; the names of the classes
are in a file beside it, by which it is recognised. The Python version is pickles, which may run code, and is not read:

    CIFAR-10     batches.meta.txt         label                        1024 red, 1024 green, 1024 blue, row by row
    CIFAR-100    fine_label_names.txt     coarse label   fine label    1024 red, 1024 green, 1024 blue, row by row

Parquet files are read one row group at a time.
"""

import gzip
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import accumulate
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from ternarize_cli.data.parquet_errors import reading_parquet
from ternarize_cli.errors import DataError, counted, quoted, shown
from ternarize_cli.storage.bounds import parse_json, read_bytes, require_regular

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "IDX_IMAGES",
    "ImageFile",
    "ParquetFile",
    "PixelFile",
    "image_columns",
    "is_cifar",
    "open_cifar",
    "open_idx",
    "open_parquet",
]

_CIFAR = re.compile(r"(?:data_batch_\d+|test_batch|train|test)\.bin")
_CIFAR_NAMES = (("batches.meta.txt", 1), ("fine_label_names.txt", 2))
IDX_IMAGES = re.compile(r"(?:(.+)-)?images[-.]idx3-ubyte(?:\.gz)?")
_MAX_NAMES = 1 << 20
_MAX_UNPACKED = 4 << 30
_DEFLATE = 1032
"""The largest ratio of the size of data to its compressed size (https://zlib.net/zlib_tech.html)."""
_LABEL_COLUMNS = ("label", "labels", "fine_label")


class ImageFile(Protocol):
    """A file of images. Its length is the number of images."""

    @property
    def path(self) -> Path:
        """Path of the file."""

    @property
    def labels(self) -> Sequence[str] | None:
        """One label for each image; None if the file has no labels."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> "Path | IO[bytes] | Image":
        """Reads an image: a PIL image, or a path or stream that PIL can open."""


@dataclass(frozen=True)
class PixelFile:
    """Images in one array `pixels`: uint8 `[count, height, width]` if grey, or `[count, height, width, 3]` if RGB."""

    path: Path
    pixels: np.ndarray = field(repr=False)
    labels: Sequence[str] | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, row: int) -> "Image":
        """Makes a PIL image of a row."""
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(self.pixels[row]))


def open_idx(path: Path) -> PixelFile:
    """Opens an IDX file of images, with its labels if they are beside it.

    Raises:
        DataError: a file is no IDX file of images or labels, is cut off or too long, or the counts differ.
    """
    pixels = _read_idx(path, dimensions=3)
    stem = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    beside = [path.with_name(name) for name in (stem, f"{stem}.gz") if path.with_name(name).is_file()]
    if not beside:
        return PixelFile(path, pixels, None)
    labels = _read_idx(beside[0], dimensions=1)
    if len(labels) != len(pixels):
        raise DataError(f"{beside[0]} has {counted(len(labels), 'label')}, {path} has {counted(len(pixels), 'image')}")
    return PixelFile(path, pixels, [str(label) for label in labels])


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    header = 4 + 4 * dimensions
    size = require_regular(path, DataError).st_size
    packed = path.suffix == ".gz"
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            begin = stream.read(header)
            shape = _idx_shape(path, begin, dimensions)
            expected = int(np.prod(shape, dtype=object))
            if packed and expected <= min(_MAX_UNPACKED, size * _DEFLATE):
                content: np.ndarray = np.frombuffer(stream.read(expected + 1), np.uint8)
            else:
                content = np.empty(0, np.uint8)
        if not packed and size > header:
            content = np.memmap(path, np.uint8, mode="r", offset=header)
    except (OSError, EOFError, zlib.error, ValueError) as e:
        raise DataError(f"{path} can't be read: {e}", hint="fetch the file again") from e
    if packed and expected > _MAX_UNPACKED:
        raise DataError(
            f"{path}: {expected:,} bytes are more than the {_MAX_UNPACKED:,} that are unpacked into memory",
            hint=f"gunzip -k {quoted(path)}",
        )
    if len(content) != expected or not expected:
        described = " × ".join(map(str, shape))
        follow = "more" if packed and len(content) > expected else f"{len(content)}"
        follow = "fewer" if packed and expected > size * _DEFLATE else follow
        raise DataError(
            f"{path}: the header says {described} = {expected} bytes, {follow} follow", hint="fetch the file again"
        )
    return content.reshape(shape)


def _idx_shape(path: Path, begin: bytes, dimensions: int) -> tuple[int, ...]:
    """Reads the shape of an IDX file's array from the first bytes of the file."""
    wanted = bytes([0, 0, 8, dimensions])
    if begin[:4] != wanted:
        raise DataError(
            f"{path} is no IDX file of {'images' if dimensions == 3 else 'labels'}: it starts with "
            f"{begin[:4].hex(' ') or 'nothing'}, not {wanted.hex(' ')}"
        )
    if len(begin) < 4 + 4 * dimensions:
        raise DataError(f"{path} is cut off within its header: {len(begin)} bytes", hint="fetch the file again")
    return struct.unpack(f">{dimensions}I", begin[4:])


def is_cifar(path: Path) -> bool:
    """Whether this is a file of CIFAR's binary version, by its name and the file of names beside it."""
    return _CIFAR.fullmatch(path.name) is not None and any(path.with_name(n).is_file() for n, _ in _CIFAR_NAMES)


def open_cifar(path: Path) -> PixelFile:
    """Opens a file of CIFAR's binary version; labels are names of classes (for CIFAR-100, of the fine classes).

    Raises:
        DataError: the file is cut off, or has a label without a name.
    """
    names_file, width = next((path.with_name(name), n) for name, n in _CIFAR_NAMES if path.with_name(name).is_file())
    names = read_bytes(names_file, limit=_MAX_NAMES, error=DataError).decode(errors="backslashreplace").split()
    size = require_regular(path, DataError).st_size
    if size == 0 or size % (width + 3072):
        raise DataError(f"{path}: {size} bytes are no records of {width + 3072}", hint="fetch the file again")
    records: np.ndarray = np.memmap(path, np.uint8, mode="r").reshape(-1, width + 3072)
    numbers = records[:, width - 1]
    if int(numbers.max()) >= len(names):
        row = int(numbers.argmax())
        raise DataError(
            f"{path}, image {row}: the label {numbers[row]} has no name", hint=f"{names_file} has {len(names)}"
        )
    pixels = records[:, width:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return PixelFile(path, pixels, [names[number] for number in numbers])


def image_columns(path: Path) -> tuple[str, str | None] | None:
    """Finds the columns of images and labels in a Parquet file; None if no column holds images.

    Images are a struct of `bytes` and `path` in a column of any name, or plain bytes in a column `image` or `img`.

    Raises:
        DataError: the file is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_regular(path, DataError)
    with reading_parquet(path):
        schema = pq.read_schema(path)
    label = next((name for name in _LABEL_COLUMNS if name in schema.names), None)
    for column in schema:
        kind = column.type
        if pa.types.is_struct(kind) and {"bytes", "path"} <= {kind[i].name for i in range(kind.num_fields)}:
            return column.name, label
        if column.name in ("image", "img") and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            return column.name, label
    return None


@dataclass
class ParquetFile:
    """The images of a Parquet file. `groups` lists the first row of each row group, and last the number of rows."""

    path: Path
    labels: Sequence[str] | None = field(repr=False)
    column: str
    groups: list[int] = field(repr=False)
    _file: Any = field(repr=False)
    _loaded: tuple[int, Any] = field(default=(-1, None), repr=False)

    def __len__(self) -> int:
        return self.groups[-1]

    def read(self, row: int) -> Path | IO[bytes]:
        """Reads the encoded image of a row, or returns the path of the image file that the row names.

        Raises:
            DataError: the row can't be read or holds no image, or its path is outside the Parquet file's folder.
        """
        group = bisect_right(self.groups, row) - 1
        with reading_parquet(self.path):
            if self._loaded[0] != group:
                self._loaded = group, self._file.read_row_group(group, columns=[self.column]).column(0)
            value = self._loaded[1][row - self.groups[group]].as_py()
        if isinstance(value, dict):
            name = value.get("path")
            if value.get("bytes") is None and isinstance(name, str) and name:
                return self._beside(name, row)
            value = value.get("bytes")
        if not isinstance(value, bytes):
            raise DataError(f"{self.path}, row {row}: there is no image in the column {self.column!r}")
        return BytesIO(value)

    def _beside(self, name: str, row: int) -> Path:
        """Path of a file in the Parquet file's folder; refuses a name that leads out of it."""
        inner = PurePath(name)
        if inner.is_absolute() or ".." in inner.parts or "\0" in name:
            raise DataError(
                f"{self.path}, row {row}: {shown(name)} leads out of the Parquet file's folder",
                hint="paths of images begin there; `bytes` keeps the images in the file itself",
            )
        return self.path.parent / inner


def open_parquet(path: Path) -> ParquetFile:
    """Opens a Parquet file with a column of images.

    Raises:
        DataError: the file has no column of images or no rows, or a row has no label.
    """
    import pyarrow.parquet as pq

    columns = image_columns(path)
    if columns is None:
        raise DataError(f"{path} has no column of images", hint="a struct of bytes and path, or bytes named `image`")
    image, label = columns
    values = None
    with reading_parquet(path):
        file = pq.ParquetFile(path)
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        groups = [0, *accumulate(counts)]
        size = path.stat().st_size
        if min(counts, default=0) < 0 or groups[-1] > size:
            raise ValueError(f"{groups[-1]} images in {size} bytes")
        if label is not None:
            values = file.read(columns=[label]).column(0).to_pylist()
    if groups[-1] == 0:
        raise DataError(f"{path} holds no rows")
    labels = None
    if values is not None:
        if len(values) != groups[-1]:
            raise DataError(
                f"{path} has {counted(len(values), 'label')} in the column {label!r} for {counted(groups[-1], 'image')}"
            )
        if None in values:
            raise DataError(f"{path}, row {values.index(None)}: there is no label in the column {label!r}")
        names = _class_names(file.schema_arrow, label)
        labels = [names[v] if isinstance(v, int) and 0 <= v < len(names) else str(v) for v in values]
    return ParquetFile(path, labels, image, groups, file)


def _class_names(schema: Any, label: str | None) -> list[str]:
    """Reads the names of the classes of a label column from the metadata that the `datasets` library writes."""
    try:
        written = (schema.metadata or {}).get(b"huggingface", b"{}")
        names = parse_json(written, "", error=DataError)["info"]["features"][label]["names"]
    except (KeyError, TypeError, IndexError, DataError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
