"""How many threads the native library gives to a call on a machine that others use, too.

The library's own code runs on made-up machines, whose calls take the times that a test says, with 10% of noise.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import ternarize_cli

SOURCES = Path(ternarize_cli.__file__).parent / "runtime" / "native" / "src"
Run = Callable[..., list[list[int]]]
QUIET = [(8, 0), (4, 0)]
"""Milliseconds of a call and of them lost, with one thread and with two."""
SHARED = [(8, 0), (12, 5)]
BETTER_ALL_THE_SAME = [(8, 0), (6, 4)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs calls one machine after the other: the percentage of calls with 1, 2, … threads on each."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not SOURCES.is_dir():
        pytest.skip("there is no C++ compiler, or the library's sources are not here")
    made = tmp_path_factory.mktemp("crowd") / "crowd"
    program = Path(__file__).parents[1] / "support" / "crowd.cpp"
    sources = [str(program), str(SOURCES / "threads.cpp")]
    subprocess.run([compiler, "-std=c++17", "-O1", "-pthread", f"-I{SOURCES}", *sources, "-o", str(made)], check=True)

    def run(*machines: tuple[int, int, list[tuple[float, float]]]) -> list[list[int]]:
        lines = [
            f"machine {wanted} {calls} " + " ".join(f"{cost} {lost}" for cost, lost in times)
            for wanted, calls, times in machines
        ]
        told = subprocess.run([str(made)], input="\n".join(lines), capture_output=True, text=True, check=True).stdout
        return [[int(share) for share in line.split()[1:]] for line in told.splitlines()]

    return run


def amdahl(wanted: int, free: int, lost: float) -> list[tuple[float, float]]:
    """Calls of 16 ms of work on `free` processors; each thread beyond these costs a quarter more, and loses some."""
    return [(16 / min(n, free) * (1 + 0.25 * max(0, n - free)), lost * max(0, n - free)) for n in range(1, wanted + 1)]


@pytest.mark.slow
def test_a_quiet_machine_has_all_threads(run: Run) -> None:
    assert run((2, 4000, QUIET)) == [[0, 100]]


@pytest.mark.slow
def test_threads_are_left_out_where_fewer_are_faster_and_come_back(run: Run) -> None:
    shared, quiet = run((2, 4000, SHARED), (2, 8000, QUIET))
    assert shared[0] >= 90, "calls with two threads are trials"
    assert quiet[1] == 100


@pytest.mark.slow
def test_trials_that_gain_nothing_come_seldom(run: Run) -> None:
    assert run((2, 8000, BETTER_ALL_THE_SAME))[0][1] >= 95


@pytest.mark.slow
def test_callers_of_other_numbers_of_threads_get_them_all(run: Run) -> None:
    taken, *_ = run((8, 4000, amdahl(8, 4, 3)))
    assert sum(taken[5:]) <= 20
    after = run((8, 4000, amdahl(8, 4, 3)), (2, 1000, QUIET))[1]
    assert after == [0, 100]


@pytest.mark.slow
@pytest.mark.parametrize(("wanted", "free"), [(4, 3), (8, 4), (32, 16)])
def test_the_number_goes_to_what_is_free_and_back(wanted: int, free: int, run: Run) -> None:
    shared, quiet = run((wanted, 20_000, amdahl(wanted, free, 5)), (wanted, 60_000, amdahl(wanted, wanted, 0)))
    assert sum(shared[free // 2 : free + 1]) >= 80, shared
    assert sum(quiet[wanted - 1 :]) >= 90, quiet


@pytest.mark.slow
def test_uneven_pieces_are_not_taken_for_neighbours_for_ever(run: Run) -> None:
    """128 tokens are 8 tiles: three threads have 2, 3 and 3, and one waits."""
    tiles = [(8.0, 0.0), (4.0, 0.0), (3.0, 1.0), (2.0, 0.0)]
    beside = [(8.0, 0.0), (4.0, 0.0), (3.0, 1.0), (6.0, 5.0)]
    assert run((4, 10_000, beside), (4, 30_000, tiles))[1][3] >= 90
