"""Tiny models of the families that are tested, and their stages."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from support.models import save_word_tokenizer
from ternarize_cli.compress.convert import ConversionReport, convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.format.scheme import Scheme

WORDS = 64


SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


TEXT = {"vocab_size": WORDS, "pad_token_id": 0, "max_position_embeddings": 80, "initializer_range": 0.15}


DECODER = SMALL | TEXT | {"num_key_value_heads": 2, "head_dim": 8, "bos_token_id": 2, "eos_token_id": 3}


IMAGE = SMALL | {"image_size": 16, "patch_size": 4, "initializer_range": 0.15}


CLIP = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


CLIP_IMAGE = CLIP | {"image_size": 16, "patch_size": 4, "projection_dim": 16}


T5 = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": WORDS, "pad_token_id": 0}


Family = tuple[str, str, dict[str, Any]]


TEXT_FAMILIES: list[Family] = [
    ("BertModel", "BertConfig", SMALL | TEXT),
    ("RobertaModel", "RobertaConfig", SMALL | TEXT),
    ("XLMRobertaModel", "XLMRobertaConfig", SMALL | TEXT),
    ("DistilBertModel", "DistilBertConfig", TEXT | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}),
    ("MPNetModel", "MPNetConfig", SMALL | TEXT),
    ("AlbertModel", "AlbertConfig", SMALL | TEXT | {"embedding_size": 16}),
    ("ElectraModel", "ElectraConfig", SMALL | TEXT | {"embedding_size": 16}),
    ("DebertaV2Model", "DebertaV2Config", SMALL | TEXT | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    ("ModernBertModel", "ModernBertConfig", SMALL | TEXT),
    ("NomicBertModel", "NomicBertConfig", SMALL | TEXT | {"head_dim": 8}),
    ("T5EncoderModel", "T5Config", T5),
    ("T5EncoderModel", "T5Config", T5 | {"feed_forward_proj": "gated-gelu"}),
    ("GPT2Model", "GPT2Config", {"vocab_size": WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 80}),
    ("Qwen3Model", "Qwen3Config", DECODER),
    ("LlamaModel", "LlamaConfig", DECODER),
    ("MistralModel", "MistralConfig", DECODER),
    ("Gemma3TextModel", "Gemma3TextConfig", DECODER | {"use_bidirectional_attention": True}),
]


DINOV3 = IMAGE | {"num_register_tokens": 2, "hidden_size": 32, "num_attention_heads": 2}


BEIT = IMAGE | {"use_absolute_position_embeddings": True, "use_mean_pooling": False}


IMAGE_FAMILIES: list[Family] = [
    ("ViTModel", "ViTConfig", IMAGE),
    ("DeiTModel", "DeiTConfig", IMAGE),
    ("BeitModel", "BeitConfig", IMAGE | {"use_relative_position_bias": True}),
    ("BeitModel", "BeitConfig", BEIT | {"use_shared_relative_position_bias": True}),
    ("BeitModel", "BeitConfig", IMAGE | {"layer_scale_init_value": 0.0}),
    ("Dinov2Model", "Dinov2Config", IMAGE | {"mlp_ratio": 2}),
    ("Dinov2Model", "Dinov2Config", IMAGE | {"use_swiglu_ffn": True}),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", IMAGE | {"num_register_tokens": 2}),
    ("DINOv3ViTModel", "DINOv3ViTConfig", DINOV3),
    (
        "SwinModel",
        "SwinConfig",
        {"image_size": 16, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2},
    ),
    ("CLIPVisionModel", "CLIPVisionConfig", CLIP_IMAGE),
    ("SiglipVisionModel", "SiglipVisionConfig", CLIP_IMAGE),
]


def save_family(family: Family, folder: Path) -> Path:
    """Writes a tiny random model of a family, its weights large enough for its layers to matter."""
    model, config, settings = family
    torch.manual_seed(0)
    made = getattr(hf, model)(getattr(hf, config)(**settings))
    enlarge(made)
    made.save_pretrained(folder)
    return folder


def enlarge(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | hf.pytorch_utils.Conv1D):
                inputs = module.weight.shape[0 if isinstance(module, hf.pytorch_utils.Conv1D) else 1]
                module.weight.normal_(std=0.2 * (32 / inputs) ** 0.5)
                if module.bias is not None:
                    module.bias.normal_(std=0.2)
        for name, parameter in model.named_parameters():  # of BEiT, which are equal numbers at first
            if name.endswith(("relative_position_bias_table", "lambda_1", "lambda_2")):
                parameter.normal_()


def save_decoder_tokenizer(folder: Path, *, pad: bool = True, eos: bool = True) -> None:
    """A word-level tokenizer as decoders have them: no CLS, no SEP."""
    save_word_tokenizer(folder)
    path = folder / "tokenizer_config.json"
    settings = {
        k: v for k, v in json.loads(path.read_text()).items() if k not in ("cls_token", "sep_token", "mask_token")
    }
    for wanted, key, token in ((pad, "pad_token", "[PAD]"), (eos, "eos_token", "[SEP]")):
        settings.pop(key, None)
        if wanted:
            settings[key] = token
    path.write_text(json.dumps(settings))


def save_text(family: Family, folder: Path) -> Path:
    save_family(family, folder)
    decodes = "num_key_value_heads" in family[2] or family[0] == "GPT2Model"
    (save_decoder_tokenizer if decodes else save_word_tokenizer)(folder)
    return folder


def save_processor(folder: Path) -> None:
    size = {"height": 16, "width": 16}
    hf.ViTImageProcessorPil(size=size).save_pretrained(folder)


def stages(
    source: Path, folder: Path, scheme: Scheme | None = None, **options: Any
) -> tuple[ConversionReport, Path, Path]:
    report = convert(source, folder / "latent", scheme, ConvertOptions(check=False, **options))
    pack(folder / "latent", folder / "packed", check=False)
    return report, folder / "latent", folder / "packed"
