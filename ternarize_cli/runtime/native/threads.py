"""Says how many threads a call of the compiled library may have.

OpenMP's threads do not survive a fork, and a call with several threads in the child would wait for them for ever. So a
child of a process whose calls had several of them has one. The library with threads of its own starts them anew there.
"""

import os
from collections.abc import Callable

from ternarize_cli.runtime.native.interface import MAX_THREADS
from ternarize_cli.runtime.native.processors import processors

__all__ = ["keep_forks_alive", "set_threads", "threads"]

_wanted: Callable[[], int] | None = None
_had_several = False
_is_forked = False


def set_threads(count: Callable[[], int] | None) -> None:
    """Sets what says how many threads a call may have at most, such as `torch.get_num_threads`.

    Args:
        count: a function that gives the number; None: OMP_NUM_THREADS, or as many as there are processors.
    """
    global _wanted
    _wanted = count


def threads() -> int:
    """Returns how many threads a call may have: as many as `set_threads` said, but no more than processors."""
    global _had_several
    if _is_forked:
        return 1
    count = max(1, min(_named() if _wanted is None else _wanted(), MAX_THREADS, processors()))
    _had_several = _had_several or count > 1
    return count


def keep_forks_alive() -> None:
    """Gives calls one thread in children of this process that are forked after a call had several; for OpenMP."""
    if hasattr(os, "register_at_fork"):  # Windows has no fork
        os.register_at_fork(after_in_child=_note_fork)


def _note_fork() -> None:
    global _is_forked
    _is_forked = _is_forked or _had_several


def _named() -> int:
    """Returns the number in OMP_NUM_THREADS, which may be a list of which the first counts; else the largest."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else MAX_THREADS
