"""How many processors this process may use: in a container or a service, these are often fewer than the machine has.

torch's number of threads follows the affinity and OMP_NUM_THREADS, and knows nothing of the quotas of control groups
(cgroups). A container of 2 CPUs on a machine of 64 that starts 64 threads uses its time up at once, then stands still.
"""

import math
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["processors", "quota"]


@cache
def processors() -> int:
    """Returns how many processors this process may use, by its affinity and its quota, which is rounded up.

    It is looked up once: a quota that changes while the process runs is not followed.
    """
    usable = len(os.sched_getaffinity(os.getpid())) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        groups, mounts = (
            Path("/proc/self", name).read_text(encoding="utf-8", errors="replace") for name in ("cgroup", "mountinfo")
        )
    except OSError:
        return usable
    allowed = quota(groups, mounts)
    return usable if allowed is None else max(1, min(usable, math.ceil(allowed)))


def quota(groups: str, mounts: str) -> float | None:
    """Returns the processors that control groups allow, which may be a fraction; None if they set no limit.

    A group has no more than the groups that it lies in, so the least of all that can be seen counts.

    Args:
        groups: the content of /proc/self/cgroup: lines of `hierarchy:controllers:path`; version 2 has no controllers.
        mounts: the content of /proc/self/mountinfo.
    """
    limits: list[float] = []
    for line in groups.splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        for root, point in _mounted(mounts, is_second=not controllers):
            # A container may see its own group at the mount's root, or have a path that lies outside of the mount.
            is_inside = path == root or path.startswith(f"{root.rstrip('/')}/")
            inner = [part for part in path[len(root) :].split("/") if part] if is_inside else []
            for depth in range(len(inner) + 1):
                limits += _limits(point.joinpath(*inner[:depth]))
    return min(limits, default=None)


def _mounted(mounts: str, *, is_second: bool) -> Iterator[tuple[str, Path]]:
    """Where control groups of version 2, or those of version 1 that limit processors, are mounted: group and folder."""
    for line in mounts.splitlines():
        words, _, kind = (part.split() for part in line.partition(" - "))
        if len(words) < 5 or len(kind) < 3:
            continue
        if kind[0] == "cgroup2" if is_second else kind[0] == "cgroup" and "cpu" in kind[2].split(","):
            yield words[3], Path(words[4])


def _limits(group: Path) -> Iterator[float]:
    """The limit of a group, if it has one, in files of version 2 or of version 1."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            words = [word for name in names for word in (group / name).read_text(encoding="ascii").split()]
            time, period = (float(word) for word in words[:2])
        except (OSError, ValueError):  # no such file, or no limit: "max"
            continue
        if time > 0 and period > 0:  # -1: no limit
            yield time / period
