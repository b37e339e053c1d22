"""Models with random weights, in the shapes of well-known ones: what `bench` measures without a MODEL.

Speed and bytes depend on shapes alone, so that whoever chooses a machine needs no checkpoint.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.errors import InputError

__all__ = ["DEFAULT", "SHAPES", "Shape", "random_model", "require"]


@dataclass(frozen=True)
class Shape:
    """A shape that a model can have.

    Attributes:
        model_type: as config.json says it.
        config: values of the config that are not transformers' defaults.
        like: the model that has this shape, for people; None: the config is shown.
    """

    model_type: str
    config: dict[str, Any]
    like: str | None = None


DEFAULT = "bert-base"
SHAPES = {
    DEFAULT: Shape("bert", {"vocab_size": 21128}, "bert-base-chinese"),
    "vit-base": Shape("vit", {}, "ViT-B/16 on images of 224 x 224"),
    "dinov2-base": Shape("dinov2", {}, "DINOv2 ViT-B/14 on images of 224 x 224"),
}


def require(name: str) -> Shape:
    """The shape of that name.

    Raises:
        InputError: there is none.
    """
    if name not in SHAPES:
        raise InputError(f"there is no shape {name!r}", hint="--shape one of: " + ", ".join(SHAPES))
    return SHAPES[name]


def random_model(folder: Path, shape: Shape, seed: int) -> Path:
    """Writes a model of that shape into `folder`; one that reads texts has a tokenizer of as many made-up words."""
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
