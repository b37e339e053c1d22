"""Exports for aarch64: the library is built by a cross compiler, and the program in C runs in an emulator."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest

from support.c_model import LIBRARY
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.runtime.encoder import Encoder

SOURCE = Path(__file__).parents[2] / "ternarize_cli" / "runtime" / "native"
"""Of the repository: an installed package has no sources of the library."""
GCC, EMULATOR, ROOT = "aarch64-linux-gnu-gcc", "qemu-aarch64-static", "/usr/aarch64-linux-gnu"
NEEDED = ("cmake", GCC, "aarch64-linux-gnu-g++", EMULATOR)
TEXTS = ["the cat", "", "dog house tree " * 15, "red green small cat in a tree by the river " * 3, "cat"]
pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(LIBRARY is None, reason="the compiled library is not built"),
    pytest.mark.skipif(not all(map(shutil.which, NEEDED)), reason=f"one of {', '.join(NEEDED)} is not installed"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = tmp_path_factory.mktemp("build")
    settings = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64"]
    settings += ["-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++"]
    for command in (["-S", str(SOURCE), "-B", str(build), *settings], ["--build", str(build)]):
        made = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return build / "libternarize_alone.so.1"


def test_the_program_in_c_gives_the_vectors_of_this_machine_but_for_rounding(
    library: Path, packed: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    export(packed, folder, to="c", options=ExportOptions(platform="linux_aarch64", library=str(library)))
    command = [GCC, "example.c", "-L.", "-lternarize", f"-Wl,-rpath,{folder}", "-o", "example"]
    subprocess.run(command, cwd=folder, check=True)
    encoder = Encoder(packed)
    tokens = encoder.tokenize(TEXTS)
    lines = "".join(" ".join(map(str, text.ids)) + "\n" for text in tokens)
    made = {}
    for name in ("neon", "scalar"):
        ran = subprocess.run(
            [EMULATOR, "-L", ROOT, "./example", "model.tz"],
            cwd=folder,
            input=lines,
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TERNARIZE_NATIVE_ISA": name},
        )
        assert ran.returncode == 0, ran.stderr
        made[name] = np.array([line.split() for line in ran.stdout.splitlines()], np.float32)
    assert (made["neon"] == made["scalar"]).all()
    assert (made["neon"] * encoder.encode_tokens(tokens)).sum(axis=1).min() > 0.99


def test_a_wheel_carries_the_library_of_its_platform(library: Path, packed: Path, tmp_path: Path) -> None:
    options = ExportOptions(name="mine", platform="linux_aarch64", library=str(library))
    (wheel,) = export(packed, tmp_path, to="wheel", options=options).files
    assert wheel.name == "mine-1.0-py3-none-linux_aarch64.whl"
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read("mine/_runtime/runtime/native/libternarize_alone.so.1") == library.read_bytes()
