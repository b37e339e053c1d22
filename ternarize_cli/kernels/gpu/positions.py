"""Lays out positions for the GPU: rotary cosines and sines, and biases of scores by distance or by patches."""

from typing import Any

import torch
from torch import Tensor

from ternarize_cli.format.block import Block
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.runtime.positions import relative_bias, rotary_turns

__all__ = ["TurnTables", "Turns", "image_turns", "patch_pairs", "scaled_distances"]

Turns = tuple[Tensor, Tensor]
"""Cosines and sines, float16 `[positions, pairs]` each; queries and keys are no more precise."""
_LOG2_E = 1.4426950408889634  # the kernel's softmax is of powers of 2
_FEWEST = 512


class TurnTables:
    """Cosines and sines of texts, for each kind of block; tables stay, since recorded passes read from them."""

    def __init__(self, block: Block, device: torch.device) -> None:
        self._block, self._device = block, device
        self._made: dict[int, list[Turns | None]] = {}

    def __call__(self, tokens: int) -> list[Turns | None]:
        """Returns the tables for texts of up to `tokens` tokens; None for a kind of block that turns nothing."""
        positions = max(_FEWEST, 1 << (tokens - 1).bit_length())
        if positions not in self._made:
            self._made[positions] = [
                None if kind.rotary is None else self._of(rotary_turns(kind.rotary, positions))
                for kind in self._block.kinds
            ]
        return self._made[positions]

    def _of(self, turns: Any) -> Turns:
        cos, sin = (torch.from_numpy(t).to(self._device).half() for t in turns)
        return cos, sin


def image_turns(model: Any, pixels: Tensor, tokens: int) -> Turns:
    """Computes cosines and sines for the tokens of an image with the model's own module (DINOv3).

    Args:
        model: the model.
        pixels: float `[images, channels, height, width]`.
        tokens: the number of tokens of an image; those before the patches are not turned.
    """
    cos, sin = (t.detach().half() for t in model.rope_embeddings(pixels))
    pairs, before = cos.shape[1] // 2, tokens - len(cos)
    still = cos.new_ones(before, pairs), sin.new_zeros(before, pairs)
    return torch.cat([still[0], cos[:, :pairs]]).contiguous(), torch.cat([still[1], sin[:, :pairs]]).contiguous()


def scaled_distances(block: Block, table: Tensor) -> Tensor:
    """Computes the bias of each distance for `attention.Scores`: float32 `[heads, 2 * reach + 1]`.

    Args:
        block: the description, which has a bias by relative positions.
        table: float32 `[buckets, heads]`.

    Raises:
        CheckpointError: the table has other numbers of buckets or heads.
    """
    assert block.relative is not None
    made = relative_bias(block.relative, table.cpu().numpy(), block.heads)
    return torch.from_numpy(made).to(table.device) * _LOG2_E


def patch_pairs(model: Any, stack: Stack, pixels: Tensor) -> list[Tensor] | None:
    """Computes the biases of each block by query and key for `attention.Scores`; None if the blocks have none (BEiT).

    Args:
        model: the model, whose modules give the biases for the size of `pixels`.
        stack: its blocks.
        pixels: float `[images, channels, height, width]`.
    """
    given = stack.block.patch_bias
    if given is None:
        return None
    size = tuple(int(side) // model.config.patch_size for side in pixels.shape[-2:])
    made: list[Tensor] = []
    for i in range(len(stack.block)):
        if made and given.shared:
            made.append(made[0])
        else:
            made.append((stack.patch_bias(i)(size)[0].detach().float() * _LOG2_E).half().contiguous())
    return made
