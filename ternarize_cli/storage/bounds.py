"""Reads files that somebody else wrote, within bounds on their kind, size and depth.

A file may be a pipe that nobody writes to, a device without an end, a JSON text of a million brackets, or one line of
many gigabytes. Whatever reads such files goes through the functions here, so that each of these ends in an error that
names the file, and neither waits for ever nor fills the memory.

    regular files only    a pipe, a device, a socket or a folder is refused without opening it
    bytes                 MAX_CONFIG for a config, MAX_TOKENIZER for a tokenizer or vocabulary, MAX_LINE for a line
    depth                 MAX_DEPTH levels of lists and objects in JSON, MAX_FOLDERS of folders
    memory                MAX_HELD for texts that are kept as a whole: a small .gz may unpack to a large file
"""

import json
import os
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from ternarize_cli.errors import CheckpointError, TernarizeError, reason

__all__ = [
    "MAX_CONFIG",
    "MAX_DEPTH",
    "MAX_FOLDERS",
    "MAX_HELD",
    "MAX_LINE",
    "MAX_TOKENIZER",
    "Held",
    "deeper_than",
    "lines_of",
    "optional_object",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_object",
    "require_regular",
    "user_path",
    "utf8_name",
    "walk",
]

MAX_CONFIG = 32 << 20
"""The most bytes that a config, or a list of modules or shards, may have."""
MAX_TOKENIZER = 512 << 20
"""The most bytes that the file of a tokenizer or vocabulary may have; the largest in use have some 35 million."""
MAX_LINE = 16 << 20
"""The most bytes that a line of text may have."""
MAX_DEPTH = 64
"""The most levels of lists and objects that JSON may have."""
MAX_FOLDERS = 64
"""The most levels of folders that a folder of texts may have below it."""


def _half_of_memory() -> int:
    try:
        import resource
    except ImportError:  # Windows, where a process has no such limit
        import psutil

        return int(psutil.virtual_memory().total) // 2
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return (memory if limit == resource.RLIM_INFINITY else min(memory, limit)) // 2


MAX_HELD = _half_of_memory()
"""The most bytes of texts kept in memory as a whole: half of what the machine has, or of what `ulimit -v` allows."""


def require_regular(path: Path, error: type[TernarizeError] = CheckpointError) -> os.stat_result:
    """Checks that a path is a regular file, or a link to one, without opening it; returns its status.

    Raises:
        TernarizeError (of the class `error`): the path is missing, or is a pipe, device, socket or folder.
    """
    try:
        status = path.stat()
    except OSError as e:
        raise error(f"{path} can't be read: {e.strerror}", hint="fetch the file again") from e
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise error(f"{path} is {kind}, where a file belongs", hint="put the file in its place")
    return status


def read_bytes(path: Path, *, limit: int = MAX_CONFIG, error: type[TernarizeError] = CheckpointError) -> bytes:
    """Reads the content of a regular file of at most `limit` bytes.

    Raises:
        TernarizeError (of the class `error`): the path is no regular file, or the file is larger than `limit` or can't
            be read.
    """
    size = require_regular(path, error).st_size
    if size <= limit:
        try:
            with path.open("rb") as stream:
                content = stream.read(limit + 1)
        except OSError as e:
            raise error(f"{path} can't be read: {e.strerror}") from e
        if len(content) <= limit:
            return content
    raise error(f"{path} is larger than the {limit:,} bytes that such a file may have", hint="fetch the file again")


def read_json(path: Path, *, limit: int = MAX_CONFIG, error: type[TernarizeError] = CheckpointError) -> Any:
    """Reads the value in a JSON file of at most `limit` bytes.

    Raises:
        TernarizeError (of the class `error`): the path is no regular file, or the file is larger than `limit`, can't be
            read, is not UTF-8, is no JSON, or is nested deeper than MAX_DEPTH.
    """
    return parse_json(read_bytes(path, limit=limit, error=error), str(path), error=error)


def read_object(
    path: Path, *, limit: int = MAX_CONFIG, error: type[TernarizeError] = CheckpointError
) -> dict[str, Any]:
    """Reads the object in a JSON file of at most `limit` bytes.

    Raises:
        TernarizeError (of the class `error`): the path is no regular file, or the file is larger than `limit`, can't be
            read, is not UTF-8, is nested deeper than MAX_DEPTH, or holds no JSON object.
    """
    values = read_json(path, limit=limit, error=error)
    if not isinstance(values, dict):
        raise error(f"{path} holds no JSON object", hint="fetch the file again")
    return values


