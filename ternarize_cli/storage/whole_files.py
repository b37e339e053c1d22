"""Files that appear whole in folders to which many processes write at once.

A file is written as `NAME.<32 hex digits>.partial`, synced, and renamed. Its writer holds a lock on it meanwhile, so
that another process can tell it from what a killed one has left, which `sweep` removes.
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
"""Flags by which a link is not followed and a pipe not waited for, as far as the platform has them."""
_DAY = 24 * 3600.0


def put_file(path: Path, write: Callable[[IO[bytes]], Any], *, mode: int = 0o666) -> str:
    """Writes a file, which replaces at once what is there; returns its sha256.

    Args:
        path: of the file.
        write: writes the content to a stream.
        mode: of the file, less what the process's umask forbids.

    Raises:
        OSError: it can't be written; what was there is still there.
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
    """Removes what processes that were killed while they wrote a file have left in a folder.

    It takes regular files of this user only that no process has locked; where the file system has no locks, those that
    are a day old.
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
    """A new partial file, locked."""
    while True:
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
        stream = os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFE, mode), "w+b")
        with suppress(BlockingIOError):  # another process takes it for what a killed one has left
            lock_if_possible(stream.fileno())
            if os.fstat(stream.fileno()).st_nlink:
                return partial, stream
        stream.close()
