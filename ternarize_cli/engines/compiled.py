"""Rivals compiled on the spot by `torch.compile`: fp32 on the CPU, fp16 on a GPU.

On the CPU torch writes C++ for the model's element-wise work and compiles it, which takes seconds to a minute, so a C++
compiler has to be there. Batch and length stay free (`dynamic=True`): a server does not compile again for every length.
One input and several are two programs, and both are compiled while it loads, as other runtimes optimise their graphs
while they load. torch keeps compiled code in a cache folder of its own, from where the next process takes it; the model
is traced again by each.

On a GPU torch writes Triton kernels, and records a pass as a CUDA graph. It is given every shape as a program of its
own (`dynamic=False`), which is the fastest it can be, and takes up to a minute a shape:

    torch-fp16-compiled   mode="reduce-overhead": cuBLAS's products, fused element-wise work
    torch-fp16-autotuned  mode="max-autotune": Triton's products, too, where they measured faster; several minutes, and
                          at some shapes slower in the end

What a recorded pass returns is overwritten by the next one.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.engines import exports
from ternarize_cli.engines.baselines import Forward, ModelForward, forward_of, rival
from ternarize_cli.engines.inputs import random_batch
from ternarize_cli.errors import UnavailableError
from ternarize_cli.measuring.timing import Point

__all__ = ["FixedShapes", "fixed_shapes", "without_gpu_compiler"]

_TOKENS = 8
_PROGRAMS = 4096  # of one function; torch's own limit is 8, and beyond it runs eagerly without saying so
_CALLS = 3  # to compile, to record, to run what was recorded


def _without_compiler() -> str | None:
    from torch._inductor import config

    wanted = [name for name in (config.cpp.cxx if isinstance(config.cpp.cxx, tuple) else [config.cpp.cxx]) if name]
    if any(shutil.which(name) for name in wanted):
        return None
    return f"torch.compile finds no C++ compiler ({', '.join(wanted)}); install g++, or set CXX"


@rival(
    "torch-compiled",
    "PyTorch, fp32, torch.compile",
    runtime="torch._inductor.compile_fx",
    missing=_without_compiler,
    cpu_only=True,
    same_vectors=True,
)
def _torch_compiled(path: Path, device: str) -> Forward:
    model = exports.transformer(path, torch.float32)
    model.compile(dynamic=True)
    forward = forward_of(model)
    with torch.inference_mode():
        for batch in (2, 1):
            _made_ready("torch-compiled", forward, random_batch(path, Point(batch, _TOKENS), seed=0))
    return forward


class FixedShapes:
    """A `Forward` that is compiled anew for each shape, when that comes up for the first time.

    Attributes:
        model: as `ModelForward`.
    """

    def __init__(self, name: str, forward: ModelForward) -> None:
        self.model = forward.model
        self._name, self._forward = name, forward
        self._seen: set[tuple[torch.Size, ...]] = set()

    def __call__(self, *batch: Tensor) -> Tensor:
        """As `Forward`; what it returned before is no longer valid then."""
        shapes = tuple(t.shape for t in batch)
        if shapes not in self._seen:
            for _ in range(_CALLS):
                _made_ready(self._name, self._run, batch)
            self._seen.add(shapes)
        return self._run(*batch)

    def _run(self, *batch: Tensor) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return self._forward(*batch)


def fixed_shapes(name: str, model: nn.Module, dtype: torch.dtype, **settings: Any) -> FixedShapes:
    """A model compiled for each shape by itself; `settings` are torch.compile's."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = _PROGRAMS
    torch._dynamo.config.accumulated_recompile_limit = _PROGRAMS
    model.compile(dynamic=False, **settings)
    return FixedShapes(name, forward_of(model, dtype))


def _made_ready(name: str, forward: Forward, batch: tuple[Tensor, ...]) -> None:
    from torch._dynamo.exc import TorchDynamoException

    try:
        with exports.quiet():
            forward(*batch)
    except TorchDynamoException as e:
        reason = " ".join(str(e).split())[:200]
        raise UnavailableError(f"{name} can't run here: {reason}", hint="leave it out") from e


def without_gpu_compiler() -> str | None:
    """Why torch.compile can't compile for a GPU here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed (it comes with torch for CUDA on Linux)"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (7, 0):
        return f"{torch.cuda.get_device_name()} is too old for Triton"
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        return "Triton finds no C compiler; install gcc"
    return None


@rival(
    "torch-fp16-compiled",
    "PyTorch, fp16, torch.compile with CUDA graphs",
    runtime="torch._inductor.compile_fx",
    missing=without_gpu_compiler,
    cuda_only=True,
    same_vectors=True,
)
def _torch_fp16_compiled(path: Path, device: str) -> Forward:
    return _half("torch-fp16-compiled", path, device, "reduce-overhead")


@rival(
    "torch-fp16-autotuned",
    "PyTorch, fp16, torch.compile with CUDA graphs and autotuned products; minutes to compile",
    runtime="torch._inductor.compile_fx",
    missing=without_gpu_compiler,
    cuda_only=True,
    same_vectors=True,
)
def _torch_fp16_autotuned(path: Path, device: str) -> Forward:
    from torch._inductor import select_algorithm

    select_algorithm.PRINT_AUTOTUNE = False
    return _half("torch-fp16-autotuned", path, device, "max-autotune")


def _half(name: str, path: Path, device: str, mode: str) -> Forward:
    model = exports.transformer(path, torch.float16).to(device)
    return fixed_shapes(name, model, torch.float16, mode=mode)
