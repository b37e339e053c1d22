"""Checks that ids and scales are such that a layer can compute with them."""

import torch
from torch import Tensor

from ternarize_cli.errors import FormatError

__all__ = ["check_ids", "check_scale"]


def check_ids(ids: Tensor, rows: int) -> None:
    """Checks that every id names a row of a table of `rows` rows.

    On a GPU the check would wait for the device, so it is made for ids on the CPU only; torch itself checks the others.

    Raises:
        FormatError: an id is negative, or `rows` or more.
    """
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    if int(ids.max()) >= rows or int(ids.min()) < 0:
        raise FormatError(
            f"an id is beyond a table of {rows} rows: the tokenizer is another model's, or the text is too long",
            hint="fetch or make the model again",
        )


def check_scale(scale: Tensor, name: str) -> None:
    """Checks that every scale is finite and not negative.

    Raises:
        FormatError: a scale is negative, infinite or NaN; the message calls the tensor `name`.
    """
    bad = ~torch.isfinite(scale) | (scale < 0)
    if bad.any():
        value = float(scale[bad].flatten()[0])
        raise FormatError(f"{name}: a scale is {value}; scales are finite and not negative")
