"""Makes folders that show the files of another folder in another order, without copying them.

A view is a temporary folder of links, which is removed when the process ends. Code that guards the files of a model
asks for its `origin`: the folder that the links lead to.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["new_view", "origin"]

_ORIGINS: dict[Path, Path] = {}


def new_view(folder: Path) -> Path:
    """Makes an empty folder with the name of `folder`, in which a view of it can be put together."""
    parent = tempfile.mkdtemp(prefix="ternarize-")
    atexit.register(_remove, parent, os.getpid())
    view = Path(parent).resolve() / (folder.resolve().name or "model")
    view.mkdir()
    _ORIGINS[view] = folder.resolve()
    return view


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # a forked child runs this, too
        shutil.rmtree(folder, ignore_errors=True)


def origin(folder: Path) -> Path:
    """Returns the folder that a view shows, or for any other folder its own path, with links resolved."""
    resolved = folder.resolve()
    return _ORIGINS.get(resolved, resolved)
