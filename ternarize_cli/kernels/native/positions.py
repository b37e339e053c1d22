"""Computes the tables of positions that the compiled library reads: rotary cosines and sines, and relative biases."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.block_parts import Relative, Rotary
from ternarize_cli.kernels.stack import Stack

__all__ = ["PatchBiases", "Turns", "patch_biases", "patch_turns", "relative_bias", "rotary_turns"]

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

    Raises:
        CheckpointError: the table has other numbers of buckets or heads.
    """
    distance = torch.arange(-relative.distance, relative.distance + 1, device="cpu")
    half = relative.buckets // 2
    exact, away = half // 2, distance.abs()
    far = torch.log(away.clamp_min(1).float() / exact) / math.log(relative.distance / exact) * (half - exact)
    bucket = torch.where(away < exact, away, (exact + far.long()).clamp_max(half - 1)) + (distance > 0).long() * half
    try:
        rows: Tensor = table(bucket).detach().float()
    except IndexError:
        rows = torch.empty(0, device="cpu")
    if rows.shape != (len(distance), heads):
        raise CheckpointError(
            f"{relative.name} is no table of {relative.buckets} × {heads} relative positions",
            hint="fetch the model again",
        )
    return rows.T.contiguous()


class PatchBiases(NamedTuple):
    """The biases by patches of all blocks, for one size of images.

    Attributes:
        rows, columns: the number of rows and columns of patches.
        tables: for each block its biases, float32 `[heads, (2 * rows - 1) * (2 * columns - 1) + 3]`: by the rows and
            then the columns from query to key, both ascending; then of the first token as query, as key, and as both.
    """

    rows: int
    columns: int
    tables: list[Tensor]


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
    tables: list[Tensor] = []
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
        tables.append(table)
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
