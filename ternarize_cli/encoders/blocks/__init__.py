"""Describes the blocks of transformers' models (`format.block`), from their config and the names of their submodules.

`families` says how each family names its parts; `reading` makes a description from that, and checks that a block has
no other parts. A family that is not there runs through its own modules, with a backend for each linear.
"""

import logging
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from ternarize_cli.encoders.blocks.describing import Undescribed, describe
from ternarize_cli.format.block import Block
from ternarize_cli.kernels.stack import describe_by

__all__ = ["attach", "blocks_of"]

_log = logging.getLogger("ternarize_cli")


def blocks_of(encoder: nn.Module) -> dict[str, Block]:
    """Describes every stack of blocks in an encoder, by the name of the model that has it; "" is the encoder itself."""
    found = {name: _described(module) for name, module in encoder.named_modules() if _is_model(module)}
    return {name: block for name, block in found.items() if isinstance(block, Block)}


def attach(encoder: nn.Module, given: Mapping[str, Block]) -> None:
    """Gives a packed encoder, and each model inside it, the description of its blocks, from which backends run it.

    The description is made from the model itself. That of its artifact is for runtimes without transformers: here it is
    only compared, since a file may say anything, and a short batch does not show every difference.

    Args:
        encoder: the encoder.
        given: the descriptions that its artifact carries, as `blocks_of` returns them.
    """
    for name, module in encoder.named_modules():
        if _is_model(module):
            own, stored = _described(module), given.get(name)
            describe_by(module, own)
            kind = type(module).__name__
            if stored is not None and isinstance(own, str):
                _log.warning("note: %s runs linear by linear: %s", kind, own)
            elif stored not in (None, own):
                _log.warning(
                    "note: quantization_config.block describes other blocks than %s has in this version of "
                    "transformers, and is not used",
                    kind,
                )


def _is_model(module: nn.Module) -> bool:
    return isinstance(module, PreTrainedModel)


def _described(module: nn.Module) -> Block | str:
    try:
        return describe(module)
    except Undescribed as e:
        return str(e)
