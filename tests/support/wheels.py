"""Wheels of models, and processes that can import nothing but such a wheel, NumPy and tokenizers."""

import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export

__all__ = ["MAIN", "alone", "site_of", "wheel_of"]

MAIN = "import runpy; sys.argv[0] = 'my_minilm'; runpy.run_module('my_minilm', run_name='__main__')"
"""A program for `alone` that is `python -m my_minilm`."""


def wheel_of(packed: Path, output: Path, **options: Any) -> Path:
    """The wheel my_minilm of a packed model."""
    made = export(packed, output, to="wheel", options=ExportOptions(name="my_minilm", **options))
    return next(path for path in made.files if path.suffix == ".whl")


def site_of(wheel: Path, folder: Path, *libraries: str) -> Path:
    """A folder with the files of a wheel, NumPy, tokenizers and other libraries by their folders' names."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    installed = Path(np.__file__).parents[1]
    for name in ("numpy", "numpy.libs", "tokenizers", *libraries):
        if (installed / name).exists():
            (folder / name).symlink_to(installed / name)
    return folder


def alone(
    site: Path, *arguments: str, text: str = "", environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs Python without the packages of this environment (-S), in another folder."""
    begin = f"import sys; sys.path.insert(0, {str(site)!r}); "
    command = [sys.executable, "-S", "-I", "-c", begin + arguments[0], *arguments[1:]]
    variables = {"PATH": os.environ["PATH"], **(environment or {})}
    given = {"capture_output": True, "text": True, "check": False, "cwd": "/", "env": variables}
    return subprocess.run(command, input=text, errors="surrogateescape", **given)
