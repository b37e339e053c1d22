"""Tells kernels what the host knows of a batch of texts: the number of tokens of each.

A mask on a GPU holds the same numbers, but reading them back makes the host wait for all work that the card has. What
tokenised the texts knows the lengths, so it notes them at the mask, and a kernel that needs one of them on the host
(the number of real tokens, the longest text) finds it there.
"""

from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["lengths_of", "with_lengths"]

_NAME = "ternarize_lengths"


def with_lengths(mask: Tensor, lengths: np.ndarray | None) -> Tensor:
    """Notes lengths at a mask, and returns the mask.

    Args:
        mask: int64 `[texts, tokens]`, on any device: in row i, `lengths[i]` ones and then zeros. A tensor that was
            made in inference mode must not change afterwards, since it does not count its changes.
        lengths: int64 `[texts]`; None notes nothing.
    """
    noted: Any = mask
    if lengths is not None:
        setattr(noted, _NAME, (_changes(mask), lengths))
    return mask


def lengths_of(mask: Tensor) -> np.ndarray | None:
    """Returns the lengths that were noted at this very tensor, int64 `[texts]`.

    Returns None if none were, or the mask has changed in place since.
    """
    found: tuple[int, np.ndarray] | None = getattr(mask, _NAME, None)
    return found[1] if found is not None and found[0] == _changes(mask) else None


def _changes(mask: Tensor) -> int:
    """Returns the number of changes in place, which a tensor that was made in inference mode does not count."""
    return 0 if mask.is_inference() else mask._version
