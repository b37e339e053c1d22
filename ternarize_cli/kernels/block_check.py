"""Compares a fused encoder with the model's own modules on a small batch, when the model is prepared.

A description of blocks may be wrong for this model: it may come from a file, or this version of transformers may
compute the family in another way. So the first blocks, as many as hold one of each kind, are run both ways. The integer
sums are equal; float arithmetic between them differs in its order, which int8 rounding amplifies to a percent or two.
"""

import copy
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ternarize_cli.format.block import Block
from ternarize_cli.kernels.stack import Stack

__all__ = ["FirstBlocks", "disagreement"]

_MOST = 0.06  # enough for rounding to int8
_LONGEST, _SHORTEST = 300, 16  # tokens of the longer sample
_LARGEST_SAMPLE = 1 << 18  # pixels of an image


class FirstBlocks(Protocol):
    """An encoder in a backend's memory layout, of which the first blocks can be run alone."""

    def first_blocks(self, count: int, ids: Tensor | None, mask: Tensor | None, pixels: Tensor | None) -> Tensor:
        """Computes the hidden states after the first `count` blocks and the last norm, of texts or images."""


def disagreement(model: Any, encoder: FirstBlocks, *, most: float = _MOST) -> str | None:
    """Says how a fused encoder differs from its model's modules; None if it does not, or nothing can be compared.

    Args:
        model: the packed model, on the device of the encoder.
        encoder: the fused encoder.
        most: the greatest median over tokens of the relative distance (L2) of hidden states that is taken for rounding.
    """
    stack = Stack.of(model)
    block = stack.block
    count = max(block.kind_of.index(kind) for kind in set(block.kind_of)) + 1
    count = max(count, min(len(block), 1 + max(block.unnormed, default=-1) + 1))
    given = _sample(model, block)
    if given is None:
        return None
    device = next(model.parameters()).device
    ids, mask, pixels = (None if t is None else t.to(device) for t in given)
    cut: Any = _cut_to(model, stack, count)
    try:
        with torch.no_grad():
            if pixels is not None:
                own = type(model).forward(cut, pixel_values=pixels).last_hidden_state
            else:
                own = type(model).forward(cut, input_ids=ids, attention_mask=mask).last_hidden_state
    finally:
        for i in range(count):
            for linear in stack.linears(i):
                linear.release()
    made = encoder.first_blocks(count, ids, mask, pixels)
    if made.shape != own.shape:
        return f"its description gives {list(made.shape)} hidden states, and its modules {list(own.shape)}"
    if mask is not None:
        made, own = made[mask.bool()], own[mask.bool()]
    far = ((made - own).norm(dim=-1) / own.norm(dim=-1).clamp_min(1e-9)).flatten()
    distance = float(far.nan_to_num(torch.inf).median())
    if distance <= most or not bool(own.isfinite().all()):
        return None
    return f"the description of its blocks gives other vectors than its modules (by {distance:.0%} in the median)"


def _sample(model: Any, block: Block) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None:
    """Makes a batch that depends only on the model: ids and mask of two texts, or pixels; None if none is small."""
    generator = torch.Generator("cpu").manual_seed(0)
    config = model.config
    if block.embeddings is None:
        size = config.image_size
        high, wide = (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)
        if high * wide > _LARGEST_SAMPLE:
            return None
        channels = getattr(config, "num_channels", 3)
        return None, None, torch.randn(1, channels, high, wide, generator=generator, device="cpu")
    table: Any = model.get_submodule(block.embeddings.words)
    seen = [s for kind in block.kinds for s in (kind.before, kind.after) if s]
    reach = max(seen, default=0) if block.relative is None else block.relative.distance
    longest = reach + 9 if reach + 9 <= _LONGEST else _SHORTEST
    if block.embeddings.positions is not None:
        positions: Any = model.get_submodule(block.embeddings.positions)
        longest = min(longest, positions.num_embeddings - block.embeddings.first_position)
    ids = torch.randint(table.num_embeddings, (2, longest), generator=generator, device="cpu")
    padding = block.embeddings.first_position - 1 if block.embeddings.first_position else -1
    ids[ids == padding] = (padding + 1) % table.num_embeddings
    mask = torch.ones_like(ids)
    mask[1, longest // 3 + 1 :] = 0
    if padding >= 0:
        ids[mask == 0] = padding
    return ids, mask, None


def _cut_to(model: nn.Module, stack: Stack, count: int) -> nn.Module:
    """Returns a model that shares all modules with `model`, but has only its first `count` blocks.

    The model itself stays whole, as another thread may run it.
    """
    where, _, name = stack.block.layers.rpartition(".")
    cut = parent = _shallow(model)
    for part in where.split(".") if where else ():
        child = _shallow(parent.get_submodule(part))
        parent._modules[part] = child
        parent = child
    parent._modules[name] = nn.ModuleList(stack.layers[:count])
    return cut


def _shallow(module: nn.Module) -> nn.Module:
    made = copy.copy(module)
    made._modules = dict(module._modules)
    return made
