"""A rival compiled on the spot: `torch.compile`, fp32, on the CPU.

torch writes C++ for the model's element-wise work and compiles it, which takes seconds to a minute, so a C++ compiler
has to be there. Batch and length stay free (`dynamic=True`): a server does not compile again for every length. One
input and several are two programs, and both are compiled while it loads, as other runtimes optimise their graphs
while they load. torch keeps compiled code in a cache folder of its own, from where the next process takes it; the model
is traced again by each.
"""

import shutil
from pathlib import Path

import torch

from ternarize_cli.bench import exports
from ternarize_cli.bench.baselines import Forward, forward_of, rival
from ternarize_cli.bench.inputs import random_batch
from ternarize_cli.bench.measure import Point
from ternarize_cli.errors import UnavailableError

__all__: list[str] = []

_TOKENS = 8


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
    from torch._dynamo.exc import TorchDynamoException

    model = exports.transformer(path, torch.float32)
    model.compile(dynamic=True)
    forward = forward_of(model)
    try:
        with torch.inference_mode(), exports.quiet():
            for batch in (2, 1):
                forward(*random_batch(path, Point(batch, _TOKENS), seed=0))
    except TorchDynamoException as e:
        reason = " ".join(str(e).split())[:200]
        raise UnavailableError(f"torch-compiled can't run here: {reason}", hint="leave it out") from e
    return forward
