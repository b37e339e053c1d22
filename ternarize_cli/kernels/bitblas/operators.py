"""Builds operators: one compiled kernel per weight shape, built in parallel, kept on disk, and checked before its use.

`start` has BitBLAS write the kernel and nvcc compile it, both in other processes. `get` waits for the kernel, loads it
and compares it with the exact product on the GPU, once a process. BitBLAS itself is never imported here, so that a
start with kept kernels only loads some libraries.

BitBLAS's kernel for one row is wrong. So only its kernels for any number of rows are used, with few rows padded to 16.
"""

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ternarize_cli.errors import UnavailableError
from ternarize_cli.kernels.bitblas import generate, kernel_cache, toolchain
from ternarize_cli.kernels.bitblas.layout import fitted, lay_out, padded

__all__ = ["Operator", "OperatorShape", "Statistics", "build", "get", "start", "statistics"]

_MIN_ROWS = 16
_CHECKED_ROWS = (1, 17, 130)
_TOLERANCE = 1e-3
_PROCESSES = 8
_SECONDS = 600
_DTYPES = {"int8": (torch.int8, torch.int32), "float16": (torch.float16, torch.float32)}


class OperatorShape(NamedTuple):
    """The shape that a kernel is made for: fitted widths, and "int8" or "float16" activations."""

    outputs: int
    inputs: int
    activations: str

    @classmethod
    def of(cls, outputs: int, inputs: int, activations: str) -> "OperatorShape":
        """Makes the shape for a layer of any widths, which are fitted."""
        return cls(fitted(outputs), fitted(inputs), activations)

    def __str__(self) -> str:
        return f"{self.activations}-{self.outputs}x{self.inputs}"


@dataclass
class Statistics:
    """Times of the kernels that this process built or loaded, by shape.

    Attributes:
        built: begin and end of building a kernel, in seconds of `perf_counter`.
        loaded: seconds for loading and checking a kernel from disk.
    """

    built: dict[str, tuple[float, float]] = field(default_factory=dict)
    loaded: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = []
        if self.built:
            began, ended = zip(*self.built.values(), strict=True)
            parts.append(f"{len(self.built)} built in {max(ended) - min(began):.1f} s")
        if self.loaded:
            parts.append(f"{len(self.loaded)} found on disk, loaded and checked in {sum(self.loaded.values()):.2f} s")
        return ", ".join(parts) or "none"


statistics = Statistics()


class Operator:
    """A loaded kernel."""

    def __init__(self, shape: OperatorShape, library: Path) -> None:
        self.shape = shape
        self._takes, self._gives = _DTYPES[shape.activations]
        self._call = self._loaded(library)

    def _loaded(self, library: Path) -> Any:
        loaded: Any = ctypes.CDLL(str(library))
        loaded.init()
        loaded.call.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p]
        loaded.call.restype = None
        return loaded.call

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """Computes the product of activations and weights on the current CUDA stream.

        Args:
            x: `[rows, in]`, int8 or float16; `in` may be less than the fitted width.
            weight: weights as `lay_out` packs them.

        Returns:
            int32 or float32 `[rows, fitted out]`.
        """
        rows = len(x)
        x = padded(x.to(self._takes), _MIN_ROWS if rows else 0)
        y = torch.empty(len(x), self.shape.outputs, dtype=self._gives, device=x.device)
        self._launch(x, weight, y)
        return y[:rows]

    def _launch(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        stream = torch.cuda.current_stream(x.device).cuda_stream
        self._call(x.data_ptr(), weight.data_ptr(), y.data_ptr(), len(x), stream)

    def check(self, device: str = "cuda") -> None:
        """Compares the kernel with the exact product for few, odd and many rows.

        Raises:
            RuntimeError: the results differ.
        """
        generator = torch.Generator().manual_seed(0)
        size = (self.shape.outputs, self.shape.inputs)
        codes = torch.randint(-1, 2, size, generator=generator, dtype=torch.int8).to(device)
        weight = lay_out(codes, self.shape.activations)
        for rows in _CHECKED_ROWS:
            q = torch.randint(-127, 128, (rows, self.shape.inputs), generator=generator, dtype=torch.int8).to(device)
            x = q if self._takes == torch.int8 else (q.double() / 127).half()
            got, exact = self(x, weight).double(), x.double() @ codes.double().T
            wrong = (got - exact).norm() / exact.norm()
            if not wrong <= (0 if self._takes == torch.int8 else _TOLERANCE):
                raise RuntimeError(f"its results are wrong at {rows} rows (relative error {float(wrong):.2g})")


_BUILDS: dict[OperatorShape, "Future[Path]"] = {}
_LOCK = Lock()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(1, min(_PROCESSES, os.cpu_count() or 1)))


