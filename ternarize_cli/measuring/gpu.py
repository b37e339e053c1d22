"""Measures on an NVIDIA GPU: times between events, exact or rounded fp32 products, and bytes of device memory.

A GPU works asynchronously: a call returns once its kernels are queued. So a pass has two times,

    host    call ──launch──launch──launch────────────────────wait─▶ result     from call to result
    device           ▲kernel  kernel  kernel ............. kernel▲             between two events in the stream

and their difference is the cost of launching and waiting. Gaps between kernels, where the host launches them too
slowly, are part of both.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Events", "allocated", "is_gpu", "on", "reachable", "storage_bytes", "synchronize", "tf32", "uuid"]


def is_gpu(device: str) -> bool:
    """Whether a torch device is a GPU."""
    return torch.device(device).type == "cuda"


def on(device: str) -> AbstractContextManager[object]:
    """Makes a GPU the current device, on which kernels are launched; does nothing for the CPU."""
    return torch.cuda.device(device) if is_gpu(device) and torch.device(device).index is not None else nullcontext()


def synchronize(device: str) -> None:
    """Waits until all work of the device is done."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def uuid(device: str) -> str | None:
    """The UUID of a GPU as the driver writes it; None for the CPU, and if torch does not know it."""
    if not is_gpu(device):
        return None
    found = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    if not found:
        return None
    return found if found.startswith(("GPU-", "MIG-")) else f"GPU-{found}"


class Events:
    """Times calls on a GPU with two events in the stream; has the interface of `timing.Watch`."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._first, self._last = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def begin(self) -> None:
        """Waits for earlier work, then marks the start."""
        synchronize(self._device)
        self._first.record()

    def end(self) -> None:
        """Marks the end of the queued work, and waits for it."""
        self._last.record()
        synchronize(self._device)

    def seconds(self) -> float:
        """Seconds between the two marks."""
        return float(self._first.elapsed_time(self._last)) / 1000


@contextmanager
def tf32(wanted: bool) -> Iterator[None]:
    """Lets fp32 products and convolutions round their inputs to TF32 (10 bits of fraction), or not, in the body."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if wanted else "highest")
    torch.backends.cudnn.allow_tf32 = wanted
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


def allocated(device: str) -> int:
    """Counts the bytes of live tensors on a GPU; first frees cuBLAS's workspace, which torch would count too."""
    synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated(device)


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Counts the bytes of the tensors' storages; a storage that several tensors share counts once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def reachable(start: object, kind: type, without: tuple[type, ...] = ()) -> list[Any]:
    """Finds objects of a class that a model holds in modules, containers, closures and objects of this package.

    Args:
        start: the object to begin with; functions are searched if they belong to this package.
        kind: the class.
        without: classes whose objects are not searched.
    """
    found: list[Any] = []
    seen: set[int] = set()
    waiting: list[object] = [start]
    while waiting:
        x = waiting.pop()
        if id(x) in seen or isinstance(x, without):
            continue
        seen.add(id(x))
        if isinstance(x, kind):
            found.append(x)
        waiting += _inside(x)
    return found


def _inside(x: object) -> list[object]:
    if isinstance(x, Tensor):
        return []
    if isinstance(x, dict):
        return list(x.values())
    if isinstance(x, list | tuple | set):
        return list(x)
    if isinstance(x, FunctionType) and x.__module__.startswith("ternarize_cli."):
        return [cell.cell_contents for cell in x.__closure__ or () if _is_filled(cell)]
    if isinstance(x, nn.Module) or type(x).__module__.startswith("ternarize_cli."):
        return list(getattr(x, "__dict__", {}).values())
    return []


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018  (raises ValueError for an empty cell)
    except ValueError:
        return False
    return True
