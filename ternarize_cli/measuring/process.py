"""Says when this process began."""

import time

import psutil

__all__ = ["began"]


def began() -> float:
    """Returns the time at which this process began, as `time.time` counts it, to a hundredth of a second.

    Where there is no clock that counts from the start of the machine, such as on macOS, it is what psutil says.
    """
    created = float(psutil.Process().create_time())
    if not hasattr(time, "CLOCK_BOOTTIME"):
        return created
    # Linux gives the start of the machine in whole seconds, which psutil adds to the process's time since then
    since_start = created - float(psutil.boot_time())
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - since_start)
