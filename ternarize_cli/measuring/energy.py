"""Measures the energy of a pass on a GPU with the GPU's own counter, which counts the whole board.

The counter moves in steps of about ten milliseconds. So passes are repeated for a second or more, between two of its
steps, and the counted energy is divided by their number:

    counter   ▏step        ▏step  …  ▏step       ▏step
    passes     ████████████████████████████
              ▲ from here                        ▲ to here: idling to the next step adds little
"""

import time
from collections.abc import Callable

import torch

from ternarize_cli.measuring import gpu
from ternarize_cli.measuring.nvml import nvml

__all__ = ["counter", "per_pass", "unknown"]

_LONGEST_STEP = 0.5


def counter(device: str) -> Callable[[], float] | None:
    """Makes a function that reads the joules that a GPU has used so far; None if the device has no counter."""
    library, uuid = nvml(), gpu.uuid(device)
    if library is None or uuid is None or library.joules(uuid) is None:
        return None
    return lambda: library.joules(uuid) or 0.0


def per_pass(
    run: Callable[[], object],
    read: Callable[[], float],
    wait: Callable[[], object] = torch.cuda.synchronize,
    *,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Measures the joules of a pass, rounded to three digits.

    Args:
        run: a function that runs a pass.
        read: the counter, in joules.
        wait: a function that returns when a pass is done.
        seconds: the least time for which passes are repeated.
        clock: a monotonic clock, in seconds.
    """
    start = _step(read, clock)
    begun, passes = clock(), 0
    while clock() - begun < seconds:
        run()
        wait()
        passes += 1
    return float(f"{(_step(read, clock) - start) / passes:.3g}")


def _step(read: Callable[[], float], clock: Callable[[], float]) -> float:
    """Waits until the counter moves, and reads it."""
    first, begun = read(), clock()
    while (now := read()) == first and clock() - begun < _LONGEST_STEP:
        pass
    return now


def unknown(device: str) -> str:
    """A sentence for users that says why energy is not measured."""
    why = "this GPU's driver does not tell it" if gpu.is_gpu(device) else f"it is measured on GPUs, not on {device}"
    return f"energy is left out: {why}"
