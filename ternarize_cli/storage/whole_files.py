"""Writes files by an atomic rename into folders to which many processes write at once.

A file is written as `NAME.<32 hex digits>.partial`, synced, and renamed. Its writer holds a lock on the partial file
meanwhile, so that `sweep` can tell it from partial files that killed processes have left, which it removes.
"""

import hashlib
import os
import re
import stat
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from ternarize_cli.storage.locks import is_own, lock_if_possible

__all__ = ["put_file", "sweep"]

_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
_SAFE = sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
"""Flags that keep `os.open` from following a link and from waiting for a pipe, as far as the platform has them."""
_DAY = 24 * 3600.0


def put_file(path: Path, write: Callable[[IO[bytes]], Any], *, mode: int = 0o666) -> str:
    """Writes a file, puts it in place by an atomic rename, and returns the sha256 of its content in hex.

    Args:
        path: the file; an older file of this path is replaced.
        write: writes the content to the binary stream that it is given.
        mode: permission bits of the file, from which the process's umask is taken away.

    Raises:
        OSError: the file can't be written. An older file is then still in place.
    """
    partial, stream = _new(path, mode)
    try:
        with stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            with partial.open("rb") as written:
                digest = hashlib.file_digest(written, "sha256").hexdigest()
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return digest


def sweep(folder: Path) -> None:
    """Removes partial files from a folder that were left by processes killed while they wrote.

    Only regular files of this user are removed that no process has locked. Where the file system has no locks, files
    are removed that are older than a day.
    """
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if _PARTIAL.fullmatch(path.name):
                with suppress(OSError):
                    _sweep(path)


def _sweep(path: Path) -> None:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or not is_own(status):
        return
    descriptor = os.open(path, os.O_RDWR | _SAFE)
    try:
        if lock_if_possible(descriptor) or time.time() - status.st_mtime > _DAY:
            path.unlink()
    except BlockingIOError:  # it is being written
        pass
    finally:
        os.close(descriptor)


def _new(path: Path, mode: int) -> tuple[Path, IO[bytes]]:
    """Makes a partial file for `path` with the permission bits `mode`, locks it, returns its path and stream."""
    while True:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        stream = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, mode), "w+b")
        with suppress(BlockingIOError):  # another process is sweeping: it takes the new file for a left one
            lock_if_possible(stream.fileno())
            if os.fstat(stream.fileno()).st_nlink:
                return partial, stream
        stream.close()
