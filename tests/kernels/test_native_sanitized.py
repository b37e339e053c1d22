"""The native library under AddressSanitizer and UndefinedBehaviorSanitizer: no argument makes it touch foreign memory.

`native_fuzz` calls it; TERNARIZE_FUZZ is the number of its cases, TERNARIZE_FUZZ_FIRST the first. A case that fails is
named by its number, and the sanitizer's report says where.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = int(os.environ.get("TERNARIZE_FUZZ", "4000"))
FIRST = int(os.environ.get("TERNARIZE_FUZZ_FIRST", "0"))
SOURCE = Path(__file__).parents[2] / "ternarize_cli" / "kernels" / "native"
"""Of the repository: an installed package has no sources of the library."""
FLAGS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
pytestmark = pytest.mark.nightly


def runtimes() -> str | None:
    """What must be loaded before Python: g++'s AddressSanitizer, and libstdc++, whose exceptions it looks for then."""
    if not sys.platform.startswith("linux") or shutil.which("g++") is None or shutil.which("cmake") is None:
        return None
    paths = []
    for name in ("libasan.so", "libstdc++.so"):
        named = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        paths.append(Path(named.stdout.strip()))
    return ":".join(map(str, paths)) if all(path.is_absolute() and path.is_file() for path in paths) else None


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, built with the sanitizers."""
    if runtimes() is None:
        pytest.skip("no g++, no cmake or no libasan")
    build = tmp_path_factory.mktemp("sanitized")
    settings = ["-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_CXX_FLAGS={FLAGS}"]
    for command in (["-S", str(SOURCE), "-B", str(build), *settings], ["--build", str(build), "--parallel", "2"]):
        made = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return build / "libternarize_native.so.1"


def run_under_sanitizers(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": str(runtimes()),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python itself leaks
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "4",
        "OMP_WAIT_POLICY": "passive",
    }
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=7200
    )


def test_no_structure_makes_the_library_touch_foreign_memory(sanitized: Path) -> None:
    program, interface = Path(__file__).parents[1] / "support" / "native_fuzz.py", SOURCE / "interface.py"
    made = run_under_sanitizers(str(program), str(sanitized), str(interface), str(FIRST), str(CASES))
    assert made.returncode == 0, made.stderr[made.stderr.rfind("case ") :][:6000]
    assert made.stdout.startswith(f"{CASES} cases on ")


def test_the_sanitizers_are_at_work(sanitized: Path) -> None:
    overrun = (
        "import ctypes, sys; c = ctypes.CDLL(sys.argv[1]); libc = ctypes.CDLL(None);"
        "libc.malloc.restype = ctypes.c_void_p; rows = ctypes.c_void_p(libc.malloc(16));"
        "packed = ctypes.create_string_buffer(512);"
        # two rows of 16 bytes, of which one is there
        "c.tz_pack(rows, 16, 4, 4, 2, 64, packed, ctypes.c_int64(512), 1)"
    )
    made = run_under_sanitizers("-c", overrun, str(sanitized))
    assert made.returncode != 0
    assert "heap-buffer-overflow" in made.stderr
