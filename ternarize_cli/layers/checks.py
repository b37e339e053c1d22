"""Refuses ids and scales that no layer can compute with, with clear messages."""

import torch
from torch import Tensor

from ternarize_cli.errors import FormatError

__all__ = ["check_ids", "check_scale"]


def check_ids(ids: Tensor, rows: int) -> None:
    """Raises an error if an id is beyond a table of `rows` rows.

    On a GPU this check would wait for the device, so it is left to torch.
    """
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
