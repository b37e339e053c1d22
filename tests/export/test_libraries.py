"""Libraries for platforms: found by what their headers say, and refused in words."""

import struct
import sysconfig
from pathlib import Path

import pytest

from support.c_model import LIBRARY
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.export.libraries import find_library, parse_platform
from ternarize_cli.runtime import native

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the compiled library is not built")


def elf(machine: int, *words: bytes) -> bytes:
    """The beginning of a library for Linux, and some of its names."""
    return (
        b"\x7fELF\x02\x01\x01"
        + bytes(11)
        + struct.pack("<H", machine)
        + b"\0tz_model_open\0"
        + b"\0".join(words)
        + b"\0"
    )


def mach_o(machine: int) -> bytes:
    return b"\xcf\xfa\xed\xfe" + struct.pack("<I", machine) + b"\0_tz_model_open\0"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder where libraries are looked for."""
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    return tmp_path


def test_this_platform_has_the_library_beside_the_one_that_python_loads() -> None:
    assert LIBRARY is not None
    platform = parse_platform(None)
    assert platform.tag == sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert find_library(platform) == LIBRARY.read_bytes()


@pytest.mark.parametrize(
    ("tag", "content"),
    [
        ("linux_x86_64", elf(62)),
        ("manylinux_2_28_aarch64", elf(183, b"GLIBC_2.17", b"GLIBC_2.28")),
        ("macosx_11_0_arm64", mach_o(0x0100000C)),
        ("macosx_10_15_x86_64", mach_o(0x01000007)),
    ],
)
def test_a_library_is_told_from_others_by_its_header(tag: str, content: bytes, place: Path) -> None:
    (place / "libternarize_alone.so.1").write_bytes(elf(243))
    (place / "libternarize_alone-2.so.1").write_bytes(content)
    assert find_library(parse_platform(tag)) == content
    (place / "given").write_bytes(content)
    assert find_library(parse_platform(tag), place / "given") == content


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no library of ternarize"),
        (b"\x7fELF\x02", "is no library of ternarize"),
        (elf(62).replace(b"tz_", b"xy_"), "is no library of ternarize"),
        (elf(183), "is for linux, aarch64"),
        (elf(243), "is for linux, another machine"),
        (mach_o(0x0100000C), "is for macosx, arm64"),
        (elf(62, b"libgomp.so.1"), "needs OpenMP's library"),
        (elf(62, b"GLIBC_2.17", b"GLIBC_2.29"), "needs version 2.29 of the GNU C library"),
    ],
)
def test_another_library_is_refused_in_words(content: bytes, why: str, place: Path) -> None:
    platform = parse_platform("manylinux_2_28_x86_64")
    (place / "given").write_bytes(content)
    with pytest.raises(InputError, match=why):
        find_library(platform, place / "given")
    (place / "libternarize_alone.so.1").write_bytes(content)
    with pytest.raises(UnavailableError, match=f"there is no library for manylinux_2_28_x86_64 here .*{why}"):
        find_library(platform)


def test_a_library_that_is_not_there_is_told(place: Path) -> None:
    with pytest.raises(UnavailableError, match="there is no library for linux_x86_64 here"):
        find_library(parse_platform("linux_x86_64"))
    with pytest.raises(InputError, match="can't be read"):
        find_library(parse_platform("linux_x86_64"), place / "none")


@pytest.mark.parametrize(
    "tag",
    ["", "linux", "win_amd64", "linux_arm64", "macosx_11_0_aarch64", "linux_x86_64\n", "manylinux_2_x86_64", "any"],
)
def test_what_is_no_platform_is_refused(tag: str) -> None:
    with pytest.raises(InputError, match="is no platform that models are exported to"):
        parse_platform(tag)
