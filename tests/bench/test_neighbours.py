"""Busy neighbours of a measurement: they run, are told of, and end however the measurement ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.report import tables
from ternarize_cli.bench.report_comparison import compare, times_table
from ternarize_cli.bench.report_files import csv_text, markdown_text
from ternarize_cli.bench.run import BenchReport, benchmark
from ternarize_cli.bench.shapes import ModelShape
from ternarize_cli.measuring import machine
from ternarize_cli.measuring.neighbours import busy_neighbours

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
PROGRAM = """
import time
from ternarize_cli.measuring.neighbours import busy_neighbours
with busy_neighbours(2) as pids:
    print(*pids, flush=True)
    time.sleep(120)
"""


@pytest.fixture(scope="module")
def report() -> BenchReport:
    plan = BenchOptions(
        backends=("reference",), batches=(1,), tokens=(4,), repeats=2, warmup=0, memory=False, neighbours=2
    )
    return benchmark(None, plan, shape=ModelShape("bert", TINY))


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not what() and time.monotonic() < end:
        time.sleep(0.02)
    assert what()


def test_neighbours_keep_cores_busy_until_the_body_ends() -> None:
    with busy_neighbours(2) as pids:
        found = [psutil.Process(pid) for pid in pids]
        assert len({*pids, os.getpid()}) == 3
        assert all(process.nice() == psutil.Process().nice() for process in found)
        wait_until(lambda: all(process.cpu_times().user > 0.05 for process in found))
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_neighbours_end_with_an_exception_and_with_an_interrupt() -> None:
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error), busy_neighbours(1) as pids:
            raise error
        assert not psutil.pid_exists(pids[0])
    with busy_neighbours(0) as pids:
        assert pids == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_neighbours_end_with_a_parent_that_is_killed(number: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        found = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(found) == 2
        parent.send_signal(number)
    wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in found))


def test_the_work_of_neighbours_is_not_that_of_others() -> None:
    with busy_neighbours(1) as pids:
        before, first = machine._read_clock().own, sum(psutil.Process(pids[0]).cpu_times()[:2])
        wait_until(lambda: sum(psutil.Process(pids[0]).cpu_times()[:2]) > first + 0.2)
        assert machine._read_clock().own - before >= 0.2
        assert pids[0] not in {entry["pid"] for entry in machine.top_processes(0.01, count=10_000)}


def test_a_report_names_its_neighbours(report: BenchReport) -> None:
    sentence = "2 neighbours: processes that are busy beside all candidates."
    assert report.to_dict()["neighbours"] == 2
    assert sentence in tables(report)[0].caption
    assert sentence in markdown_text(report, "ternarize bench")
    assert csv_text(report).splitlines()[0].endswith(",neighbours")
    assert csv_text(report).splitlines()[1].endswith(",2")
    assert "neighbour" not in tables(replace(report, neighbours=0))[0].caption


def test_reports_with_other_neighbours_are_warned_of(report: BenchReport, tmp_path: Path) -> None:
    beside, alone, old = (tmp_path / f"{name}.json" for name in ("beside", "alone", "old"))
    beside.write_text(json.dumps(report.to_dict()))
    alone.write_text(json.dumps(replace(report, neighbours=0).to_dict()))
    old.write_text(json.dumps({key: value for key, value in report.to_dict().items() if key != "neighbours"}))
    (warning,) = (text for text in compare([alone, beside]).warnings if "neighbours" in text)
    assert warning == f"the busy neighbours differ: 0 in {alone}, 2 in {beside}"
    for pair in ([beside, beside], [alone, old]):
        assert not any("neighbours" in text for text in compare(pair).warnings)
    assert "Busy neighbours beside all candidates: 2." in times_table(beside).caption


def test_a_number_of_neighbours_is_none_or_more(run: Callable[..., object]) -> None:
    result = run("bench", "--neighbour", "-1")
    assert result.exit_code == 2
    assert "--neighbour" in result.stderr
