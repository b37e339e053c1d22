"""Compiled kernels on disk: a library and, beside it, its digest.

    ~/.cache/ternarize/bitblas/CARD-smXX-bitblasV-nvccV-V-N/int8-3072x768.so, .json        (or TERNARIZE_CACHE)

A library is read only if its digest is the recorded one, since loading a damaged one can end the process. Files are
written beside their place and renamed, the digest last; of two processes that write the same kernel one wins, and what
does not fit together is built anew.
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
from ternarize_cli.files import cache_folder, sha256
from ternarize_cli.kernels.bitblas import toolchain

__all__ = ["find", "folder", "keep", "unwritable", "workshop"]

_RECIPE = 1
"""To be raised when kernels are made in another way."""

_LOG = logging.getLogger(__name__)


def folder() -> Path:
    """Where kernels of this card and these versions are."""
    return cache_folder("bitblas") / f"{toolchain.card()}-{toolchain.versions()}-{__version__}-{_RECIPE}"


def unwritable() -> str | None:
    """Why kernels can't be kept, which makes every start a slow one; None if they can."""
    place = cache_folder("bitblas")
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        return None
    return f"bitblas can't keep its kernels in {cache_folder('bitblas')}, and builds them at every start"


def find(name: str) -> Path | None:
    """The library of that name, if it is there and whole."""
    library = folder() / f"{name}.so"
    try:
        recorded = json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))["sha256"]
        return library if sha256(library) == recorded else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(name: str, built: Path) -> Path:
    """Moves a library that was just built to its place; returns where it is, which is `built` if it can't be kept."""
    library = folder() / f"{name}.so"
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        record = json.dumps({"sha256": sha256(built)})
        for target in (library, library.with_suffix(".json")):
            partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
            if target is library:
                shutil.copyfile(built, partial)
            else:
                partial.write_text(record, encoding="utf-8")
            partial.replace(target)
    except OSError as e:
        _LOG.warning("bitblas: the kernel %s can't be kept: %s", name, e)
        return built
    return library


@lru_cache
def workshop() -> Path:
    """A folder for this process, removed when it ends."""
    made = Path(tempfile.mkdtemp(prefix="ternarize-bitblas-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made
