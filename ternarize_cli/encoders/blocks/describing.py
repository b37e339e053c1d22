"""Describes the blocks of a model whose family is known."""

from torch import nn

from ternarize_cli.encoders.blocks.families import FAMILIES
from ternarize_cli.encoders.blocks.reading import Undescribed, read
from ternarize_cli.errors import FormatError
from ternarize_cli.format.block import Block

__all__ = ["Undescribed", "describe"]


def describe(model: nn.Module) -> Block:
    """Describes the blocks of a model.

    Args:
        model: an encoder of transformers, packed or not; one on the meta device is enough.

    Raises:
        Undescribed: no reader knows the model's class, or it is computed in a way that a description can't express.
    """
    name = type(model).__name__
    family = FAMILIES.get(name)
    if family is None or not type(model).__module__.startswith("transformers.models."):
        raise Undescribed(f"{name} has no blocks that it knows")
    reason = family.refusal(model)
    if reason is not None:
        raise Undescribed(reason)
    try:
        return read(model, family)
    except FormatError as e:
        raise Undescribed(f"{name} has values that no description of blocks holds: {e}") from e
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:  # of a part or value it lacks
        raise Undescribed(f"{name} is not built as its reader knows it: {' '.join(str(e).split())[:200]}") from e
