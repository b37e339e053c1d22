"""Chains of elementwise operations as one GPU kernel."""

import functools
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["fused"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def fused(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The same function; on CUDA tensors it is compiled by torch, or runs as it is where that fails.

    Compiled divisions may differ in the last bit: not for what must equal the packed format.
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
