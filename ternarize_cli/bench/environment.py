"""Collects what `doctor` shows besides the machine: optional extras, the hub's cache, and free disk space."""

import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from packaging.requirements import Requirement

from ternarize_cli import kernels
from ternarize_cli.errors import UnavailableError
from ternarize_cli.measuring import machine

__all__ = ["Disk", "Extra", "disks", "examine", "extras", "hub", "instruction_sets"]

_DISTRIBUTION = "ternarize-cli"
_FOR_DEVELOPERS = ("clients", "dev", "test")


@dataclass(frozen=True)
class Extra:
    """An optional extra of this package: its packages, each with the installed version (None if not installed)."""

    name: str
    packages: dict[str, str | None]

    @property
    def installed(self) -> bool:
        """Whether all packages of the extra are installed."""
        return all(self.packages.values())


@dataclass(frozen=True)
class Disk:
    """A folder that commands write to, and the bytes free there."""

    purpose: str
    path: str
    free_bytes: int


def extras() -> list[Extra]:
    """Lists the extras for users, from the metadata of the installed package, for this platform.

    The list is empty if the package is not installed but runs from its source.
    """
    try:
        requirements = [Requirement(text) for text in requires(_DISTRIBUTION) or []]
    except PackageNotFoundError:
        return []
    optional = [r for r in requirements if r.marker is not None and not r.marker.evaluate({"extra": ""})]
    found = []
    for name in metadata(_DISTRIBUTION).get_all("Provides-Extra") or []:
        if name not in _FOR_DEVELOPERS:
            wanted = [r.name for r in optional if r.marker is not None and r.marker.evaluate({"extra": name})]
            found.append(Extra(name, {package: _version(package) for package in wanted}))
    return found


def hub() -> dict[str, Any]:
    """Describes the cache of the Hugging Face hub: its folder, the number of models, and whether it is offline."""
    cache = Path(constants.HF_HUB_CACHE)
    return {
        "cache": str(cache),
        "models": sum(1 for _ in cache.glob("models--*")),
        "offline": bool(constants.HF_HUB_OFFLINE),
    }


def instruction_sets() -> list[str]:
    """Lists the instruction sets that the native runtime can use, the one in use first; empty if it can't run."""
    from ternarize_cli.runtime.native.library import library

    try:
        lib = library()
    except UnavailableError:
        return []
    return [lib.chosen, *(name for name in lib.instruction_sets if name != lib.chosen)]


def disks() -> list[Disk]:
    """Finds the free bytes in the folders of outputs, temporary files and downloads."""
    places = {"working folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    places["hub cache"] = Path(constants.HF_HUB_CACHE)
    return [Disk(purpose, str(path), shutil.disk_usage(_existing(path)).free) for purpose, path in places.items()]


def examine() -> dict[str, Any]:
    """Collects everything that `doctor` shows, as plain JSON values."""
    return {
        "machine": machine.facts() | {"load": machine.load_average()},
        "backends": [asdict(info) for info in kernels.describe()],
        "native_instruction_sets": instruction_sets(),
        "extras": [{**asdict(extra), "installed": extra.installed} for extra in extras()],
        "hub": hub(),
        "disks": [asdict(disk) for disk in disks()],
    }


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _existing(path: Path) -> Path:
    """Finds the nearest existing folder: the path itself, or one above it."""
    return next(p for p in (path, *path.parents) if p.exists() and os.access(p, os.R_OK))
