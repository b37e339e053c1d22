"""Says how many threads a call of the compiled library may have."""

import os
from collections.abc import Callable

from ternarize_cli.runtime.native.interface import MAX_THREADS
from ternarize_cli.runtime.native.processors import processors

__all__ = ["set_threads", "threads"]

_wanted: Callable[[], int] | None = None


def set_threads(count: Callable[[], int] | None) -> None:
    """Sets what says how many threads a call may have at most, such as `torch.get_num_threads`.

    Args:
        count: a function that gives the number; None: OMP_NUM_THREADS, or as many as there are processors.
    """
    global _wanted
    _wanted = count


def threads() -> int:
    """Returns how many threads a call may have: as many as `set_threads` said, but no more than processors."""
    return max(1, min(_named() if _wanted is None else _wanted(), MAX_THREADS, processors()))


def _named() -> int:
    """Returns the number in OMP_NUM_THREADS, which may be a list of which the first counts; else the largest."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else MAX_THREADS
