"""Finds what a step of training asks of the CPU, without a GPU: fake tensors on device `meta` stand for those on it.

A CUDA graph can't be recorded of a step that reads a value or copies a tensor from the CPU. On fake tensors reading a
value raises an error, and transformers makes the masks that it makes while a stream is recorded.
"""

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ternarize_cli.distill.trainer import Trainer
from ternarize_cli.layers import SimulatedEmbedding

DEVICE = "meta"
_TORCH = str(Path(torch.__file__).parent)


class Crossings(TorchDispatchMode):
    """Notes the operations that copy a tensor between the CPU and the device.

    A CPU tensor without dimensions is no copy: CUDA's kernels take its value as an argument.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = [t for t in tree_leaves(made) if isinstance(t, Tensor)]
        copies = "copy" in str(func)
        from_cpu = any(t.device.type == "cpu" and (t.dim() or copies) for t in given)
        if from_cpu and any(t.device.type == DEVICE for t in [*given, *out]):
            place = next(f for f in reversed(traceback.extract_stack()[:-1]) if not f.filename.startswith(_TORCH))
            self.found.append(f"{func} in {place.name}, {place.filename}:{place.lineno}")
        return made


def crossings(trainer: Trainer, batch: dict[str, Any]) -> list[str]:
    """Runs the forward and backward pass of a step twice, as `Graphs` does before and while it records.

    The trainer is of no use afterwards.

    Returns:
        The operations of the second time that copy from the CPU.

    Raises:
        Exception: the step reads a value, or its shapes depend on one.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pair = trainer.pair
        for encoder in (pair.student, pair.teacher):
            _move(encoder)
        optimisation = trainer.optimisation
        optimisation._products = None  # which a CPU may have chosen
        optimisation._queue = _fake(optimisation._queue)
        pair._ids = None if pair._ids is None else _fake(pair._ids)
        made = {name: _fake(v) if isinstance(v, Tensor) else v for name, v in batch.items()}
        optimisation._gradients_of(made)
        mode.allow_non_fake_inputs = False
        with Crossings() as seen:
            try:
                optimisation._gradients_of(made)
            except AssertionError as e:  # a tensor that is not fake was made of a number, on the CPU
                seen.found.append(str(e))
    return seen.found


def _move(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, SimulatedEmbedding):
            module.in_place = False  # as on a GPU
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(_fake(parameter), requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _fake(buffer)


def _fake(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
