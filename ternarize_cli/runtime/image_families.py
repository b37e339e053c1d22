"""How each family of image encoders makes tokens of an image, and one vector of the tokens.

patches of pixels ──linear──▶ ─┐
first tokens ──────────────────┴─ + positions ──▶ registers behind the first token ──▶ blocks ──▶ pooler_output
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ternarize_cli.runtime.image_positions import Interpolation

__all__ = ["IMAGE_FAMILIES", "ImageFamily", "Pooler"]

Pooler = Literal["first", "norm of first", "mean of patches", "attention", "tanh of first"]
"""What a model gives as `pooler_output`; `image_pooling` computes it."""


@dataclass(frozen=True)
class ImageFamily:
    """The parts of an image encoder before its blocks, named relative to the model, and how it pools.

    Attributes:
        patches: the convolution that makes a token of each patch.
        first: the tokens before the patches that have positions, in order.
        registers: tokens without positions behind the first token; None if the family has none.
        positions: the parameter of the positions, or the table if it has no dot behind `embeddings`; None if the family
            has none.
        is_table: whether the positions are an embedding table, which may be packed.
        may_lack_positions: whether a model may have no positions.
        resized: how positions are interpolated for images of another size than those that the model was trained on;
            None if such images are refused.
        pooler: what `pooler_output` is.
        pooler_norm: the norm in it.
    """

    patches: str
    first: tuple[str, ...] = ()
    registers: str | None = None
    positions: str | None = "embeddings.position_embeddings"
    is_table: bool = False
    may_lack_positions: bool = False
    resized: Interpolation | None = None
    pooler: Pooler = "first"
    pooler_norm: str = ""


_PROJECTION, _CLASS = "embeddings.patch_embeddings.projection", "embeddings.cls_token"
_VIT = ImageFamily(_PROJECTION, (_CLASS,), pooler="tanh of first")
_REGISTERS = "embeddings.register_tokens"

IMAGE_FAMILIES: Mapping[str, ImageFamily] = {
    "vit": _VIT,
    "deit": ImageFamily(_PROJECTION, (_CLASS, "embeddings.distillation_token"), pooler="tanh of first"),
    "beit": ImageFamily(
        *(_PROJECTION, (_CLASS,)),
        may_lack_positions=True,
        resized="cubic",
        pooler="mean of patches",
        pooler_norm="pooler.layernorm",
    ),
    "dinov2": ImageFamily(_PROJECTION, (_CLASS,), resized="cubic"),
    "dinov2_with_registers": ImageFamily(_PROJECTION, (_CLASS,), _REGISTERS, resized="antialiased cubic"),
    "dinov3_vit": ImageFamily("embeddings.patch_embeddings", (_CLASS,), _REGISTERS, positions=None),
    "clip_vision_model": ImageFamily(
        *("embeddings.patch_embedding", ("embeddings.class_embedding",)),
        positions="embeddings.position_embedding",
        is_table=True,
        pooler="norm of first",
        pooler_norm="post_layernorm",
    ),
    "siglip_vision_model": ImageFamily(
        "embeddings.patch_embedding", positions="embeddings.position_embedding", is_table=True, pooler="attention"
    ),
}
"""The families by `model_type` in config.json."""
