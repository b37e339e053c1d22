"""Opens files of text as streams of UTF-8 bytes: unpacks compressed ones, and converts UTF-16 and UTF-32.

The first bytes decide, and then the name:

    gzip, bzip2, xz    read by Python's own modules
    zstd, LZ4          read by Arrow
    UTF-16, UTF-32     read if the file starts with a byte order mark, as files that Windows exports do

Archives and binary files that hold no plain text are refused, with the program that takes the text out of them.
"""

import bz2
import codecs
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from ternarize_cli.errors import DataError, reason

__all__ = ["as_text", "decoded", "inner_suffix", "is_packed", "open_text", "reading"]

_PACKED = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".lzma": "xz", ".zst": "zstd", ".zstd": "zstd", ".lz4": "lz4"}
_MAGIC = {
    b"\x1f\x8b\x08": "gzip",
    **{b"BZh%d1AY&SY" % level: "bz2" for level in range(1, 10)},
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
}
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_BINARY = {
    b"PK\x03\x04": ("a ZIP archive or an Office document", "unzip it and pass the text files inside"),
    b"PK\x05\x06": ("an empty ZIP archive", "pass a file of texts"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x it and pass the text files inside"),
    b"Rar!\x1a\x07": ("a RAR archive", "unrar x it and pass the text files inside"),
    b"\x1f\x9d": ("a file of the program compress", "uncompress it and pass the file inside"),
    b"\xd0\xcf\x11\xe0": ("an old Office document", "save it as plain text or CSV"),
    b"%PDF-": ("a PDF document", "pdftotext makes plain text of it"),
    b"PAR1": ("a Parquet file", "let its name end in .parquet"),
    b"ARROW1\0\0": ("an Arrow file", "write it as Parquet: pyarrow.parquet.write_table"),
    b"SQLite format 3\0": ("an SQLite database", "write its texts as JSONL: one object with `text` a line"),
    b"\x93NUMPY": ("an array of NumPy", "pass the texts, not their vectors"),
    b"\x89PNG": ("an image", "let its name end in .png"),
    b"\xff\xd8\xff": ("an image", "let its name end in .jpg"),
}
_FIRST = 512
_TAR = slice(257, 262)
_CONTROL = bytes(set(range(32)) - set(b"\t\n\v\f\r\x1b")) + b"\x7f"


def inner_suffix(path: str | Path) -> str:
    """The lower-case suffix of a file's name without that of its compression: `.jsonl` for `a.JSONL.gz`."""
    name = Path(Path(path).name.lower())
    return (Path(name.stem) if name.suffix in _PACKED else name).suffix


def is_packed(path: Path) -> bool:
    """Whether a regular file is compressed, by its name or else by its first bytes; False if it can't be read."""
    if path.suffix.lower() in _PACKED:
        return True
    try:
        with path.open("rb") as stream:
            return _starting(stream.read(_FIRST), _MAGIC) is not None
    except OSError:
        return False


@contextmanager
def open_text(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for reading as UTF-8 bytes, until the body ends.

    Raises:
        DataError: the file can't be read, is an archive or another binary file, or is damaged; the last also in the
            body, while it reads.
    """
    with reading(str(path)), path.open("rb") as stream:
        yield as_text(stream, str(path), _PACKED.get(path.suffix.lower()))


def as_text(stream: Any, name: str, packed: str | None = None) -> IO[bytes]:
    """Makes a stream of UTF-8 bytes of a stream that is open for reading bytes.

    Args:
        stream: the stream.
        name: its name in messages.
        packed: how the name says that it is compressed; None if it does not say so.

    Raises:
        DataError: the stream holds an archive or another binary file.
    """
    stream = _buffered(stream)
    if packed := _starting(stream.peek(_FIRST), _MAGIC) or packed:
        stream = _buffered(_unpacked(stream, packed))
    first = stream.peek(_FIRST)
    if encoding := _starting(first, _BOMS):
        return cast(IO[bytes], _buffered(_Utf8(stream, encoding, name)))
    what = _starting(first, _BINARY)
    if first[_TAR] == b"ustar":
        what = "a tar archive", "unpack it and pass the text files inside"
    if what:
        raise DataError(f"{name} is {what[0]}, not a file of text", hint=what[1])
    return cast(IO[bytes], stream)


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns errors of the body, which opens or reads a stream of `as_text`, into a DataError that names the stream."""
    try:
        yield
    except _damages() as e:
        raise DataError(f"{name} can't be unpacked: {reason(e)}", hint="fetch the file again") from e
    except OSError as e:
        if e.errno is None:  # of a decompressor, not of the system
            raise DataError(f"{name} can't be unpacked: {reason(e)}", hint="fetch the file again") from e
        raise DataError(f"{name} can't be read: {e.strerror or e}", hint="pass a file of texts, or a pipe") from e


def _damages() -> tuple[type[Exception], ...]:
    """Lists the errors of damaged streams; those of pyarrow only once a stream that it unpacks has imported it."""
    arrow: Any = sys.modules.get("pyarrow")
    ours = (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError)
    return ours if arrow is None else (*ours, arrow.ArrowException)


def decoded(raw: bytes, where: str) -> str:
    """Decodes a line of UTF-8.

    Raises:
        DataError: the line is not UTF-8, or holds a NUL; the hint says how to convert the file, if it seems to be text.
    """
    try:
        text = raw.decode()
        if "\0" not in text:
            return text
        why = f"a NUL at byte {raw.index(0) + 1}"
    except UnicodeDecodeError as e:
        why = f"not UTF-8 text (byte {e.start + 1} is 0x{raw[e.start]:02x})"
    raise DataError(f"{where}: {why}", hint=_conversion(raw))


def _conversion(raw: bytes) -> str:
    """Says how to make UTF-8 of a file that holds this line."""
    zeros = raw[:_FIRST].count(0), raw[:_FIRST:2].count(0), raw[1:_FIRST:2].count(0)
    if zeros[0] > len(raw[:_FIRST]) / 4 and min(zeros[1:]) == 0:
        return f"it seems to be UTF-16: iconv -f utf-16{'be' if zeros[1] else 'le'} -t utf-8 FILE"
    if raw.translate(None, _CONTROL) != raw:
        return "this seems to be no file of text; pass plain text, JSONL, JSON, CSV, TSV or Parquet"
    return "save the file as UTF-8, e.g. iconv -f latin1 -t utf-8 FILE; a file has one encoding"


def _starting(first: bytes, table: dict[bytes, Any]) -> Any:
    """Finds the value of the first key in a table that some bytes start with; None if there is none."""
    return next((value for magic, value in table.items() if first.startswith(magic)), None)


def _buffered(stream: Any) -> Any:
    return stream if hasattr(stream, "peek") else io.BufferedReader(stream)


def _unpacked(stream: Any, packed: str) -> Any:
    if packed == "gzip":
        return gzip.GzipFile(fileobj=stream)
    if packed == "bz2":
        return bz2.BZ2File(stream)
    if packed == "xz":
        return lzma.LZMAFile(stream)
    import pyarrow as pa

    return pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), packed)


class _Utf8(io.RawIOBase):
    """Converts a stream in another encoding to UTF-8 while it is read."""

    def __init__(self, stream: Any, encoding: str, name: str) -> None:
        self._stream, self._encoding, self._name = stream, encoding, name
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            raw = self._stream.read1(io.DEFAULT_BUFFER_SIZE)
            try:
                self._left = self._decoder.decode(raw, final=not raw).encode()
            except UnicodeError as e:
                raise DataError(
                    f"{self._name} is not valid {self._encoding.upper()}: {reason(e)}", hint="save the file as UTF-8"
                ) from e
            if not raw:
                break
        count = min(len(buffer), len(self._left))
        buffer[:count], self._left = self._left[:count], self._left[count:]
        return count
