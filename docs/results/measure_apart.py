"""Measures candidates of `ternarize bench` one after the other, each in a process of its own; prints JSON.

    python docs/results/measure_apart.py PACKED SOURCE CANDIDATE... [--points 1x16,1x128] [--rounds 3] [--seconds 4]

Under a quota of processor time, candidates that take turns in one process disturb each other: who uses up the time of a
period does not wait for the next one, but whoever comes after does. So here each runs alone, and the mean of a point is
its time from the first call to the last, divided by the calls: it holds the waits that a median leaves out.

To run it under a quota of one processor, either of

    systemd-run --scope -p CPUQuota=100% python docs/results/measure_apart.py ...
    mkdir /sys/fs/cgroup/cpu/q && echo 100000 > /sys/fs/cgroup/cpu/q/cpu.cfs_quota_us
    sh -c 'echo $$ > /sys/fs/cgroup/cpu/q/tasks; exec python docs/results/measure_apart.py ...'
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ternarize_cli import hf, kernels
from ternarize_cli.bench.candidates import BACKEND, RIVAL, BenchCandidate
from ternarize_cli.engines.inputs import random_batch
from ternarize_cli.measuring.timing import GridPoint


@torch.inference_mode()
def measure(name: str, wanted: argparse.Namespace) -> list[dict[str, Any]]:
    """Times one candidate at all points in this process."""
    hf.quiet_libraries()
    torch.set_num_threads(wanted.threads)
    is_ours = name in {b.name for b in kernels.describe()}
    folder = Path(wanted.packed if is_ours else wanted.source)
    forward, ran = BenchCandidate(name, BACKEND if is_ours else RIVAL, folder, "cpu").load()
    rows = []
    for point in wanted.points.split(","):
        batch, tokens = (int(number) for number in point.split("x"))
        fed = random_batch(folder, GridPoint(batch, tokens), 0, "cpu")
        forward(*fed)
        times: list[float] = []
        began = time.perf_counter()
        while (total := time.perf_counter() - began) < wanted.seconds or len(times) < 3:
            at = time.perf_counter()
            forward(*fed)
            times.append(1e3 * (time.perf_counter() - at))
        total, p90 = time.perf_counter() - began, statistics.quantiles(times, n=10)[-1]
        numbers = {"mean_ms": 1e3 * total / len(times), "median_ms": statistics.median(times), "p90_ms": p90}
        rows.append({"name": ran, "point": point, **{key: round(ms, 3) for key, ms in numbers.items()}})
    return rows


def main() -> None:
    """Starts a process for each candidate and round, or is one of these."""
    parser = argparse.ArgumentParser()
    for name in ("packed", "source"):
        parser.add_argument(name)
    parser.add_argument("candidates", nargs="+")
    parser.add_argument("--points", default="1x16,1x128,8x128,16x256")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.here:
        print(json.dumps(measure(wanted.candidates[0], wanted)))
        return
    options = [f"--{name}={getattr(wanted, name)}" for name in ("points", "seconds", "threads")]
    rows = []
    for turn in range(wanted.rounds):
        for name in wanted.candidates:
            command = [sys.executable, __file__, wanted.packed, wanted.source, name, *options, "--here"]
            ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows += [{"round": turn, **row} for row in json.loads(ended.stdout.splitlines()[-1])]
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
