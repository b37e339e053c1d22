"""Finds the parts of a packed model's blocks by the names in their description (`format.block`)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.block import Block
from ternarize_cli.layers import PackedLinear

__all__ = ["Stack", "block_of", "describe_by", "refusal"]

_DESCRIPTION = "ternarize_block"


def describe_by(model: nn.Module, block: Block | str) -> None:
    """Gives a model the description of its blocks, or the reason why there is none."""
    model.__dict__[_DESCRIPTION] = block


def block_of(model: nn.Module) -> Block | str:
    """Returns the description of a model's blocks, or the reason why there is none."""
    found: Block | str | None = model.__dict__.get(_DESCRIPTION)
    return f"{type(model).__name__} has no blocks that it knows" if found is None else found


class Stack:
    """The blocks of a model that has a description.

    Attributes:
        block: the description.
        layers: the modules of the blocks, in order.
    """

    def __init__(self, model: nn.Module, block: Block) -> None:
        """Finds the parts of the blocks.

        Raises:
            CheckpointError: the model lacks a module that the description names, or has another number of blocks.
        """
        self.block, self._model = block, model
        found: Any = _part(model, block.layers)
        if not isinstance(found, nn.ModuleList):
            raise CheckpointError(f"{block.layers} is no list of blocks")
        self.layers: list[nn.Module] = list(found)
        if len(self.layers) != len(block):
            raise CheckpointError(f"{block.layers} has {len(self.layers)} blocks, and its description {len(block)}")
        for layer in self.layers:
            for name in block.linears:
                _part(layer, name)

    @classmethod
    def of(cls, model: nn.Module) -> "Stack":
        """Finds the parts of the blocks of a model by the description that it has.

        Raises:
            CheckpointError: it has none, or lacks a module that the description names, or has another number of blocks.
        """
        block = block_of(model)
        if isinstance(block, str):
            raise CheckpointError(block)
        return cls(model, block)

    def linears(self, i: int) -> list[PackedLinear]:
        """Lists a block's linears, in the order of the description: queries, keys, values, output, up and down."""
        return [_part(self.layers[i], name) for name in self.block.linears]

    def joined(self, i: int) -> tuple[list[PackedLinear], PackedLinear, list[PackedLinear], PackedLinear]:
        """Returns a block's linears: those of queries, keys and values; the output; those of `up`; and `down`."""
        found, split = self.linears(i), len(self.block.qkv)
        return found[:split], found[split], found[split + 1 : -1], found[-1]

    def norm(self, i: int | None, place: str) -> nn.Module | None:
        """Finds the norm of a block at a place, or a norm of the model if `i` is None; None if there is none."""
        norms = self.block.norms if i is None else self.block.norms_of(i)
        if place not in norms:
            return None
        found: nn.Module = _part(self._model if i is None else self.layers[i], norms[place].name)
        return found

    def gain(self, i: int | None, place: str, width: int) -> tuple[Tensor, Tensor] | None:
        """Returns the gain and the shift of a norm, float32 `[width]` each; None if there is no norm at that place.

        Raises:
            CheckpointError: the norm has another width.
        """
        module: Any = self.norm(i, place)
        if module is None:
            return None
        gain = module.weight.detach().float() + self.block.norms[place].offset
        bias = getattr(module, "bias", None)
        shift = torch.zeros_like(gain) if bias is None else bias.detach().float()
        if gain.shape != (width,) or shift.shape != (width,):
            raise CheckpointError(
                f"the norm {self.block.norms[place].name} is {list(gain.shape)} wide, where {width} are normed",
                hint="fetch the model again",
            )
        return gain.contiguous(), shift.contiguous()

    def layer_scales(self, i: int) -> list[Tensor | None]:
        """Returns the factors, float32 `[width]`, of the outputs of attention and feed-forward; None for no factor.

        Raises:
            CheckpointError: they have another shape.
        """
        if not self.block.layer_scales:
            return [None, None]
        found: list[Tensor | None] = []
        for name in self.block.layer_scales:
            where, _, parameter = name.rpartition(".")
            factors = getattr(_part(self.layers[i], where), parameter).detach().float()
            if factors.shape != (self.block.width,):
                raise CheckpointError(
                    f"the layer scale {name} is {list(factors.shape)}, where {self.block.width} are scaled",
                    hint="fetch the model again",
                )
            found.append(factors)
        return found

    def relative_table(self) -> Tensor | None:
        """Returns the table of relative positions, float32 `[buckets, heads]`; None if the blocks have none.

        The rows are looked up by the module, since a table may be packed; one with too few rows gives those it has.
        """
        given = self.block.relative
        if given is None:
            return None
        table: Any = _part(self._model, given.name)
        rows = min(given.buckets, int(table.num_embeddings))
        made: Tensor = table(torch.arange(rows, device=table.weight.device)).detach().float()
        return made

    def patch_bias(self, i: int) -> Any:
        """Finds the module that makes the biases of a block by patches; None if there is none."""
        given = self.block.patch_bias
        return None if given is None else _part(self._model if given.shared else self.layers[i], given.name)


def refusal(model: nn.Module, levels: Sequence[str] = ("ternary",)) -> str | None:
    """Says why a backend that runs `levels` can't run a model fused; None if it can.

    It can if the model's blocks are described, and their linears have one of these grids and one scale per row.
    """
    try:
        stack = Stack.of(model)
        for i in range(len(stack.block)):
            reason = _refusal(stack, i, levels)
            if reason is not None:
                return reason
    except (CheckpointError, AttributeError) as e:
        return str(e.args[0])
    return None


def _refusal(stack: Stack, i: int, levels: Sequence[str]) -> str | None:
    block, linears = stack.block, stack.linears(i)
    if not all(isinstance(m, PackedLinear) for m in linears):
        return "a block has linears that are not packed"
    if any(m.scheme.levels not in levels or m.scheme.granularity == "group" for m in linears):
        return f"a linear is not {' or '.join(levels)} with one scale per row"
    qkv, output, up, down = stack.joined(i)
    if any(len({m.codec for m in joined}) > 1 for joined in (qkv, up)):
        return "linears that read one input have different codecs"
    heads, shared = block.heads * block.head, block.key_value_heads * block.head
    shapes = [(m.in_features, m.out_features) for m in (output, down)]
    wide = [(block.width, heads + 2 * shared)] if len(qkv) == 1 else [(block.width, n) for n in (heads, shared, shared)]
    whole = block.inner * (2 if block.gated else 1)
    fits = [(m.in_features, m.out_features) for m in qkv] == wide
    fits = fits and all(m.in_features == block.width and m.out_features == whole // len(up) for m in up)
    if not fits or shapes != [(heads, block.width), (block.inner, block.width)]:
        return "a block's linears have unusual shapes"
    for place, norm in block.norms_of(i).items():
        module: Any = stack.norm(i, place)
        if norm.kind == "layer" and not isinstance(module, nn.LayerNorm):
            return f"{norm.name} is no layer norm"
    return None


def _part(module: nn.Module, name: str) -> Any:
    try:
        return module.get_submodule(name)
    except AttributeError as e:
        raise CheckpointError(
            f"{type(module).__name__} has no module {name}, which the description of its blocks names"
        ) from e
