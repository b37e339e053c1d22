"""Positions, embeddings and poolers of images are those of transformers' modules, up to last bits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from transformers.models.beit.modeling_beit import BeitRelativePositionBias
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTRopePositionEmbedding

from support.families import IMAGE, IMAGE_FAMILIES, Family
from support.fused_families import FUSED, name_of, needs_native, opened, packed
from ternarize_cli import kernels
from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.block import ACTIVATIONS
from ternarize_cli.kernels.module_tensors import ModuleTensors
from ternarize_cli.runtime.image_pooling import AttentionPooler, FirstPooler, MeanPooler, Pooler, TanhPooler
from ternarize_cli.runtime.image_positions import patch_table, patch_turns, resized
from ternarize_cli.runtime.native.library import library

pytestmark = needs_native
FAMILIES = [f for f in IMAGE_FAMILIES if f in FUSED]
REAL: list[Family] = [
    (name, config, IMAGE | {"image_size": 518, "patch_size": 14, "num_hidden_layers": 1} | more)
    for name, config, more in (
        ("Dinov2Model", "Dinov2Config", {}),
        ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", {"num_register_tokens": 4}),
        ("BeitModel", "BeitConfig", {"use_absolute_position_embeddings": True}),
    )
]
MODES = {
    "linear": {"mode": "bilinear"},
    "cubic": {"mode": "bicubic"},
    "antialiased cubic": {"mode": "bicubic", "antialias": True},
}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("how", MODES)
@pytest.mark.parametrize("old", [(1, 1), (4, 4), (5, 3), (16, 16), (37, 37)], ids=str)
def test_pictures_are_interpolated_as_pytorch_does(how: Any, old: tuple[int, int]) -> None:
    picture = random(*old, 8)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None]
    for new in ((1, 1), (3, 7), (16, 16), (37, 37), (20, 50), (64, 2)):
        made = nn.functional.interpolate(tensor, size=new, align_corners=False, **MODES[how])
        assert np.abs(resized(picture, *new, how) - made[0].permute(1, 2, 0).numpy()).max() < 2e-5, new
    assert np.array_equal(resized(picture, *old, how), picture)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (64, 4), (192, 2)])
def test_turns_of_patches_are_those_of_dinov3(width: int, heads: int) -> None:
    config = hf.DINOv3ViTConfig(hidden_size=width, num_attention_heads=heads, patch_size=16)
    module, pairs = DINOv3ViTRopePositionEmbedding(config).eval(), width // heads // 2
    for rows, columns in ((1, 1), (14, 14), (3, 40), (33, 2)):
        cos, sin = (t[:, :pairs].numpy() for t in module(torch.zeros(1, 3, 16 * rows, 16 * columns + 5)))
        made = patch_turns(rows, columns, 5, pairs, config.rope_theta)
        assert [turn.shape for turn in made] == [(5 + rows * columns, pairs)] * 2
        assert (made[0][:5] == 1).all()
        assert (made[1][:5] == 0).all()
        assert max(np.abs(made[0][5:] - cos).max(), np.abs(made[1][5:] - sin).max()) < 1e-6


@pytest.mark.parametrize("image_size", [16, [16, 24], [24, 16]], ids=str)
def test_biases_by_patches_are_those_of_beit(image_size: Any) -> None:
    config = hf.BeitConfig(hidden_size=32, num_attention_heads=4, patch_size=4, image_size=image_size)
    module = BeitRelativePositionBias(config)
    module.relative_position_bias_table.data.normal_(generator=torch.Generator().manual_seed(0))
    trained = tuple(side // 4 for side in (image_size if isinstance(image_size, list) else [image_size] * 2))
    for rows, columns in ((4, 4), (4, 6), (1, 1), (7, 2), (20, 18)):
        with torch.inference_mode():  # transformers keeps tables that an earlier test may have made in this mode
            expected = module((rows, columns))[0].numpy()
        table = patch_table(module.relative_position_bias_table.detach().numpy(), trained, rows, columns)
        row, column = np.divmod(np.arange(rows * columns), columns)
        down, right = row[None, :] - row[:, None] + rows - 1, column[None, :] - column[:, None] + columns - 1
        made = table[:, down * (2 * columns - 1) + right]
        assert np.abs(made - expected[:, 1:, 1:]).max() < 2e-5
        as_query, as_key, as_both = table[:, -3:].T
        assert (expected[:, 0, 1:] == as_query[:, None]).all()
        assert (expected[:, 1:, 0] == as_key[:, None]).all()
        assert (expected[:, 0, 0] == as_both).all()


@torch.inference_mode()
@pytest.mark.parametrize("family", [*FAMILIES, *REAL], ids=name_of)
def test_embeddings_are_those_of_the_modules(family: Family, tmp_path: Path) -> None:
    model = opened(family, packed(family, tmp_path))
    for name, parameter in model.embeddings.named_parameters():  # some are zeros at first
        parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(name)))
    assert kernels.use_backend(model, "native") == "native"
    blocks = model.forward._encoder._images
    trained = family[2]["image_size"]
    sizes = [(trained, trained)]
    if blocks.takes_any_size:
        sizes += [(224, 224), (140, 98), (37, 60)] if family in REAL else [(24, 16), (19, 33), (64, 64), (4, 4)]
    for high, wide in sizes:
        pixels = torch.randn(2, 3, high, wide, generator=torch.Generator().manual_seed(0))
        own = model.embeddings(pixels)
        if hasattr(model, "pre_layrnorm"):
            own = model.pre_layrnorm(own)
        rows, columns = high // blocks.patch[0], wide // blocks.patch[1]
        made = blocks._embedded(pixels.numpy(), rows, columns)
        assert made.dtype == np.float32
        far = np.abs(made.reshape(own.shape) - own.numpy()).max()
        assert far < 5e-6 * own.abs().max(), (high, wide)
        assert blocks.tokens(tuple(pixels.shape)) == own.shape[1]


def check(pooler: Pooler, own: Callable[[torch.Tensor], torch.Tensor], tokens: int = 17, width: int = 32) -> None:
    """Compares a pooler with a module, and the vectors of images alone with those in a batch."""
    hidden = random(7, tokens, width)
    made = pooler(hidden)
    assert (made.dtype, made.shape) == (np.float32, (7, width))
    assert np.abs(made - own(torch.from_numpy(hidden)).numpy()).max() < 5e-6
    for part in (slice(0, 1), slice(3, 7)):
        assert np.array_equal(pooler(hidden[part]), made[part])


def norm_of(width: int = 32) -> nn.LayerNorm:
    made = nn.LayerNorm(width, eps=1e-3)
    made.weight.data.normal_()
    made.bias.data.normal_()
    return made


@torch.inference_mode()
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("width", "heads", "tokens"), [(32, 4, 17), (48, 3, 1), (80, 1, 200)])
def test_attention_pools_as_siglips_head_does(activation: str, width: int, heads: int, tokens: int) -> None:
    torch.manual_seed(0)
    name = {"gelu_tanh": "gelu_pytorch_tanh"}.get(activation, activation)
    config = hf.SiglipVisionConfig(
        hidden_size=width, num_attention_heads=heads, intermediate_size=100, num_hidden_layers=1, hidden_act=name
    )
    model = hf.SiglipVisionModel(config).eval()
    model.head.attention.in_proj_bias.normal_()
    model.head.layernorm.weight.normal_()
    pooler = AttentionPooler(ModuleTensors(model), "head", width, heads, activation)
    check(pooler, model.head, tokens, width)


@torch.inference_mode()
def test_other_poolers_are_those_of_their_modules() -> None:
    lib, model = library(), nn.Module()
    model.norm, model.dense = norm_of(), nn.Linear(32, 32)
    tensors = ModuleTensors(model)
    check(FirstPooler(lib), lambda hidden: hidden[:, 0])
    check(FirstPooler(lib, tensors.norm("norm", 32)), lambda hidden: model.norm(hidden[:, 0]))
    check(MeanPooler(lib, tensors.norm("norm", 32)), lambda hidden: model.norm(hidden[:, 1:].mean(dim=1)))
    check(TanhPooler(tensors.linear("dense", 32)), lambda hidden: torch.tanh(model.dense(hidden[:, 0])))


def test_large_negative_numbers_go_through_activations_without_a_warning() -> None:
    config = hf.SiglipVisionConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=48, num_hidden_layers=1, hidden_act="silu"
    )
    model = hf.SiglipVisionModel(config).eval()
    model.head.mlp.fc1.bias.data.fill_(-1e4)
    made = AttentionPooler(ModuleTensors(model), "head", 32, 4, "silu")(random(2, 5, 32))
    assert np.isfinite(made).all()


def test_parts_that_do_not_fit_a_model_are_refused_in_words() -> None:
    model: Any = nn.Module()
    model.norm, model.dense, model.table = norm_of(31), nn.Linear(5, 6), nn.Embedding(7, 31)
    tensors = ModuleTensors(model)
    assert tensors.has("norm.weight")
    assert not tensors.has("norm.nothing")
    assert not tensors.has("nothing.weight")
    for call in (
        lambda: tensors.floats("nothing.weight"),
        lambda: tensors.norm("norm", 32),
        lambda: tensors.linear("dense", 6),
        lambda: tensors.table("table", 32),
        lambda: AttentionPooler(tensors, "dense", 32, 5, "gelu"),
    ):
        with pytest.raises(CheckpointError, match=r"has no nothing|should be|don't divide"):
            call()