def optional_object(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file as `read_object` does; an empty one if there is no such file.

    Raises:
        CheckpointError: as `read_object`.
    """
    return read_object(path) if path.is_file() else {}


def parse_json(
    text: str | bytes,
    where: str,
    *,
    error: type[TernarizeError] = CheckpointError,
    hint: str = "fetch the file again",
) -> Any:
    """Parses a JSON text into the value that it stands for.

    Args:
        text: the text; bytes are decoded as UTF-8.
        where: the name of the text in messages: a file, or a file and a line.
        error: the class of the error to raise.
        hint: the hint of the error.

    Raises:
        TernarizeError (of the class `error`): the text is not UTF-8, is no JSON, or is nested deeper than MAX_DEPTH.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(text)
        if not deeper_than(value, MAX_DEPTH):
            return value
        why = f"it is nested more than {MAX_DEPTH} levels deep"
    except RecursionError:
        why = f"it is nested more than {MAX_DEPTH} levels deep"
    except ValueError as e:  # no UTF-8, no JSON, or a number of thousands of digits
        why = reason(e)
        if isinstance(e, UnicodeDecodeError) or text[:1] == "\ufeff":
            why, hint = "it is not UTF-8, or begins with a byte order mark", "save it as UTF-8 without such a mark"
    raise error(f"{where} is not valid JSON: {why}", hint=hint)


def deeper_than(value: Any, levels: int) -> bool:
    """Returns whether lists and dicts are nested more than `levels` deep in a value."""
    row = [value] if isinstance(value, dict | list) else []
    for _ in range(levels):
        inner = (v for one in row for v in (one.values() if isinstance(one, dict) else one))
        row = [v for v in inner if isinstance(v, dict | list)]
        if not row:
            return False
    return True


def lines_of(stream: IO[bytes], where: str, error: type[TernarizeError], *, limit: int = MAX_LINE) -> Iterator[bytes]:
    """Yields the lines of a stream with their line breaks.

    Args:
        stream: a stream that is open for reading bytes.
        where: the name of the stream in messages.
        error: the class of the error to raise.
        limit: the most bytes that a line may have.

    Raises:
        TernarizeError (of the class `error`): a line has more than `limit` bytes.
    """
    for number, line in enumerate(iter(partial(stream.readline, limit + 1), b""), start=1):
        if len(line) > limit:
            raise error(
                f"{where} line {number} is longer than the {limit:,} bytes that a line may have",
                hint="one text per line; is this a text file?",
            )
        yield line


def walk(folder: Path, error: type[TernarizeError]) -> Iterator[Path]:
    """Yields the regular files in a folder and the folders below it, links to such files included, in no order.

    Hidden files and folders, special files and links that lead nowhere are left out. Links to folders are not followed.

    Raises:
        TernarizeError (of the class `error`): a folder can't be read, or folders are nested deeper than MAX_FOLDERS.
    """
    folders = [(folder, 0)]
    while folders:
        here, level = folders.pop()
        if level > MAX_FOLDERS:
            raise error(f"{folder} holds folders more than {MAX_FOLDERS} levels deep", hint="pass a folder inside it")
        try:
            with os.scandir(here) as found:
                entries = [entry for entry in found if not entry.name.startswith(".")]
            inner = [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError as e:
            raise error(f"{here} can't be read: {e.strerror}", hint="check the permissions of the folder") from e
        folders += ((Path(entry.path), level + 1) for entry in inner)
        yield from (Path(entry.path) for entry in entries if os.path.isfile(entry.path))


def user_path(path: str | Path) -> Path:
    """Expands a leading `~` or `~USER` in a path; a path whose user does not exist stays unchanged."""
    return Path(os.path.expanduser(path))


def utf8_name(path: str | Path) -> str:
    r"""Makes a path printable as UTF-8: bytes that are not UTF-8 become escapes such as `\xff`."""
    return os.fsencode(path).decode(errors="backslashreplace")


class Held:
    """Counts texts that are kept in memory, so that a small file that unpacks to a large one is refused.

    Args:
        where: the name of the source of the texts in messages.
        error: the class of the error to raise.
    """

    def __init__(self, where: str, error: type[TernarizeError]) -> None:
        self._where, self._error = where, error
        self._bytes = 0

    def add(self, text: str) -> None:
        """Counts a text that is now kept.

        Raises:
            TernarizeError (of the class `error`): all counted texts together take more than MAX_HELD bytes.
        """
        self._bytes += sys.getsizeof(text) + 8
        if self._bytes > MAX_HELD:
            raise self._error(
                f"{self._where} holds more than {MAX_HELD:,} bytes of text, which are half of the memory here",
                hint="pass a smaller file: all texts of this one are kept in memory",
            )

    def drop(self, text: str) -> None:
        """Stops counting a text that is no longer kept."""
        self._bytes -= sys.getsizeof(text) + 8
