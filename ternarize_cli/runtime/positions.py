"""Computes the tables of positions that the compiled library reads: rotary cosines and sines, and relative biases."""

import math

import numpy as np

from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.block_parts import Relative, Rotary

__all__ = ["Turns", "relative_bias", "rotary_turns"]

Turns = tuple[np.ndarray, np.ndarray]
"""Cosines and sines, float32 `[positions, pairs]` each."""


def rotary_turns(rotary: Rotary, positions: int) -> Turns:
    """Computes cosines and sines of the positions 0 to `positions` - 1.

    Exponents, powers, frequencies and angles are rounded to float32, as models round them.
    """
    if rotary.frequencies:
        frequency = np.array(rotary.frequencies, dtype=np.float32)
    else:
        exponents = np.arange(0, rotary.numbers, 2, dtype=np.float32) / np.float32(rotary.numbers)
        frequency = np.float32(1) / np.float32(rotary.theta) ** exponents
    angles = np.arange(positions, dtype=np.float32)[:, None] * frequency
    wide = angles.astype(np.float64)
    return (np.cos(wide) * rotary.factor).astype(np.float32), (np.sin(wide) * rotary.factor).astype(np.float32)


def relative_bias(relative: Relative, table: np.ndarray, heads: int) -> np.ndarray:
    """Computes the bias of each distance from query to key: float32 `[heads, 2 * relative.distance + 1]`.

    Buckets are those of T5 for attention in both directions (arXiv 1910.10683, section 2.1).

    Args:
        relative: the description of the bias.
        table: float32 `[buckets, heads]`.
        heads: number of heads.

    Raises:
        CheckpointError: the table has other numbers of buckets or heads.
    """
    if table.shape != (relative.buckets, heads):
        raise CheckpointError(
            f"{relative.name} is no table of {relative.buckets} × {heads} relative positions",
            hint="fetch the model again",
        )
    distance = np.arange(-relative.distance, relative.distance + 1)
    half = relative.buckets // 2
    exact, away = half // 2, np.abs(distance)
    ratio = np.maximum(away, 1).astype(np.float32) / np.float32(exact)
    far = np.log(ratio) / np.float32(math.log(relative.distance / exact)) * np.float32(half - exact)
    bucket = np.where(away < exact, away, np.minimum(exact + far.astype(np.int64), half - 1)) + (distance > 0) * half
    return np.ascontiguousarray(table[bucket].T, dtype=np.float32)
