"""Compiles chains of elementwise operations to one GPU kernel."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["fused"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def fused(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Wraps a function so that torch compiles it for CUDA tensors; where that fails, it runs uncompiled.

    Compiled divisions may differ in the last bit, so do not use this for values that must equal the packed format.
    """
    compiled = functools.cache(lambda: torch.compile(function, dynamic=True))
    works = True

    @functools.wraps(function)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        nonlocal works
        if not works or not any(isinstance(value, torch.Tensor) and value.is_cuda for value in args):
            return function(*args, **kwargs)
        try:
            return compiled()(*args, **kwargs)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, OSError, ImportError) as e:  # no compiler, no Triton
            works = False
            why = str(e).partition("\n")[0]
            warnings.warn(f"training is slower: {function.__name__} can't be compiled here: {why}", stacklevel=2)
            return function(*args, **kwargs)

    return run
