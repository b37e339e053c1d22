"""Kernels for training on a GPU: what a block computes besides products, forward and backward, in Triton.

PyTorch makes each of these operations a pass over memory, in float32 where autocast asks for it. Here a pass reads and
writes the dtype of the products, and computes in float32. The modules import Triton, so import them only where
`compiles` says that it can be used.
"""

import importlib.util
import warnings
from functools import cache

import torch

__all__ = ["compiles"]


@cache
def compiles() -> bool:
    """Whether Triton compiles the kernels for the GPU; tried once, and a warning says why it does not.

    Cards before compute capability 8.0 have too little shared memory for them, and no bfloat16.
    """
    is_fit = torch.version.hip is None and torch.cuda.get_device_capability() >= (8, 0)
    if not is_fit or importlib.util.find_spec("triton") is None:
        return False
    try:
        from ternarize_cli.arithmetic.gpu_training.column_sums import column_sums

        column_sums(torch.ones(2, 16, device="cuda"))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as e:  # no compiler, no header of Python: each has a class of its own
        why = str(e).partition("\n")[0]
        warnings.warn(f"training is slower: its kernels can't be compiled here: {why}", stacklevel=2)
        return False
    return True
