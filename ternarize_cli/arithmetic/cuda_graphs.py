"""Records the kernels of a batch as a CUDA graph, so that they are started together.

A forward pass of a small encoder is many short kernels (a training step thousands), and starting them takes longer than
running them. So they are recorded once for each shape of a batch.

A recorded function must not depend on values (no `.item()`, no boolean indexing), must find its tensors at their old
addresses, and must write its results to fixed addresses: gradients are added to a buffer that stays.
"""

import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["RECORDING", "Graphs", "own_stream"]

RECORDING = threading.RLock()
"""Held while kernels are recorded: what begins a recording waits for the whole GPU, which breaks any other one."""
_MOST = 96
_TORCH = str(Path(torch.__file__).parent)

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Recorded(Generic[Result]):
    graph: torch.cuda.CUDAGraph
    inputs: Mapping[str, Any]
    result: Result


class Graphs(Generic[Result]):
    """A function of a batch, recorded when a shape occurs for the second time.

    Integers of a batch, which a recorded function keeps, are part of its shape.

    The result is overwritten when a batch of its shape is run again.
    """

    def __init__(self, function: Callable[[dict[str, Any]], Result], most: int | None = None, cost: str = "") -> None:
        """Prepares recording.

        Args:
            function: what is recorded.
            most: the most shapes to record; the memory of a result is kept for each. None: 96.
            cost: what it costs if nothing can be recorded, the end of the warning's sentence.
        """
        self._function, self._most, self._cost = function, _MOST if most is None else most, cost
        self._seen: set[Any] = set()
        self._recorded: dict[Any, _Recorded[Result]] = {}
        self._pool: Any = None
        self.refused: str | None = None  # why recording was given up

    def __call__(self, batch: dict[str, Any]) -> Result:
        """Runs the function on a batch, from its graph if there is one."""
        shape = tuple(
            (name, (value.shape, value.dtype) if isinstance(value, Tensor) else value)
            for name, value in batch.items()
            if isinstance(value, Tensor | int)
        )
        recorded = self._recorded.get(shape)
        if recorded is None and shape in self._seen and not self.refused and len(self._recorded) < self._most:
            recorded = self._record(shape, batch)
        if recorded is None:
            self._seen.add(shape)
            return self._function(batch)
        for name, value in recorded.inputs.items():
            if isinstance(value, Tensor):
                value.copy_(batch[name], non_blocking=True)
        recorded.graph.replay()
        return recorded.result

    def _record(self, shape: Any, batch: dict[str, Any]) -> _Recorded[Result] | None:
        inputs = {
            k: torch.empty_like(v, device="cuda", memory_format=torch.contiguous_format) if isinstance(v, Tensor) else v
            for k, v in batch.items()
        }
        graph = torch.cuda.CUDAGraph()
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        stream = torch.cuda.current_stream()
        if stream == torch.cuda.default_stream():  # the default stream can't be recorded
            stream = torch.cuda.Stream()
        try:
            # other threads copy batches meanwhile, which only this mode allows
            with (
                RECORDING,
                torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"),
            ):
                result = self._function(inputs)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as e:
            self.refused = _reason(e)
            warnings.warn(f"this model can't be recorded as a CUDA graph: {self.refused}{self._cost}", stacklevel=2)
            return None
        self._recorded[shape] = _Recorded(graph, inputs, result)
        return self._recorded[shape]


def _reason(error: BaseException) -> str:
    """Describes why recording failed: the first error's first line, and the function outside of torch that met it."""
    while isinstance(error.__context__, RuntimeError):  # ending a failed recording fails, too
        error = error.__context__
    places = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_TORCH)]
    where = f" (in {places[-1].name}, {Path(places[-1].filename).name}:{places[-1].lineno})" if places else ""
    return str(error).partition("\n")[0] + where


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Uses a CUDA stream other than the default one, which can't be recorded; does nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    stream, outside = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(outside)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        outside.wait_stream(stream)
