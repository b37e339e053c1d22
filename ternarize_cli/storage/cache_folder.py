"""Keeps results between runs, in folders that nobody else can write to.

    ~/.cache/ternarize/KIND/…       KIND: scores, bitblas, gpu, rivals, indexes

TERNARIZE_CACHE names another folder in place of ~/.cache/ternarize. Without it platformdirs says where caches lie: on
Linux in ~/.cache or XDG_CACHE_HOME, on macOS in ~/Library/Caches.

Compiled kernels are loaded into the process, and scores are believed, so whatever another user could have put there is
refused: folders and files must belong to this user or to root, and be writable by nobody else. Folders are made with
mode 0700 and files with 0600. Each file appears by an atomic rename, however many processes write at once
(`whole_files`).
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import platformdirs

from ternarize_cli.errors import InputError, quoted
from ternarize_cli.storage.whole_files import put_file, sweep

__all__ = ["cache_folder", "check_own", "keep_file", "made_folder"]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NOWHERE = Path("/nonexistent/.cache/ternarize")
"""The cache folder of a user without a home: it does not exist, so nothing is kept."""


def cache_folder(kind: str) -> Path:
    """Returns the folder for results of one kind, in TERNARIZE_CACHE or in the user's cache folder; it may not exist.

    Args:
        kind: the name of the folder, such as "scores".

    Raises:
        InputError: the folder or the one above it exists, and belongs to another user or is writable by others.
    """
    own = os.environ.get("TERNARIZE_CACHE")
    try:
        folder = Path(own).expanduser() if own else platformdirs.user_cache_path("ternarize", appauthor=False)
    except RuntimeError:  # the user has no home
        folder = _NOWHERE
    if not own and not folder.is_absolute():  # so older versions of platformdirs say it
        folder = _NOWHERE
    check_own(folder)
    check_own(folder / kind)
    return folder / kind


def check_own(path: Path) -> bool:
    """Returns whether a file or folder of the cache exists, and checks that nobody else could have written to it.

    On Windows neither owner nor mode is checked, as they say nothing there: the cache lies in the user's own profile.

    Raises:
        InputError: the file or folder exists, and belongs to another user, is a link that belongs to another user, or
            is writable by others.
    """
    try:
        states = [path.lstat()]
        if stat.S_ISLNK(states[0].st_mode):
            states.append(path.stat())
    except OSError:
        return False
    if not hasattr(os, "geteuid"):
        return True
    for status in states:
        if status.st_uid not in (os.geteuid(), 0):
            raise InputError(
                f"{path} is of another user (uid {status.st_uid}), who could have put anything into it",
                hint="remove it, or set TERNARIZE_CACHE to a folder of your own",
            )
    if states[-1].st_mode & _OTHERS:
        raise InputError(
            f"{path} can be written by other users (mode {stat.S_IMODE(states[-1].st_mode):04o}), "
            "and what is kept there is loaded and believed",
            hint=f"chmod -R go-w {quoted(path)}",
        )
    return True


def made_folder(folder: Path) -> Path:
    """Makes a folder of the cache and its missing parents with mode 0700, and returns it.

    Raises:
        InputError: the folder exists, and belongs to another user or is writable by others.
        OSError: the folder can't be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(0o700, exist_ok=True)
    check_own(folder)
    return folder


def keep_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes or replaces a file of the cache, and removes partial files that killed processes have left in its folder.

    Args:
        path: the file.
        write: writes the content to the binary stream that it is given.

    Raises:
        InputError: the folder exists, and belongs to another user or is writable by others.
        OSError: the file can't be written.
    """
    made_folder(path.parent)
    sweep(path.parent)
    put_file(path, write, mode=0o600)
