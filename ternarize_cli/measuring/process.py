"""Says when this process began."""

import psutil

__all__ = ["began"]


def began() -> float:
    """Returns the time at which this process began, as `time.time` counts it, to a hundredth of a second."""
    return float(psutil.Process().create_time())
