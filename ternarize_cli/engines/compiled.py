"""Rivals that `torch.compile` compiles when they are loaded: fp32 on the CPU, fp16 on a GPU.

On the CPU torch writes C++ for the model's element-wise work and compiles it, which takes seconds to a minute and needs
a C++ compiler. Batch and length stay variable (`dynamic=True`), since a server does not compile again for every length.
One input and several inputs are two programs, and both are compiled while the rival loads, as other runtimes optimise
their graphs while they load. torch keeps compiled code in its own cache folder for later processes; each process traces
the model again.

On a GPU torch writes Triton kernels, and records a pass as a CUDA graph. Every shape is compiled as a separate program
(`dynamic=False`), which is fastest, and takes up to a minute a shape:

    torch-fp16-compiled   mode="reduce-overhead": cuBLAS's products, fused element-wise work
    torch-fp16-autotuned  mode="max-autotune": also Triton's products where they measured faster; takes several minutes,
                          and is slower at some shapes

The result of a recorded pass is overwritten by the next pass.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.engines import exports
from ternarize_cli.engines.baselines import EXACT, Forward, ModelForward, forward_of, rival
from ternarize_cli.engines.inputs import random_batch
from ternarize_cli.errors import UnavailableError
from ternarize_cli.measuring.timing import GridPoint

__all__ = ["FixedShapes", "fixed_shapes", "without_gpu_compiler"]

_TOKENS = 8
_PROGRAMS = 4096  # programs of one function; beyond torch's own limit of 8, it silently runs eagerly
_CALLS = 3  # one call compiles, one records, one runs the recording


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
    tolerance=EXACT,
    cpu_only=True,
    same_vectors=True,
)
def _torch_compiled(path: Path, device: str) -> Forward:
    model = exports.transformer(path, torch.float32)
    model.compile(dynamic=True)
    forward = forward_of(model)
    with torch.inference_mode():
        for batch in (2, 1):
            _made_ready("torch-compiled", forward, random_batch(path, GridPoint(batch, _TOKENS), seed=0))
    return forward


class FixedShapes:
    """A `Forward` that is compiled for each shape when the shape occurs for the first time.

    Attributes:
        model: the encoder.
    """

    def __init__(self, name: str, forward: ModelForward) -> None:
        self.model = forward.model
        self._name, self._forward = name, forward
        self._seen: set[tuple[torch.Size, ...]] = set()

    def __call__(self, *batch: Tensor) -> Tensor:
        """Runs a batch: [batch, tokens, width]. Earlier results are no longer valid after the call."""
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
    """Compiles a model separately for each shape; `settings` are arguments of torch.compile."""
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
    """Says why torch.compile can't compile for a GPU on this machine; None if it can."""
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
