"""Makes models with random weights, in the shapes of well-known models, which `bench` measures without a MODEL.

Speed and bytes depend on shapes alone, so choosing a machine needs no checkpoint. Vocabularies have their published
sizes. A model keeps transformers' defaults where these are the published values; `SHAPES` names only what differs.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.encoders.encoder_alone import encoder_alone
from ternarize_cli.errors import InputError

__all__ = ["DEFAULT", "SHAPES", "ModelShape", "model_shape", "random_model"]


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model.

    Attributes:
        model_type: the model type in config.json.
        config: values of the config that are not transformers' defaults.
        like: name of a model with this shape, for users; None shows the config instead.
        kind: what users call models of this type; None shows the type.
    """

    model_type: str
    config: dict[str, Any]
    like: str | None = None
    kind: str | None = None


DEFAULT = "bert-base"
_UNLIMITED = 512  # tokens of a text where the config sets no limit
_EUROBERT = {"rope_parameters": {"rope_type": "default", "rope_theta": 250_000.0}}
_GEMMA = {
    "vocab_size": 262_144,
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 1152,
    "max_position_embeddings": 2048,
    "sliding_window": 512,
    "use_bidirectional_attention": True,
}
_QWEN3 = {
    "vocab_size": 151_669,
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "eos_token_id": 151_643,
    "pad_token_id": 151_643,
}
_MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
_T5 = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12}
_DINOV3 = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_register_tokens": 4}
_IMAGES = "on images of 224 x 224"
SHAPES = {
    DEFAULT: ModelShape("bert", {"vocab_size": 21128}, "bert-base-chinese", "BERT"),
    "minilm": ModelShape("bert", _MINILM, "all-MiniLM-L6-v2", "BERT"),
    "distilbert-base": ModelShape("distilbert", {}, "distilbert-base-uncased", "DistilBERT"),
    "mpnet-base": ModelShape("mpnet", {"max_position_embeddings": 514}, "all-mpnet-base-v2", "MPNet"),
    "modernbert-base": ModelShape("modernbert", {}, "ModernBERT-base", "ModernBERT"),
    "nomic-bert": ModelShape("nomic_bert", {}, "nomic-embed-text-v1.5", "NomicBERT"),
    "eurobert-210m": ModelShape("eurobert", _EUROBERT, "EuroBERT-210m", "EuroBERT"),
    "t5-base": ModelShape("t5", _T5, "the encoder of sentence-t5-base and gtr-t5-base", "T5"),
    "qwen3-0.6b": ModelShape("qwen3", _QWEN3, "Qwen3-Embedding-0.6B", "Qwen3"),
    "embeddinggemma-300m": ModelShape("gemma3_text", _GEMMA, "EmbeddingGemma-300M", "Gemma"),
    "vit-base": ModelShape("vit", {}, f"ViT-B/16 {_IMAGES}", "ViT"),
    "dinov2-base": ModelShape("dinov2", {}, f"DINOv2 ViT-B/14 {_IMAGES}", "DINOv2"),
    "dinov3-vit-base": ModelShape("dinov3_vit", _DINOV3, f"DINOv3 ViT-B/16 {_IMAGES}", "DINOv3"),
    "clip-vit-b32": ModelShape("clip_vision_model", {}, f"CLIP's ViT-B/32 {_IMAGES}", "CLIP"),
    "siglip-base": ModelShape("siglip_vision_model", {}, f"SigLIP's ViT-B/16 {_IMAGES}", "SigLIP"),
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
    """Writes a model of a shape into `folder`; a text model gets a tokenizer with made-up words for its vocabulary.

    Args:
        folder: the folder to write into, which may exist.
        shape: the shape; of an encoder-decoder such as T5 only the encoder is written.
        seed: seed of the random weights.
    """
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(shape.model_type, **shape.config)
    alone = encoder_alone(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = alone(config) if alone else AutoModel.from_config(config)
    model.save_pretrained(folder)
    if hasattr(config, "vocab_size"):
        _write_tokenizer(folder, config.vocab_size, getattr(config, "max_position_embeddings", _UNLIMITED))
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
