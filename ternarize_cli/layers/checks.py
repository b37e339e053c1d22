"""Values that no layer computes with, refused in words."""

import torch
from torch import Tensor

from ternarize_cli.errors import FormatError

__all__ = ["check_ids", "check_scale"]


def check_ids(ids: Tensor, rows: int) -> None:
    """Says in words that an id is beyond a table; on a GPU, where looking would cost a wait, torch says it later."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    if int(ids.max()) >= rows or int(ids.min()) < 0:
        raise FormatError(
            f"an id is beyond a table of {rows} rows: the tokenizer is another model's, or the text is too long",
            hint="fetch or make the model again",
        )


def check_scale(scale: Tensor, name: str) -> None:
    """Raises FormatError unless every scale is finite and not negative."""
    bad = ~torch.isfinite(scale) | (scale < 0)
    if bad.any():
        value = float(scale[bad].flatten()[0])
        raise FormatError(f"{name}: a scale is {value}; scales are finite and not negative")
