"""Asks a model's own modules for positions that the compiled library reads: those of patches, and their biases."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ternarize_cli.errors import CheckpointError
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.runtime.blocks import PatchBiases
from ternarize_cli.runtime.positions import Turns

__all__ = ["patch_biases", "patch_turns"]


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
    turns = torch.cat([still[0], cos[:, :pairs]]), torch.cat([still[1], sin[:, :pairs]])
    return turns[0].contiguous().numpy(), turns[1].contiguous().numpy()


def patch_biases(model: Any, stack: Stack, pixels: Tensor, tokens: int) -> PatchBiases | None:
    """Computes the biases for images of a size with the model's own modules; None if the blocks have none.

    The modules give a number for each pair of tokens. It depends only on the rows and columns between them, so each
    number is kept once: 420 kB for BEiT-base, where all pairs take 22 MB.

    Args:
        model: the model.
        stack: its blocks.
        pixels: float `[images, channels, height, width]`.
        tokens: the number of tokens of an image: one more than its patches.

    Raises:
        CheckpointError: a module gives another shape, or biases that depend on something else.
    """
    given = stack.block.patch_bias
    if given is None:
        return None
    rows, columns = (int(side) // model.config.patch_size for side in pixels.shape[-2:])
    places = _patch_places(rows, columns)
    pair_of = torch.empty(int(places.max()) + 1, dtype=torch.int64, device="cpu")
    pair_of[places.flatten()] = torch.arange(places.numel(), device="cpu")
    tables: list[np.ndarray] = []
    for i in range(len(stack.block)):
        if tables and given.shared:
            tables.append(tables[0])
            continue
        with torch.inference_mode(False), torch.no_grad():  # transformers keeps tensors that later calls may train with
            bias = stack.patch_bias(i)((rows, columns)).float()
        if len(places) != tokens or bias.shape != (1, stack.block.heads, tokens, tokens):
            raise CheckpointError(f"{given.name} gives {list(bias.shape)} biases, and an image has {tokens} tokens")
        table = bias[0].flatten(1)[:, pair_of].contiguous()
        if not torch.equal(table[:, places], bias[0]):
            raise CheckpointError(f"{given.name} gives biases that depend on more than the patches between two tokens")
        tables.append(table.numpy())
    return PatchBiases(rows, columns, tables)


def _patch_places(rows: int, columns: int) -> Tensor:
    """Returns for each query and key the place of their bias in a table of `PatchBiases`: int64 `[tokens, tokens]`."""
    row, column = (t.flatten() for t in torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"))
    down, right = (t[None, :] - t[:, None] + n - 1 for t, n in ((row, rows), (column, columns)))
    patches = down * (2 * columns - 1) + right
    first = (2 * rows - 1) * (2 * columns - 1)
    places = torch.empty(len(patches) + 1, len(patches) + 1, dtype=torch.int64, device="cpu")
    places[1:, 1:], places[0, 1:], places[1:, 0], places[0, 0] = patches, first, first + 1, first + 2
    return places
