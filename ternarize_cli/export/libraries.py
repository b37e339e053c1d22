"""Finds the compiled library that an export carries: the one with threads of its own, for a platform.

It lies beside the library that Python loads. Libraries for other platforms may lie there, too, under names that begin
as its name does; what a file is for says its header:

    ELF      byte 4: 2 for 64 bits; bytes 18, 19: the machine, 62 for x86-64, 183 for aarch64
    Mach-O   bytes 0 to 3: cf fa ed fe for 64 bits; bytes 4 to 7: the machine, 0x01000007 x86-64, 0x0100000c arm64

An ELF library names the versions of the GNU C library that it needs, as `GLIBC_2.34`. A platform such as
manylinux_2_28_x86_64 promises that version 2.28 is enough.
"""

import re
import struct
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from ternarize_cli.errors import InputError, UnavailableError, shown
from ternarize_cli.runtime import native
from ternarize_cli.storage.bounds import read_bytes

__all__ = ["Platform", "find_library", "parse_platform"]

_STEM = "libternarize_alone"
_LARGEST = 64 << 20
_ELF = {62: "x86_64", 183: "aarch64"}
_MACH_O = {0x01000007: "x86_64", 0x0100000C: "arm64"}
_TAG = re.compile(r"(linux|manylinux_(\d{1,2})_(\d{1,3})|macosx_\d{1,2}_\d{1,2})_(x86_64|aarch64|arm64)")
_NEEDED = re.compile(rb"GLIBC_(\d{1,2})\.(\d{1,3})[.\d]*\0")
_BUILD = "build ternarize there, and pass its libternarize_alone.so.1 with --library"


@dataclass(frozen=True)
class Platform:
    """A platform, by its tag in the names of wheels.

    Attributes:
        tag: the tag, such as "manylinux_2_28_x86_64".
        system: "linux" or "macosx".
        machine: "x86_64", "aarch64" or "arm64".
        glibc: the newest version of the GNU C library that may be needed; None if the tag does not say.
    """

    tag: str
    system: str
    machine: str
    glibc: tuple[int, int] | None = None


def parse_platform(tag: str | None) -> Platform:
    """Reads the tag of a platform; None stands for the platform that this process runs on.

    Raises:
        InputError: the tag is not one of Linux or macOS with processors of the kinds x86_64, aarch64 or arm64.
    """
    if tag is None:
        tag = re.sub(r"[-.]", "_", sysconfig.get_platform())
    found = _TAG.fullmatch(tag)
    if found is None or (found[4] == "arm64") != (tag.startswith("macosx") and found[4] != "x86_64"):
        raise InputError(
            f"{shown(tag)} is no platform that models are exported to",
            hint="linux_x86_64, manylinux_2_28_x86_64, manylinux_2_28_aarch64, macosx_11_0_arm64, …",
        )
    glibc = (int(found[2]), int(found[3])) if found[2] else None
    return Platform(tag, "macosx" if tag.startswith("macosx") else "linux", found[4], glibc)


def find_library(platform: Platform, given: str | Path | None = None) -> bytes:
    """Returns the content of the library for a platform.

    Args:
        platform: the platform.
        given: the library's file; None looks for it beside the library that Python loads.

    Raises:
        InputError: the given file can't be read, is no library of ternarize, or is for another platform.
        UnavailableError: there is no library for the platform here.
    """
    if given is not None:
        content = read_bytes(Path(given), limit=_LARGEST, error=InputError)
        if (why := _misfit(content, platform)) is not None:
            raise InputError(f"{given} {why}", hint=_BUILD)
        return content
    folders = [Path(folder) for folder in native.__path__]
    refusals = []
    for path in sorted(path for folder in folders for path in folder.glob(f"{_STEM}*") if path.is_file()):
        content = read_bytes(path, limit=_LARGEST, error=UnavailableError)
        if (why := _misfit(content, platform)) is None:
            return content
        refusals.append(f"{path.name} {why}")
    said = f" ({'; '.join(refusals)})" if refusals else ""
    raise UnavailableError(f"there is no library for {platform.tag} here{said}", hint=_BUILD)


def _misfit(content: bytes, platform: Platform) -> str | None:
    """Says why a file is no library for a platform; None if it is one."""
    system, machine = _target(content)
    if system is None or b"tz_model_open" not in content:
        return "is no library of ternarize with threads of its own"
    if (system, machine) != (platform.system, platform.machine):
        return f"is for {system}, {machine or 'another machine'}"
    if b"libgomp.so" in content or b"libomp.so" in content or b"libomp.dylib" in content:
        return "needs OpenMP's library, which comes with PyTorch"
    needed = max(((int(a), int(b)) for a, b in _NEEDED.findall(content)), default=(0, 0))
    if platform.glibc is not None and needed > platform.glibc:
        return f"needs version {needed[0]}.{needed[1]} of the GNU C library, and {platform.tag} promises less"
    return None


def _target(content: bytes) -> tuple[str | None, str | None]:
    """Returns system and machine that a library is for; None for each that is not known."""
    if content[:5] == b"\x7fELF\x02" and len(content) >= 20:
        return "linux", _ELF.get(struct.unpack_from("<H", content, 18)[0])
    if content[:4] == b"\xcf\xfa\xed\xfe" and len(content) >= 8:
        return "macosx", _MACH_O.get(struct.unpack_from("<I", content, 4)[0])
    return None, None
