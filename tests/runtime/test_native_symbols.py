"""What the native library shows to others, and what its files of instruction sets share: the view of the linker."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ternarize_cli.errors import UnavailableError
from ternarize_cli.runtime import native
from ternarize_cli.runtime.native import interface
from ternarize_cli.runtime.native.library import library

SOURCE = Path(__file__).parents[2] / "ternarize_cli" / "runtime" / "native"
"""Of the repository: an installed package has no sources of the library."""
BASELINE = ("api", "encoder", "model", "pooling", "threads", "weights_file")
"""Files that are compiled for any processor and take what they like from the standard library."""
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("nm") is None, reason="nm of an ELF system is not installed"
)


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """The defined symbols of a file: type as nm writes it, and demangled name."""
    command = ["nm", "--demangle", "--defined-only", *options, str(path)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [(kind, name) for _, kind, name in (line.split(maxsplit=2) for line in lines)]


def run_checked(command: list[str], folder: Path) -> None:
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"{shlex.join(command)}\n{made.stdout[-2000:]}{made.stderr[-2000:]}"


def test_the_library_shows_its_interface_alone_and_all_of_it_is_declared() -> None:
    path = next((p for folder in native.__path__ if (p := Path(folder) / "libternarize_native.so.1").is_file()), None)
    if path is None:
        pytest.skip("the native library is not built: no C++ compiler")
    shown = {name for _, name in symbols(path, "--dynamic")}
    assert shown == {"tz_interface", *interface.FUNCTIONS}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("g++") is None, reason="no cmake or no g++")
def test_instruction_sets_share_no_inline_function(tmp_path: Path) -> None:
    settings = ["-DCMAKE_CXX_COMPILER=g++", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    run_checked(["cmake", "-S", str(SOURCE), "-B", str(tmp_path), *settings], tmp_path)
    compiled = []
    for unit in json.loads((tmp_path / "compile_commands.json").read_text()):
        name = Path(unit["file"]).stem
        if name in BASELINE:
            continue
        command, made = shlex.split(unit["command"]), tmp_path / f"{name}.o"
        command[command.index("-o") + 1] = str(made)
        run_checked([*command, "-O0"], tmp_path)  # nothing is inlined that need not be
        # weak and unique symbols are those of which the linker keeps one copy for all files
        shared = [name for kind, name in symbols(made) if kind in "WwVvu"]
        assert shared, name
        assert [symbol for symbol in shared if f"tz::{name}::" not in symbol] == []
        assert [symbol for kind, symbol in symbols(made) if kind == "T"] == [f"tz::{name}_kernels()"]
        compiled.append(name)
    assert "scalar" in compiled
    assert len(compiled) > 1


@pytest.fixture
def place_of_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder where the package looks for its library."""
    monkeypatch.setattr(native, "__path__", [str(tmp_path)])
    library.cache_clear()
    yield tmp_path
    library.cache_clear()


@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
@pytest.mark.parametrize(
    "source",
    [f"int tz_interface(void) {{ return {interface.INTERFACE + 1}; }}", "int tz_linear(void) { return 0; }"],
    ids=["another number", "no number"],
)
def test_a_library_of_another_version_is_refused_and_doctor_says_so(
    place_of_library: Path, source: str, run: Callable[..., Any]
) -> None:
    (place_of_library / "other.c").write_text(source)
    run_checked(["gcc", "-shared", "-fPIC", "-o", "libternarize_native.so.1", "other.c"], place_of_library)
    with pytest.raises(UnavailableError, match="built from another version of ternarize") as caught:
        library()
    assert "install ternarize again" in str(caught.value.hint)
    backends = json.loads(run("doctor", "--json").stdout)["backends"]
    (row,) = (backend for backend in backends if backend["name"] == "native")
    assert not row["available"]
    assert "another version of ternarize" in row["reason"]
