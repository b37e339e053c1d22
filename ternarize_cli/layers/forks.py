"""Keeps a forked process from waiting for threads that only its parent has.

torch's OpenMP threads do not survive a fork, and an operation with several threads in the child waits for them for
ever: a parent that has encoded and then forks (`datasets.map(num_proc=…)`, `multiprocessing`) would hang. So the first
packed layer that runs in such a child sets torch to one thread, as torch's DataLoader does in its workers.
"""

import os

import torch

__all__ = ["before_forward"]

_has_run = False
_is_forked = False


def before_forward() -> None:
    """Sets torch to one thread in a fork of a process that ran packed layers; called before one runs."""
    global _has_run, _is_forked
    _has_run = True
    if _is_forked:
        _is_forked = False
        torch.set_num_threads(1)


def _note_fork() -> None:
    global _is_forked
    _is_forked = _has_run


if hasattr(os, "register_at_fork"):  # Windows has no fork
    os.register_at_fork(after_in_child=_note_fork)
