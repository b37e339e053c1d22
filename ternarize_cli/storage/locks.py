"""Locks open files and folders, so that two processes do not write to one place.

A lock belongs to the open file: the system releases it when the file is closed or its process ends, however it ends, so
that no lock outlives a killed process. The folder or file that is protected is locked itself; a lock file beside it
would have to stay there for ever.

Locks need `fcntl`, which Windows does not have. On Windows everything can be imported and models can be read; whatever
needs a lock raises UnavailableError (`require_locks`).
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
        descriptor: the descriptor of the file or folder.
        wait: wait while another process holds the lock.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
        UnavailableError: this platform has no locks.
        OSError: this file system has no locks.
    """
    require_locks()
    fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def lock_if_possible(descriptor: int) -> bool:
    """Locks an open file until it is closed; returns False if the platform or the file system has no locks.

    Raises:
        BlockingIOError: another process holds the lock.
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
    """Returns whether a file belongs to the user of this process; always True on Windows, which has no user ids."""
    return not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
