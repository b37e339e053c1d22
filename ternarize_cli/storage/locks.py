"""Locks on open files and folders, by which processes keep out of each other's way.

A lock belongs to the open file: the system drops it when the file is closed or its process ends, however it ends, so
that no lock outlives a process that was killed. It is taken on what is protected itself, a folder or a file that is
being written, and not on a file beside it that would have to stay there for ever.

Locks need `fcntl`, which Windows does not have. There everything can be imported and models can be read, and what
needs a lock is refused in words (`require_locks`).
"""

import errno
import os

from ternarize_cli.errors import UnavailableError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["is_own", "lock", "lock_if_possible", "require_locks"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def require_locks() -> None:
    """Checks that this platform has locks.

    Raises:
        UnavailableError: Python has no module `fcntl` here.
    """
    if fcntl is None:
        raise UnavailableError(
            "ternarize can't write here: this platform has no locks on files (Python's module fcntl is missing)",
            hint="use Linux or macOS; on Windows, the Windows Subsystem for Linux",
        )


def lock(descriptor: int, *, wait: bool = False) -> None:
    """Locks an open file or folder until it is closed.

    Args:
        descriptor: of the file or folder.
        wait: for another process that has locked it.

    Raises:
        BlockingIOError: another process has locked it, and `wait` is false.
        UnavailableError: this platform has no locks.
        OSError: this file system has no locks.
    """
    require_locks()
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_if_possible(descriptor: int) -> bool:
    """Locks an open file until it is closed; False where the platform or the file system has no locks.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if fcntl is None:
        return False
    try:
        lock(descriptor)
    except BlockingIOError:
        raise
    except OSError as e:
        if e.errno in _NO_LOCKS:
            return False
        raise
    return True


def is_own(status: os.stat_result) -> bool:
    """Whether a file belongs to the user that this process runs as; always on Windows, which has no user numbers."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