def start(shape: OperatorShape) -> None:
    """Starts to build a kernel, unless it is on disk, loaded or being built."""
    with _LOCK:
        if shape not in _BUILDS:
            whole = kernel_cache.find(str(shape))
            if whole is None:
                _BUILDS[shape] = _pool().submit(_built, shape, torch.cuda.get_device_capability())
            else:
                _BUILDS[shape] = Future()
                _BUILDS[shape].set_result(whole)


def build(shapes: Iterable[OperatorShape]) -> None:
    """Builds the missing kernels in parallel, and loads and checks all of `shapes`.

    Raises:
        UnavailableError: a kernel can't be built, or its results are wrong.
    """
    wanted = sorted(set(shapes))
    for shape in wanted:
        start(shape)
    for shape in wanted:
        get(shape)


@cache
def get(shape: OperatorShape) -> Operator:
    """Gives the checked operator of a shape; waits if it is being built.

    A kept library that can't be loaded, or whose results are wrong, is built anew once.

    Raises:
        UnavailableError: the kernel can't be built, or its results are wrong.
    """
    start(shape)
    try:
        library = _BUILDS[shape].result()
        began = perf_counter()
        try:
            operator = _checked(shape, library)
        except (OSError, AttributeError, RuntimeError):
            if str(shape) in statistics.built:
                raise
            operator = _checked(shape, _built(shape, torch.cuda.get_device_capability()))
        if str(shape) not in statistics.built:
            statistics.loaded[str(shape)] = perf_counter() - began
    except (OSError, AttributeError, RuntimeError) as e:
        _BUILDS.pop(shape, None)
        raise UnavailableError(
            f"bitblas has no kernel for {shape.outputs} × {shape.inputs} ({shape.activations}): {e}",
            hint="run ternarize doctor, or choose another --backend",
        ) from e
    return operator


def _checked(shape: OperatorShape, library: Path) -> Operator:
    operator = Operator(shape, library)
    operator.check()
    return operator


def _built(shape: OperatorShape, capability: tuple[int, int]) -> Path:
    """Builds a kernel and keeps it.

    Raises:
        RuntimeError: BitBLAS or nvcc failed; the text is the last error that it wrote.
    """
    began = perf_counter()
    code = kernel_cache.workshop() / f"{shape}-{os.getpid()}.cu"
    wanted = {**shape._asdict(), "target": toolchain.target(capability), "file": str(code)}
    _run([sys.executable, "-P", str(generate.__file__)], "bitblas", given=json.dumps(wanted))
    library = code.with_suffix(".so")
    compiling = [*toolchain.flags(capability, toolchain.known_codes()), *toolchain.headers()]
    _run([toolchain.nvcc() or "nvcc", *compiling, str(code), "-o", str(library)], "nvcc")
    library = kernel_cache.keep(str(shape), library)
    statistics.built[str(shape)] = began, perf_counter()
    return library


def _run(command: list[str], who: str, given: str = "") -> None:
    try:
        ran = subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=_SECONDS, env=toolchain.environment(),
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:
        raise RuntimeError(f"{who} did not run: {e}") from e
    if ran.returncode:
        said = [line.strip() for line in (ran.stderr + ran.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "error" in line.lower()] or said
        raise RuntimeError(f"{who} ended with {ran.returncode}: {' '.join(errors[-2:])[-400:]}")
