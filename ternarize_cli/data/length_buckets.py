"""Groups inputs of similar length into batches: few long inputs, or many short ones.

A batch is padded to its longest input, so similar lengths mean little padding. A budget of tokens makes all batches
take about as much work and memory, whatever the length of their inputs.
"""

import numpy as np

__all__ = ["by_length", "width_of"]


def width_of(length: int) -> int:
    """The length in tokens to which an input is padded: above 8, in steps of 8, or of an eighth if that is more."""
    step = 1 if length <= 8 else max(8, 1 << (length.bit_length() - 4))
    return -(-length // step) * step


def by_length(lengths: np.ndarray, budget: int, real: int | None = None) -> list[np.ndarray]:
    """Groups inputs, the longest first.

    Args:
        lengths: number of tokens of each input, int `[inputs]`.
        budget: the most tokens of a group, padded to `width_of` its longest input; a longer input is a group alone.
        real: the most tokens of a group without padding, likewise; None for no such limit.

    Returns:
        For each group, the positions of its inputs in `lengths`; the last group may be smaller than the budget.
    """
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    groups, start = [], 0
    while start < len(order):
        longest = int(lengths[order[start]])
        count = max(1, budget // width_of(max(1, longest)))
        if real is not None:
            fitting = int(np.searchsorted(ends, ends[start] - longest + real, side="right")) - start
            count = max(1, min(count, fitting))
        groups.append(order[start : start + count])
        start += count
    return groups
