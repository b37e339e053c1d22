"""Makes models with random weights, in the shapes of well-known models, which `bench` measures without a MODEL.

Speed and bytes depend on shapes alone, so choosing a machine needs no checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.errors import InputError

__all__ = ["DEFAULT", "SHAPES", "ModelShape", "model_shape", "random_model"]


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model.

    Attributes:
        model_type: the model type in config.json.
        config: values of the config that are not transformers' defaults.
        like: name of a model with this shape, for users; None shows the config instead.
    """

    model_type: str
    config: dict[str, Any]
    like: str | None = None


DEFAULT = "bert-base"
SHAPES = {
    DEFAULT: ModelShape("bert", {"vocab_size": 21128}, "bert-base-chinese"),
    "vit-base": ModelShape("vit", {}, "ViT-B/16 on images of 224 x 224"),
    "dinov2-base": ModelShape("dinov2", {}, "DINOv2 ViT-B/14 on images of 224 x 224"),
}


def model_shape(name: str) -> ModelShape:
    """Gives the shape of a name.

    Raises:
        InputError: there is no shape of that name.
    """
    if name not in SHAPES:
        raise InputError(f"there is no shape {name!r}", hint="--shape one of: " + ", ".join(SHAPES))
    return SHAPES[name]


def random_model(folder: Path, shape: ModelShape, seed: int) -> Path:
    """Writes a model of a shape into `folder`; a text model gets a tokenizer with made-up words for its vocabulary."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(shape.model_type, **shape.config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(folder)
    if hasattr(config, "vocab_size"):
        _write_tokenizer(folder, config.vocab_size, config.max_position_embeddings)
    return folder


def _write_tokenizer(folder: Path, vocabulary: int, longest: int) -> None:
    from tokenizers import Tokenizer, pre_tokenizers
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = specials + [f"word{i}" for i in range(len(specials), vocabulary)]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), specials, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=longest, **named).save_pretrained(folder)
