"""How many processors this process may use: in a container or a service, these are often fewer than the machine has.

torch's number of threads follows the affinity and OMP_NUM_THREADS, and knows nothing of the quotas of control groups
(cgroups). A container of 2 CPUs on a machine of 64 that starts 64 threads uses its time up at once, then stands still.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["processors", "quota"]


def processors() -> int:
    """Returns how many processors this process may use, by its affinity and its quota, which is rounded up."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        groups = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return usable
    allowed = quota(groups, Path("/sys/fs/cgroup"))
    return usable if allowed is None else max(1, min(usable, math.ceil(allowed)))


def quota(groups: str, root: Path) -> float | None:
    """Returns the processors that control groups allow, which may be a fraction; None if they set no limit.

    A group has no more than the groups that it lies in, so the least of all of them counts. Where a container sees only
    its own group, this is mounted at the root, and the path in `groups` is not there.

    Args:
        groups: the content of /proc/self/cgroup: lines of `hierarchy:controllers:path`; version 2 has no controllers.
        root: where control groups are mounted.
    """
    limits: list[float] = []
    for line in groups.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            folders = [root, root / "unified"]
        elif "cpu" in controllers.split(","):
            folders = [root / controllers, root / "cpu"]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        for folder in folders:
            for depth in range(len(parts), -1, -1):
                limits += _limits(folder.joinpath(*parts[:depth]))
    return min(limits, default=None)


def _limits(group: Path) -> Iterator[float]:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):  # version 2 and version 1
        try:
            words = [word for name in names for word in (group / name).read_text(encoding="ascii").split()]
            time, period = (float(word) for word in words[:2])
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
        if time > 0 and period > 0:  # -1: no limit
            yield time / period
