"""Energy of a pass on a GPU, from the counter of the card, which counts all of its board.

The counter moves in steps of some ten milliseconds. So passes are repeated for a second or more, between two of its
steps, and what it has counted is divided by their number:

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
    """A function that reads the joules used so far by a GPU; None where that is not known."""
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
    """Joules of a pass, three digits.

    Args:
        run: a pass.
        read: the counter.
        wait: returns when a pass is done.
        seconds: how long passes are repeated, at least.
        clock: seconds, monotonic.
    """
    start = _step(read, clock)
    begun, passes = clock(), 0
    while clock() - begun < seconds:
        run()
        wait()
        passes += 1
    return float(f"{(_step(read, clock) - start) / passes:.3g}")


def _step(read: Callable[[], float], clock: Callable[[], float]) -> float:
    """The counter just after it has moved."""
    first, begun = read(), clock()
    while (now := read()) == first and clock() - begun < _LONGEST_STEP:
        pass
    return now


def unknown(device: str) -> str:
    """Why there is no counter, for people."""
    why = "this GPU's driver does not tell it" if gpu.is_gpu(device) else f"it is measured on GPUs, not on {device}"
    return f"energy is left out: {why}"
