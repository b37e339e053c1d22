"""Runs ONNX files in ONNX Runtime on the CPU.

Sessions do not spin (`session.intra_op.allow_spinning` is 0). By default ONNX Runtime's idle threads keep polling for
work for a while after a call, and take the cores from the next timed candidate, and on two busy cores from each other.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["forward_of_onnx", "open_session"]


def open_session(model: Path | bytes) -> Any:
    """Loads an ONNX model, a file or its content, with the number of threads that torch uses now."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def forward_of_onnx(path: Path) -> Callable[..., Tensor]:
    """Loads an export; the result maps the tensors of a batch to the last hidden state, [batch, tokens, width]."""
    session = open_session(path)
    names = [entry.name for entry in session.get_inputs()]

    def forward(*batch: Tensor) -> Tensor:
        fed = {name: tensor.numpy() for name, tensor in zip(names, batch, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return forward
