"""Refuses models whose vectors pass through a layer that transformers has no place for.

A ColBERT checkpoint is a BERT with `linear.weight` beside it, which projects the embedding of each token; other models
have such a layer behind the pooling. transformers drops it without an error, and what is left gives other vectors.
"""

import re
from collections.abc import Iterable
from typing import Any

import transformers

from ternarize_cli.errors import CheckpointError, shown

__all__ = ["refuse_projection"]

_PROJECTION = re.compile(r"(linear|proj|projection|vision_proj|text_proj|custom_text_proj|dense|fc|\w+_linear)\.weight")
"""Names of a projection in files whose class transformers has; other tensors are heads of a pre-training task."""

_CLASSIFIER = re.compile(r"(classifier|score)(\.\w+)*\.(weight|bias)")


def refuse_projection(model: Any, homeless: Iterable[str]) -> None:
    """Refuses files with a projection that the model has no place for.

    Args:
        model: the skeleton of an encoder of transformers.
        homeless: the names in the files of tensors that the skeleton has no place for.

    Raises:
        CheckpointError: a tensor is a projection, or config.json names a class that transformers does not have, and
            whose layers beside the encoder would be lost; the message names the tensor and the class.
    """
    config = getattr(model, "config", None)
    listed = getattr(config, "architectures", None) or ()
    unknown = [name for name in listed if not hasattr(transformers, name)]
    for key in homeless:
        is_text = hasattr(config, "vocab_size")  # of an image encoder the classes of its training are left out
        if is_text and _CLASSIFIER.fullmatch(key) and listed and not unknown and not _has_head(listed):
            raise CheckpointError(
                f"the tensor {key} belongs to a classifier beside the encoder, and config.json names the class "
                f"{shown(listed[0])}, which has none: the scores would be lost",
                hint="name the class that it was trained as in config.json: XForSequenceClassification",
            )
        if unknown or (_PROJECTION.fullmatch(key) and not _has_head(listed)):
            of = f"the class {shown(unknown[0])}, which transformers does not have" if unknown else "no class with it"
            raise CheckpointError(
                f"the tensor {key} belongs to a layer beside the encoder, such as the projection of a late-interaction "
                f"model (ColBERT), and config.json names {of}: the layer would be lost, and the vectors with it",
                hint="if you want the encoder without it: AutoModel.from_pretrained(MODEL).save_pretrained(NEW)",
            )


def _has_head(architectures: Iterable[str]) -> bool:
    """Whether a class is one of those around an encoder, whose head may be left out."""
    return any("For" in name or name.endswith("PreTraining") for name in architectures)
