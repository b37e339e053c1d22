"""Hands patches and positions of a model in PyTorch to the runtime, which computes them (`runtime.image_blocks`)."""

from typing import Any

from torch import nn

from ternarize_cli.kernels.module_tensors import ModuleTensors
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.runtime.blocks import Blocks
from ternarize_cli.runtime.image_blocks import ImageBlocks
from ternarize_cli.runtime.image_families import IMAGE_FAMILIES
from ternarize_cli.runtime.native.weights import NormWeights

__all__ = ["image_blocks"]


def image_blocks(model: Any, stack: Stack, blocks: Blocks, norm: NormWeights | None) -> ImageBlocks | None:
    """Lays out what a model computes before its blocks; None if its own modules have to compute it.

    Args:
        model: an image encoder of transformers.
        stack: its blocks.
        blocks: the blocks, laid out.
        norm: the norm of the embeddings; None if there is none.

    Raises:
        CheckpointError: a parameter has another shape than the others ask for.
    """
    config: Any = model.config
    family = IMAGE_FAMILIES.get(config.model_type)
    if family is None or not _cuts_patches(model.get_submodule(family.patches)):
        return None
    if stack.block.patch_bias is not None and not hasattr(stack.patch_bias(0), "relative_position_bias_table"):
        return None
    size = config.image_size
    high, wide = size if isinstance(size, list | tuple) else (size, size)
    return ImageBlocks(blocks, norm, ModuleTensors(model), family, (high, wide))


def _cuts_patches(module: nn.Module) -> bool:
    """Returns whether a module is a convolution whose windows lie side by side."""
    return (
        type(module) is nn.Conv2d
        and module.stride == module.kernel_size
        and module.padding in ((0, 0), "valid")
        and module.dilation == (1, 1)
        and module.groups == 1
    )
