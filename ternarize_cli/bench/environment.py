"""What `doctor` looks at beside the machine: optional extras, the hub's cache, and room on the disks."""

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
_FOR_DEVELOPERS = ("dev", "test")


@dataclass(frozen=True)
class Extra:
    """An optional extra of this package: what it brings, each with the version installed (None: not installed)."""

    name: str
    packages: dict[str, str | None]

    @property
    def installed(self) -> bool:
        """Whether all of it is there."""
        return all(self.packages.values())


@dataclass(frozen=True)
class Disk:
    """A folder that commands write to, and the bytes free there."""

    purpose: str
    path: str
    free_bytes: int


def extras() -> list[Extra]:
    """The extras that users install, as the installed package's own metadata lists them for this platform.

    Empty where the package is not installed but run from its source.
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
    """Where models from the Hugging Face hub are kept, how many there are, and whether the network may be used."""
    cache = Path(constants.HF_HUB_CACHE)
    return {
        "cache": str(cache),
        "models": sum(1 for _ in cache.glob("models--*")),
        "offline": bool(constants.HF_HUB_OFFLINE),
    }


def instruction_sets() -> list[str]:
    """What the native runtime can run here, the one in use first; empty if it can't."""
    from ternarize_cli.kernels.native.library import library

    try:
        lib = library()
    except UnavailableError:
        return []
    return [lib.chosen, *(name for name in lib.instruction_sets if name != lib.chosen)]


def disks() -> list[Disk]:
    """Free bytes where outputs, temporary folders and downloads go."""
    places = {"working folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir())}
    places["hub cache"] = Path(constants.HF_HUB_CACHE)
    return [Disk(purpose, str(path), shutil.disk_usage(_existing(path)).free) for purpose, path in places.items()]


def examine() -> dict[str, Any]:
    """Everything `doctor` shows, as plain JSON values."""
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
    """The path or the nearest folder above it that exists."""
    return next(p for p in (path, *path.parents) if p.exists() and os.access(p, os.R_OK))
