"""Batches by length: inputs of like length together, few long ones or many short ones.

A batch is padded to its longest input, so like length means little padding; a budget of tokens means that all batches
are about equally much work and memory, whatever their length.
"""

import numpy as np

__all__ = ["by_length", "width_of"]


def width_of(length: int) -> int:
    """The tokens to which inputs of so many are padded: above 8 in steps of 8, or of an eighth if that is more."""
    step = 1 if length <= 8 else max(8, 1 << (length.bit_length() - 4))
    return -(-length // step) * step


def by_length(lengths: np.ndarray, budget: int) -> list[np.ndarray]:
    """Groups inputs, the longest first.

    Args:
        lengths: tokens of each input, int `[inputs]`.
        budget: tokens of a group at most when padded to `width_of` its longest; an input above it is a group alone.

    Returns:
        the places of each group's inputs in `lengths`; the last group may have room left.
    """
    order = np.argsort(-lengths, kind="stable")
    groups, start = [], 0
    while start < len(order):
        count = max(1, budget // width_of(int(lengths[order[start]])))
        groups.append(order[start : start + count])
        start += count
    return groups
