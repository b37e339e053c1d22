"""Keeps compiled kernels on disk: a library and, beside it, its digest.

    ~/.cache/ternarize/bitblas/CARD-smXX-bitblasV-nvccV-V-N/int8-3072x768.so, .json        (or TERNARIZE_CACHE)

A library is loaded only if its digest is the recorded one, because loading a damaged library can end the process, and
only if no other user could have put it there (`storage.cache_folder`). Files appear whole, the digest last. If two
processes write one kernel, one of them wins; a library that does not fit its digest is built anew.
"""

import atexit
import json
import logging
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from ternarize_cli import __version__
from ternarize_cli.errors import InputError
from ternarize_cli.kernels.bitblas import toolchain
from ternarize_cli.storage.cache_folder import cache_folder, check_own, keep_file
from ternarize_cli.storage.digests import sha256

__all__ = ["find", "folder", "keep", "unwritable", "workshop"]

_RECIPE = 1
"""A version number; raise it when kernels are made in another way."""

_LOG = logging.getLogger(__name__)


def folder() -> Path:
    """The folder of the kernels for this GPU and these versions.

    Raises:
        InputError: other users can write to the cache.
    """
    return cache_folder("bitblas") / f"{toolchain.card()}-{toolchain.versions()}-{__version__}-{_RECIPE}"


def unwritable() -> str | None:
    """Says why kernels can't be kept, so that every start is slow; None if they can."""
    try:
        place = wanted = cache_folder("bitblas")
    except InputError as e:
        return f"{e} ({e.hint})"
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return None
    return f"bitblas can't keep its kernels in {wanted}, and builds them at every start"


def find(name: str) -> Path | None:
    """Finds the library of a kernel; None if it is missing or damaged.

    Raises:
        InputError: the library, or a folder that holds it, belongs to another user, or other users can write to it.
    """
    library = folder() / f"{name}.so"
    record = library.with_suffix(".json")
    if not all(check_own(path) for path in (library.parent, library, record)):
        return None
    try:
        recorded = json.loads(record.read_text(encoding="utf-8"))["sha256"]
        return library if sha256(library) == recorded else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(name: str, built: Path) -> Path:
    """Copies a new library into the cache; returns the path of the copy, or `built` if it can't be kept.

    Raises:
        InputError: other users can write to the cache.
    """
    library = folder() / f"{name}.so"
    record = json.dumps({"sha256": sha256(built)}).encode()
    try:
        with built.open("rb") as content:
            keep_file(library, lambda stream: shutil.copyfileobj(content, stream))
        keep_file(library.with_suffix(".json"), lambda stream: stream.write(record))
    except OSError as e:
        _LOG.warning("bitblas: the kernel %s can't be kept: %s", name, e)
        return built
    return library


@lru_cache
def workshop() -> Path:
    """Makes a temporary folder for this process, removed when the process ends."""
    made = Path(tempfile.mkdtemp(prefix="ternarize-bitblas-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
