"""The native library under sanitizers: no argument makes it touch foreign memory, and its threads don't race.

`native_fuzz` calls it; TERNARIZE_FUZZ is the number of its cases, TERNARIZE_FUZZ_FIRST the first. A case that fails is
named by its number, and the sanitizer's report says where. Under ThreadSanitizer it has threads of its own, since that
knows nothing of OpenMP's.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.c_model import save_weights
from support.families import stages
from support.instruction_sets import SETS, needs_library
from support.models import add_dense, save_tiny_bert

CASES = int(os.environ.get("TERNARIZE_FUZZ", "4000"))
FIRST = int(os.environ.get("TERNARIZE_FUZZ_FIRST", "0"))
SOURCE = Path(__file__).parents[2] / "ternarize_cli" / "runtime" / "native"
"""Of the repository: an installed package has no sources of the library."""
ADDRESS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all -fno-omit-frame-pointer -g"
THREAD = "-fsanitize=thread -fno-omit-frame-pointer -g"
X86 = ("amx", "avx2", "avxvnni", "vnni", "vnnibf16")
pytestmark = [pytest.mark.nightly, needs_library]


def runtimes(sanitizer: str) -> str | None:
    """What must be loaded before Python: g++'s sanitizer, and libstdc++, whose exceptions it looks for then."""
    if not sys.platform.startswith("linux") or shutil.which("g++") is None or shutil.which("cmake") is None:
        return None
    paths = []
    for name in (f"lib{sanitizer}.so", "libstdc++.so"):
        named = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=False)
        paths.append(Path(named.stdout.strip()))
    return ":".join(map(str, paths)) if all(path.is_absolute() and path.is_file() for path in paths) else None


def built(build: Path, sanitizer: str, flags: str, *settings: str) -> Path:
    """The library, built with a sanitizer, of the instruction sets that this processor has: others take minutes."""
    if runtimes(sanitizer) is None:
        pytest.skip(f"no g++, no cmake or no lib{sanitizer}")
    settings = ("-DCMAKE_CXX_COMPILER=g++", f"-DCMAKE_CXX_FLAGS={flags}", *settings)
    settings += tuple(f"-DTZ_HAS_{name}=OFF" for name in X86 if name not in SETS)
    make = ["--build", str(build), "--parallel", "2", "--target", "ternarize_native"]
    for command in (["-S", str(SOURCE), "-B", str(build), *settings], make):
        made = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr[-2000:]
    return build / "libternarize_native.so.1"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("address"), "asan", ADDRESS)


@pytest.fixture(scope="module")
def thread(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("thread"), "tsan", THREAD, "-DTERNARIZE_OPENMP=OFF")


def run_under(sanitizer: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": str(runtimes(sanitizer)),
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # Python itself leaks
        "TSAN_OPTIONS": "exitcode=66",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "4",
        "OMP_WAIT_POLICY": "passive",
    }
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=7200
    )


@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_no_structure_makes_the_library_touch_foreign_memory_or_race(
    sanitizer: str, request: pytest.FixtureRequest
) -> None:
    library = request.getfixturevalue({"asan": "address", "tsan": "thread"}[sanitizer])
    program = "-m", "support.native_fuzz"
    made = run_under(sanitizer, *program, str(library), str(SOURCE / "interface.py"), str(FIRST), str(CASES))
    assert made.returncode == 0, made.stderr[made.stderr.rfind("case ") :][:6000]
    assert made.stdout.startswith(f"{CASES} cases on ")


def test_no_file_of_weights_makes_the_library_touch_foreign_memory(address: Path, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    save_weights(stages(source, tmp_path)[2], tmp_path / "model.tz")
    program = Path(__file__).parents[1] / "support" / "model_fuzz.py"
    library = address.with_name("libternarize_alone.so.1")
    made = run_under("asan", str(program), str(library), str(tmp_path / "model.tz"), str(FIRST), str(CASES))
    assert made.returncode == 0, made.stderr[made.stderr.rfind("case ") :][:6000]
    assert made.stdout.startswith(f"{CASES} files: ")


def test_the_address_sanitizer_is_at_work(address: Path) -> None:
    overrun = (
        "import ctypes, sys; c = ctypes.CDLL(sys.argv[1]); libc = ctypes.CDLL(None);"
        "libc.malloc.restype = ctypes.c_void_p; rows = ctypes.c_void_p(libc.malloc(16));"
        "packed = ctypes.create_string_buffer(512);"
        # two rows of 16 bytes, of which one is there
        "c.tz_pack(rows, 16, 4, 4, 2, 64, packed, ctypes.c_int64(512), 1)"
    )
    made = run_under("asan", "-c", overrun, str(address))
    assert made.returncode != 0
    assert "heap-buffer-overflow" in made.stderr


def test_the_thread_sanitizer_is_at_work(thread: Path) -> None:
    race = (
        "import ctypes, sys, threading; c = ctypes.CDLL(sys.argv[1]);"
        "rows, packed = ctypes.create_string_buffer(16 * 4096), ctypes.create_string_buffer(512 * 128);"
        # two callers write to one place
        "pack = lambda: c.tz_pack(rows, 16, 4, 4, 4096, 64, packed, ctypes.c_int64(512 * 128), 2);"
        "callers = [threading.Thread(target=lambda: [pack() for _ in range(50)]) for _ in range(2)];"
        "[caller.start() for caller in callers]; [caller.join() for caller in callers]"
    )
    made = run_under("tsan", "-c", race, str(thread))
    assert made.returncode == 66
    assert "data race" in made.stderr
