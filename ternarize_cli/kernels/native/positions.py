"""Computes the tables of positions that the compiled library reads: rotary cosines and sines, and relative biases."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.format.block_parts import Relative, Rotary

__all__ = ["Turns", "patch_turns", "relative_bias", "rotary_turns"]

Turns = tuple[Tensor, Tensor]
"""Cosines and sines, float32 `[positions, pairs]` each."""


def rotary_turns(rotary: Rotary, positions: int) -> Turns:
    """Computes cosines and sines of the positions 0 to `positions` - 1."""
    pairs = rotary.numbers // 2
    if rotary.frequencies:
        frequency = torch.tensor(rotary.frequencies, dtype=torch.float32, device="cpu")
    else:
        exponents = torch.arange(0, rotary.numbers, 2, dtype=torch.float32, device="cpu") / rotary.numbers
        frequency = 1.0 / rotary.theta**exponents
    angles = torch.arange(positions, dtype=torch.float32, device="cpu")[:, None] * frequency
    assert angles.shape == (positions, pairs)
    return (angles.cos() * rotary.factor).contiguous(), (angles.sin() * rotary.factor).contiguous()


def patch_turns(model: Any, pixels: Tensor, tokens: int) -> Turns:
    """Computes cosines and sines for the tokens of an image with the model's own module (DINOv3).

    Args:
        model: the model.
        pixels: float `[images, channels, height, width]`.
        tokens: the number of tokens of an image; those before the patches are not turned.
    """
    cos, sin = (t.detach().float() for t in model.rope_embeddings(pixels))
    patches, pairs = cos.shape[0], cos.shape[1] // 2
    before = tokens - patches
    still = torch.ones(before, pairs), torch.zeros(before, pairs)
    return torch.cat([still[0], cos[:, :pairs]]).contiguous(), torch.cat([still[1], sin[:, :pairs]]).contiguous()


def relative_bias(relative: Relative, table: nn.Module, heads: int) -> Tensor:
    """Computes the bias of each distance from query to key: float32 `[heads, 2 * relative.distance + 1]`.

    Buckets are those of T5 for attention in both directions (arXiv 1910.10683, section 2.1).
    """
    distance = torch.arange(-relative.distance, relative.distance + 1, device="cpu")
    half = relative.buckets // 2
    exact, away = half // 2, distance.abs()
    far = torch.log(away.clamp_min(1).float() / exact) / math.log(relative.distance / exact) * (half - exact)
    bucket = torch.where(away < exact, away, (exact + far.long()).clamp_max(half - 1)) + (distance > 0).long() * half
    rows = table(bucket).detach().float()
    if rows.shape != (len(distance), heads):
        raise ValueError(f"the table of relative positions gives {list(rows.shape)}")
    made: Tensor = rows.T.contiguous()
    return made
