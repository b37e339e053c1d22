"""The functions of `ops.h` and `amx.cpp` keep the bounds that their comments claim, against float64 of scipy."""

import ctypes
import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit, ndtr
from test_native_symbols import SOURCE, run_checked

from support.instruction_sets import SETS, SHORT, needs_library

pytestmark = [
    pytest.mark.slow,
    needs_library,
    pytest.mark.skipif(shutil.which("cmake") is None or shutil.which("g++") is None, reason="no cmake or no g++"),
]
WRAPPER = """
#include "{source}"
#define TZ_TRY(f) TZ_TRY_AS(f, f)
#define TZ_TRY_AS(f, name) extern "C" __attribute__((visibility("default"))) void try_##name(float* x, long count) {{ \\
    using namespace tz::{name}; for (long i = 0; i < count; i += kLanes) store(x + i, f(load(x + i))); }}
TZ_TRY(gelu) TZ_TRY(sigmoid) TZ_TRY(exp_of_negative) {more}
"""


class Functions:
    """What an instruction set computes: `functions("gelu", x)`."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._library = name, ctypes.CDLL(str(path))

    def __call__(self, function: str, x: np.ndarray) -> np.ndarray:
        assert x.dtype == np.float32
        y = np.concatenate([x, np.zeros(-len(x) % 16, np.float32)])
        getattr(self._library, f"try_{function}")(y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(len(y)))
        return y[: len(x)].astype(np.float64)


@pytest.fixture(scope="module")
def units(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """For each instruction set, the command that compiles it."""
    build = tmp_path_factory.mktemp("build")
    settings = ["-DCMAKE_CXX_COMPILER=g++", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    run_checked(["cmake", "-S", str(SOURCE), "-B", str(build), *settings], build)
    listed = json.loads((build / "compile_commands.json").read_text())
    return {Path(unit["file"]).stem: shlex.split(unit["command"]) for unit in listed}


@pytest.fixture(scope="module", params=SETS)
def functions(request: pytest.FixtureRequest, units: dict[str, list[str]], tmp_path_factory) -> Functions:
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    source = SOURCE / "src" / f"{name}.cpp"
    more = "TZ_TRY_AS(power_of_two<4>, power_of_two)" if name in SHORT else ""
    (folder / "wrapper.cpp").write_text(WRAPPER.format(source=source, name=name, more=more))
    command = units[name][: units[name].index("-o")]
    run_checked([*command, "-O1", "-shared", "-o", "made.so", "wrapper.cpp"], folder)
    return Functions(name, folder / "made.so")


def both_signs(x: np.ndarray) -> np.ndarray:
    return np.concatenate([-x, x]).astype(np.float32)


def test_gelu(functions: Functions) -> None:
    x = both_signs(np.concatenate([np.linspace(0, 16, 1 << 20), np.geomspace(1e-30, 16, 1 << 16)]))
    error = np.abs(functions("gelu", x) - x * ndtr(x.astype(np.float64)))
    assert (error <= (5e-5 if functions.name in SHORT else 3e-7 * np.abs(x))).all(), error.max()
    far = both_signs(np.geomspace(16, 1e30, 1 << 12))
    error = np.abs(functions("gelu", far) - np.maximum(far, 0))
    assert (error <= (3e-6 if functions.name in SHORT else 3e-7) * np.abs(far)).all()


def test_sigmoid(functions: Functions) -> None:
    x = both_signs(np.concatenate([np.linspace(0, 80, 1 << 20), np.geomspace(1e-30, 80, 1 << 16)]))
    expected = expit(x.astype(np.float64))
    relative = np.abs(functions("sigmoid", x) / expected - 1).max()
    assert relative < (1.2e-4 if functions.name in SHORT else 6e-7)
    far = functions("sigmoid", both_signs(np.geomspace(100, 1e30, 1 << 12)))
    assert (np.abs(far - np.repeat([0, 1], 1 << 12)) < 1e-4).all()


def test_exp_of_negative_numbers(functions: Functions) -> None:
    x = -np.concatenate([np.linspace(0, 87, 1 << 20), np.geomspace(1e-30, 87, 1 << 16)]).astype(np.float32)
    assert np.abs(functions("exp_of_negative", x) / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    least = functions("exp_of_negative", np.float32([-87, -88, -1e30, -np.inf]))
    assert (least == least[0]).all()
    assert functions("exp_of_negative", np.float32([0])) == 1


@pytest.mark.parametrize("functions", [name for name in SETS if name in SHORT], indirect=True)
def test_powers_of_two(functions: Functions) -> None:
    x = -np.linspace(0, 126, 1 << 20).astype(np.float32)
    assert np.abs(functions("power_of_two", x) / np.exp2(x.astype(np.float64)) - 1).max() < 9e-4
    least = functions("power_of_two", np.float32([-126, -127, -1e30, -np.inf]))
    assert (least == least[0]).all()
