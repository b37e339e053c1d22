"""IDX, CIFAR and Parquet: files that hold many images.

IDX, big-endian, as MNIST introduced it; a `.gz` of either is unpacked into memory, anything else is memory-mapped:

    images   00 00 08 03   count u32   height u32   width u32   count · height · width bytes, row by row
    labels   00 00 08 01   count u32   count bytes

CIFAR, the binary version (https://www.cs.toronto.edu/~kriz/cifar.html), is records of bytes; the names of the classes
are in a file beside it, by which it is recognised. The Python version is pickles, which may run code, and is not read:

    CIFAR-10     batches.meta.txt         label                        1024 red, 1024 green, 1024 blue, row by row
    CIFAR-100    fine_label_names.txt     coarse label   fine label    the same

Parquet files are read one row group at a time.
"""

import gzip
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from ternarize_cli.errors import DataError

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
_LABEL_COLUMNS = ("label", "labels", "fine_label")


class ImageFile(Protocol):
    """A file of images: as many as its length, `labels` one for each or None."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def labels(self) -> Sequence[str] | None:
        """One label for each image."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> "Path | IO[bytes] | Image":
        """An image, or what PIL opens as one."""


@dataclass(frozen=True)
class PixelFile:
    """Images in one array; `pixels`: uint8 `[count, height, width]`, grey, or `[count, height, width, 3]`."""

    path: Path
    pixels: np.ndarray = field(repr=False)
    labels: Sequence[str] | None = field(repr=False)

    def __len__(self) -> int:
        return len(self.pixels)

    def read(self, row: int) -> "Image":
        """An image."""
        from PIL import Image

        return Image.fromarray(np.ascontiguousarray(self.pixels[row]))


def open_idx(path: Path) -> PixelFile:
    """Opens an IDX file of images, with its labels if they are beside it.

    Raises:
        DataError: a file is no IDX file of its kind, is cut off or too long, or the counts differ.
    """
    pixels = _read_idx(path, dimensions=3)
    stem = path.name.replace("images", "labels").replace("idx3", "idx1").removesuffix(".gz")
    beside = [path.with_name(name) for name in (stem, f"{stem}.gz") if path.with_name(name).is_file()]
    if not beside:
        return PixelFile(path, pixels, None)
    labels = _read_idx(beside[0], dimensions=1)
    if len(labels) != len(pixels):
        raise DataError(f"{beside[0]} has {len(labels)} labels, {path} has {len(pixels)} images")
    return PixelFile(path, pixels, [str(label) for label in labels])


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                content: np.ndarray = np.frombuffer(stream.read(), np.uint8)
        else:
            content = np.memmap(path, np.uint8, mode="r") if path.stat().st_size else np.empty(0, np.uint8)
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path} can't be read: {e}", hint="fetch the file again") from e
    header = 4 + 4 * dimensions
    magic = bytes(content[:4])
    if magic != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path} is no IDX file of {'images' if dimensions == 3 else 'labels'}: it starts with "
            f"{magic.hex(' ') or 'nothing'}, not {bytes([0, 0, 8, dimensions]).hex(' ')}"
        )
    if len(content) < header:
        raise DataError(f"{path} is cut off within its header: {len(content)} bytes", hint="fetch the file again")
    shape = tuple(int(n) for n in np.frombuffer(content[4:header].tobytes(), ">u4"))
    expected = int(np.prod(shape, dtype=object))
    if len(content) - header != expected or not expected:
        described = " × ".join(map(str, shape))
        raise DataError(
            f"{path}: the header says {described} = {expected} bytes, {len(content) - header} follow",
            hint="fetch the file again",
        )
    return content[header:].reshape(shape)


def is_cifar(path: Path) -> bool:
    """Whether this is a file of CIFAR's binary version, by its name and the file of names beside it."""
    return _CIFAR.fullmatch(path.name) is not None and any(path.with_name(n).is_file() for n, _ in _CIFAR_NAMES)


def open_cifar(path: Path) -> PixelFile:
    """Opens a file that `is_cifar`; the label is the class's name (CIFAR-100: of the fine classes).

    Raises:
        DataError: it is cut off, or has a label without a name.
    """
    names_file, width = next((path.with_name(name), n) for name, n in _CIFAR_NAMES if path.with_name(name).is_file())
    names = names_file.read_text(encoding="utf-8").split()
    size = path.stat().st_size
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
    """The columns of images and labels in a Parquet file; None if no column holds images.

    Images are a struct of `bytes` and `path`, whatever the column's name, or plain bytes named `image` or `img`.

    Raises:
        DataError: this is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowInvalid, OSError) as e:
        raise DataError(f"{path} is no Parquet file: {e}", hint="fetch the file again") from e
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
    """The images of one file; `groups` has the first row of each row group and the number of rows at its end."""

    path: Path
    labels: Sequence[str] | None = field(repr=False)
    column: str
    groups: list[int] = field(repr=False)
    _file: Any = field(repr=False)
    _loaded: tuple[int, Any] = field(default=(-1, None), repr=False)

    def __len__(self) -> int:
        return self.groups[-1]

    def read(self, row: int) -> Path | IO[bytes]:
        """The encoded image, or the file that the row names."""
        group = next(i for i in range(len(self.groups)) if row < self.groups[i + 1])
        if self._loaded[0] != group:
            self._loaded = group, self._file.read_row_group(group, columns=[self.column]).column(0)
        value = self._loaded[1][row - self.groups[group]].as_py()
        if isinstance(value, dict):
            if value["bytes"] is None and value["path"]:
                return self.path.parent / value["path"]
            value = value["bytes"]
        if value is None:
            raise DataError(f"{self.path}, row {row}: there is no image in the column {self.column!r}")
        return BytesIO(value)


def open_parquet(path: Path) -> ParquetFile:
    """Opens a Parquet file that `image_columns` finds images in.

    Raises:
        DataError: it holds no rows, or a row has no label.
    """
    import pyarrow.parquet as pq

    columns = image_columns(path)
    if columns is None:
        raise DataError(f"{path} has no column of images", hint="a struct of bytes and path, or bytes named `image`")
    image, label = columns
    file = pq.ParquetFile(path)
    groups = [0]
    for i in range(file.num_row_groups):
        groups.append(groups[-1] + file.metadata.row_group(i).num_rows)
    if groups[-1] == 0:
        raise DataError(f"{path} holds no rows")
    labels = None
    if label is not None:
        values = file.read(columns=[label]).column(0).to_pylist()
        if None in values:
            raise DataError(f"{path}, row {values.index(None)}: there is no label in the column {label!r}")
        names = _class_names(file.schema_arrow, label)
        labels = [names[v] if isinstance(v, int) and 0 <= v < len(names) else str(v) for v in values]
    return ParquetFile(path, labels, image, groups, file)


def _class_names(schema: Any, label: str) -> list[str]:
    """What the `datasets` library calls the classes of a label column, from the metadata it writes."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        names = features[label]["names"]
    except (KeyError, TypeError, json.JSONDecodeError):
        return []
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
