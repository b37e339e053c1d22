"""Reads from the driver of NVIDIA GPUs its version, and a GPU's limits, clocks and used energy.

    driver ships libnvidia-ml.so.1 ──ctypes──▶ Nvml     nvmlDeviceGet… fills a number and returns 0, or an error

The library comes with the driver, so nothing has to be installed. GPUs are found by their UUID, because torch counts
only the GPUs in CUDA_VISIBLE_DEVICES, and NVML counts all. A value that the GPU or the driver does not give is None.
"""

import ctypes
import sys
from functools import cache
from typing import Any

__all__ = ["Nvml", "nvml"]

_NAME = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
_SM, _MEMORY = 1, 2  # nvmlClockType_t
_LONGEST = 96


class Nvml:
    """The initialised library NVML.

    Args:
        path: path of the library.

    Raises:
        OSError: the library is missing, or finds no driver.
    """

    def __init__(self, path: str = _NAME) -> None:
        self._library = ctypes.CDLL(path)
        if self._library.nvmlInit_v2() != 0:
            raise OSError(f"{path} finds no driver")

    def driver(self) -> str | None:
        """The driver's version, such as 570.86.10."""
        text = ctypes.create_string_buffer(_LONGEST)
        failed = self._library.nvmlSystemGetDriverVersion(text, ctypes.c_uint(_LONGEST))
        return None if failed else text.value.decode("ascii", errors="replace")

    def facts(self, uuid: str) -> dict[str, Any]:
        """Reads a GPU's power limit in watts, and the highest clocks of its processors and memory in MHz."""
        limit = self._number(uuid, "nvmlDeviceGetPowerManagementLimit", ctypes.c_uint)
        return {
            "power_limit_w": None if limit is None else limit / 1000,
            "max_sm_mhz": self._number(uuid, "nvmlDeviceGetMaxClockInfo", ctypes.c_uint, _SM),
            "max_memory_mhz": self._number(uuid, "nvmlDeviceGetMaxClockInfo", ctypes.c_uint, _MEMORY),
        }

    def joules(self, uuid: str) -> float | None:
        """Reads the joules that a whole GPU board used since the driver was loaded; None for GPUs before Volta."""
        used = self._number(uuid, "nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)
        return None if used is None else used / 1000

    def _number(self, uuid: str, function: str, kind: Any, *what: int) -> int | None:
        handle, number = ctypes.c_void_p(), kind()
        if self._library.nvmlDeviceGetHandleByUUID(uuid.encode(), ctypes.byref(handle)) != 0:
            return None
        call = getattr(self._library, function, None)
        arguments = (handle, *(ctypes.c_int(value) for value in what), ctypes.byref(number))
        return None if call is None or call(*arguments) != 0 else int(number.value)


@cache
def nvml() -> Nvml | None:
    """Loads the machine's NVML library; None if there is none."""
    try:
        return Nvml()
    except (OSError, AttributeError):
        return None
