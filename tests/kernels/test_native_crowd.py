"""How many threads the native library gives to a call on a machine that others use, too."""

import shutil
import subprocess
from pathlib import Path

import pytest

import ternarize_cli

SOURCES = Path(ternarize_cli.__file__).parent / "kernels" / "native" / "src"


@pytest.mark.slow
def test_the_number_of_threads_follows_what_is_fastest(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("there is no C++ compiler, or the library's sources are not here")
    program = Path(__file__).parents[1] / "support" / "crowd.cpp"
    made = tmp_path / "crowd"
    sources = [str(program), str(SOURCES / "threads.cpp")]
    subprocess.run([compiler, "-std=c++17", "-O2", "-pthread", f"-I{SOURCES}", *sources, "-o", str(made)], check=True)
    told = subprocess.run([str(made)], capture_output=True, text=True, check=True, timeout=120).stdout
    shares = {name: int(share) for name, share in (line.rsplit(" ", 1) for line in told.splitlines())}
    assert shares["quiet"] == 100
    assert shares["shared"] <= 20, "one thread is faster: calls with two are trials"
    assert shares["quiet again"] == 100
    assert shares["loses, and is faster all the same"] >= 80, "trials of one thread come seldom"
