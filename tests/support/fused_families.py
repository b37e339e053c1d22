"""Families whose encoders run fused from a description of their blocks: packed models of them, and inputs."""

import json
import os
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor

from support.families import (
    CLIP,
    DECODER,
    IMAGE_FAMILIES,
    SMALL,
    TEXT,
    TEXT_FAMILIES,
    WORDS,
    Family,
    save_family,
    save_processor,
    save_word_tokenizer,
    stages,
)
from ternarize_cli import kernels

needs_native = pytest.mark.skipif(
    not any(b.name == "native" and b.available for b in kernels.describe()), reason="the native library is not built"
)
LONG = 60
MORE: list[Family] = [
    ("EuroBertModel", "EuroBertConfig", DECODER),
    ("GteModel", "GteConfig", SMALL | TEXT | {"head_dim": 8}),
    ("CLIPTextModel", "CLIPTextConfig", CLIP | {"vocab_size": WORDS, "max_position_embeddings": 80, "eos_token_id": 3}),
]
WINDOWS = {
    "ModernBertModel": {"local_attention": 16, "num_hidden_layers": 4},
    "Gemma3TextModel": {"sliding_window": 16, "num_hidden_layers": 7},
    "MistralModel": {"sliding_window": 9},
}
LINEARS_ONLY = ("AlbertModel", "ElectraModel", "DebertaV2Model", "GPT2Model", "SwinModel")
FUSED = [
    (name, config, settings | WINDOWS.get(name, {}))
    for name, config, settings in [*TEXT_FAMILIES, *IMAGE_FAMILIES, *MORE]
    if name not in LINEARS_ONLY
]
OTHERS = [f for f in [*TEXT_FAMILIES, *IMAGE_FAMILIES] if f[0] in LINEARS_ONLY]


_WIDTH = 192
_WIDE = dict.fromkeys(("hidden_size", "dim", "d_model"), _WIDTH)
_WIDE |= dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff"), 2 * _WIDTH)
_BLOCKS = ("num_hidden_layers", "n_layers", "num_layers")
_WIDE |= dict.fromkeys(("head_dim", "d_kv"), 48)


def wider(family: Family, blocks: int) -> Family:
    """A family's model with blocks of width 192, in which what rounds the other way spreads as in real ones."""
    name, config, settings = family
    numbers = _WIDE | dict.fromkeys(_BLOCKS, blocks)
    return name, config, {key: numbers.get(key, value) for key, value in settings.items()}


def name_of(family: Family) -> str:
    return family[0]


def packed(family: Family, folder: Path) -> Path:
    """The packed model of a family in a folder, with its `source` and `latent`; copies of what is made once."""
    shutil.copytree(_packed(json.dumps(family)), folder, dirs_exist_ok=True)
    return folder / "packed"


@cache
def _packed(described: str) -> Path:
    family, folder = json.loads(described), Path(mkdtemp(dir=os.environ["TERNARIZE_CACHE"]))
    source = save_family(family, folder / "source")
    save_processor(source) if "image_size" in family[2] else save_word_tokenizer(source)
    stages(source, folder)
    return folder


def opened(family: Family, folder: Path) -> Any:
    return getattr(hf, family[0]).from_pretrained(folder).eval()


def inputs(family: Family) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    if "image_size" in family[2]:
        return {"pixel_values": torch.randn(3, 3, 16, 16, generator=random)}
    ids = torch.randint(4, WORDS, (4, LONG), generator=random)
    mask = torch.ones_like(ids)
    for row, length in enumerate((LONG, 33, 17, 2)):
        mask[row, length:] = ids[row, length:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def distances(a: Tensor, b: Tensor) -> Tensor:
    """The relative distance (L2) of each vector of `a` from that of `b`."""
    return ((a - b).norm(dim=-1) / b.norm(dim=-1)).flatten()
