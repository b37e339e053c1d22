"""What is kept between runs, in folders that nobody else can write.

    ~/.cache/ternarize/KIND/…       KIND: scores, bitblas, gpu, rivals, indexes

TERNARIZE_CACHE names another folder in place of ~/.cache/ternarize. Without it platformdirs says where caches lie: on
Linux in ~/.cache or XDG_CACHE_HOME, on macOS in ~/Library/Caches.

Compiled kernels are loaded into the process, and scores are believed, so what another user could have put there is
refused: folders and files must be of this user or of root, and writable by nobody else. Folders are made with mode 0700
and files with 0600. Files appear whole, however many processes write at once (`whole_files`).
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import platformdirs

from ternarize_cli.errors import InputError
from ternarize_cli.storage.whole_files import put_file, sweep

__all__ = ["cache_folder", "check_own", "keep_file", "made_folder"]

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_NOWHERE = Path("/nonexistent/.cache/ternarize")
"""Where nothing is kept: the cache folder of a user without a home."""


def cache_folder(kind: str) -> Path:
    """Where results of one kind are kept, in TERNARIZE_CACHE or in the user's cache folder; it may be missing.

    Args:
        kind: the name of the folder.

    Raises:
        InputError: the folder exists, and others can write to it.
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
    """Whether a file or folder of the cache exists, after a check that nobody else could have written to it.

    On Windows the owner and the mode say nothing, and are not looked at: the user's profile is the user's.

    Raises:
        InputError: it exists, and is of another user, or is a link of another user, or others can write to it.
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
            hint=f"chmod -R go-w {path}",
        )
    return True


def made_folder(folder: Path) -> Path:
    """Makes a folder of the cache, and those above it that are missing, for this user alone.

    Raises:
        InputError: the folder exists, and others can write to it.
        OSError: the folder can't be made.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(0o700, exist_ok=True)
    check_own(folder)
    return folder


def keep_file(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Puts a file into the cache, in place of what is there, and removes what killed processes have left beside it.

    Raises:
        InputError: the folder exists, and others can write to it.
        OSError: the file can't be written.
    """
    made_folder(path.parent)
    sweep(path.parent)
    put_file(path, write, mode=0o600)
