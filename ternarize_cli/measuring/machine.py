"""Describes the machine of a measurement, and measures how busy other processes kept it.

A latency means nothing without its machine: an int8 GEMM runs ten times faster on a CPU with AMX than on one with AVX2
only. So every report names the CPU, the instruction sets that matter for integer GEMMs, cores, memory and versions.

Other processes often disturb a measurement more than the differences that it shall show. Their share is computed from
the system's accounting: CPU seconds of the whole system (with time stolen by other virtual machines) minus the CPU
seconds of this process and of its children, running (another engine) or finished (a compiler), divided by the wall
time; 100% is one core.
`LoadWatch` measures the share over any period, so a report can say how busy the machine was before and during the
measurement.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from ternarize_cli import __version__

__all__ = [
    "BUSY_PERCENT",
    "LoadWatch",
    "facts",
    "gpus",
    "instruction_sets",
    "is_busy",
    "isa_flags",
    "load_average",
    "others_percent",
    "top_processes",
    "versions",
]

BUSY_PERCENT = 25.0
"""A machine counts as busy if other processes use more than this percentage of one core."""

# Instruction sets that decide the speed of int8, bf16 and fp32 GEMMs, in the order of display.
_ISA = {
    "avx2": "avx2",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "asimd": "neon",
    "asimddp": "asimddp",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
}
_PACKAGES = ("torch", "transformers", "sentence-transformers", "safetensors", "faiss-cpu", "mteb")


def isa_flags(cpuinfo: str) -> list[str]:
    """Finds the instruction sets that matter for GEMMs in the text of /proc/cpuinfo (x86 `flags`, Arm `Features`)."""
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            present = set(value.split())
            return [shown for flag, shown in _ISA.items() if flag in present]
    return []


def others_percent(system_seconds: float, own_seconds: float, wall_seconds: float) -> float:
    """Computes the CPU use of other processes in percent of one core; never below 0, although the clocks differ."""
    return max(0.0, 100 * (system_seconds - own_seconds) / wall_seconds)


def is_busy(*percents: float) -> bool:
    """Whether any of these CPU uses of other processes, in percent of a core, is above `BUSY_PERCENT`."""
    return any(percent > BUSY_PERCENT for percent in percents)


def load_average() -> list[float]:
    """The system's load over the last 1, 5 and 15 minutes."""
    return [round(value, 2) for value in psutil.getloadavg()]


@dataclass(frozen=True)
class _Clock:
    wall: float
    system: float
    own: float


class LoadWatch:
    """Measures the CPU use of other processes while the body runs.

    with Watch() as watch:
        ...
    watch.others  # percent of one core
    """

    others: float = 0.0

    def __enter__(self) -> "LoadWatch":
        self._start = _read_clock()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        end, start = _read_clock(), self._start
        wall = max(end.wall - start.wall, 1e-3)
        self.others = round(others_percent(end.system - start.system, end.own - start.own, wall), 1)


def _read_clock() -> _Clock:
    system = psutil.cpu_times()
    used = ("user", "nice", "system", "irq", "softirq", "steal")
    ours = sum(_cpu_seconds(process, finished=True) or 0.0 for process in _family())
    return _Clock(time.monotonic(), sum(getattr(system, name, 0.0) for name in used), ours)


def _family() -> list[psutil.Process]:
    """This process and the running processes that it or they started."""
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def top_processes(seconds: float = 0.5, count: int = 3) -> list[dict[str, Any]]:
    """Finds the other processes that use most CPU over `seconds`: name, pid and percent of one core."""
    ours = _family()
    processes = [p for p in psutil.process_iter(["name"]) if p not in ours]
    before = {p: _cpu_seconds(p) for p in processes}
    started = time.monotonic()
    time.sleep(seconds)
    wall = time.monotonic() - started
    found = []
    for process, start in before.items():
        end = _cpu_seconds(process)
        if start is not None and end is not None and end > start:
            percent = round(100 * (end - start) / wall, 1)
            found.append({"name": process.info["name"], "pid": process.pid, "percent": percent})
    return sorted(found, key=lambda entry: -entry["percent"])[:count]


def _cpu_seconds(process: psutil.Process, *, finished: bool = False) -> float | None:
    """CPU seconds of a process, with those of its finished children if asked for; None if it is gone."""
    try:
        times = process.cpu_times()
    except psutil.Error:
        return None
    finished_children = times.children_user + times.children_system if finished else 0.0
    return float(times.user + times.system + finished_children)


def versions(packages: Iterable[str] = _PACKAGES) -> dict[str, str | None]:
    """The versions of Python, this package and its main libraries; None for a library that is not installed."""
    found: dict[str, str | None] = {"ternarize": __version__, "python": platform.python_version()}
    return found | {name: _version(name) for name in packages}


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def gpus() -> list[dict[str, Any]]:
    """Lists the NVIDIA GPUs that torch can use; empty with a CPU build of torch.

    Each has name, compute capability, memory in bytes, versions of CUDA and the driver, and the facts of `Nvml.facts`.
    """
    import torch

    from ternarize_cli.measuring.gpu import uuid
    from ternarize_cli.measuring.nvml import nvml

    if not torch.cuda.is_available():
        return []
    found, library = [], nvml()
    for i in range(torch.cuda.device_count()):
        known = {} if library is None else {"driver": library.driver(), **library.facts(uuid(f"cuda:{i}") or "")}
        properties = torch.cuda.get_device_properties(i)
        found.append(
            {
                "name": properties.name,
                "capability": f"sm_{properties.major}{properties.minor}",
                "memory_bytes": properties.total_memory,
                "cuda": torch.version.cuda,
                **known,
            }
        )
    return found


def facts() -> dict[str, Any]:
    """Describes the machine as a JSON object: cpu, isa, cores, memory_bytes, os, gpus, threads, versions.

    `usable_cores` counts the cores that the scheduler lets this process use; `threads` the CPU threads of torch now.
    """
    import torch

    cpuinfo = _cpuinfo()
    return {
        "cpu": _cpu_model(cpuinfo),
        "architecture": platform.machine(),
        "isa": isa_flags(cpuinfo),
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        "logical_cores": psutil.cpu_count() or 1,
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count() or 1,
        "memory_bytes": psutil.virtual_memory().total,
        "os": _system(),
        "gpus": gpus(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }


def instruction_sets() -> list[str]:
    """Lists the instruction sets of this machine's processor that matter for products of matrices."""
    return isa_flags(_cpuinfo())


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model"):
            return value.strip()
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def _system() -> str:
    if sys.platform.startswith("linux"):
        try:
            name = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
        except OSError:
            name = "Linux"
        return f"{name}, kernel {platform.release()}"
    return platform.platform()
