"""The description of blocks is read strictly: nothing that a stranger's config says goes on unchecked."""

import re
from dataclasses import replace
from typing import Any

import pytest

from ternarize_cli.errors import FormatError
from ternarize_cli.format.block import Block, blocks_from_dict
from ternarize_cli.format.block_parts import Embeddings, LayerKind, Norm, PatchBias, Relative, Rotary

BLOCK = Block(
    layers="layers",
    kinds=(LayerKind(64, 64, Rotary(10000.0, 8)), LayerKind(rotary=Rotary(160000.0, 8, 1.5, (1.0, 0.5, 0.2, 0.1)))),
    kind_of=(1, 0, 0),
    width=32,
    heads=4,
    key_value_heads=2,
    head=8,
    scale=0.35,
    qkv=("attn.q", "attn.k", "attn.v"),
    output="attn.o",
    up=("mlp.gate", "mlp.up"),
    down="mlp.down",
    inner=48,
    activation="silu",
    gated=True,
    norms={"attention.before": Norm("norm1", "rms", 1e-6, 1.0), "last": Norm("norm", "layer", 1e-5)},
    unnormed=(0,),
    relative=Relative("bias", 32, 128),
    embeddings=Embeddings("words", None, "positions", 2, 5.65),
)


def test_a_description_survives_json() -> None:
    assert Block.from_dict(BLOCK.to_dict()) == BLOCK
    assert blocks_from_dict({"vision_model": BLOCK.to_dict()}) == {"vision_model": BLOCK}
    for bias in (PatchBias("bias"), PatchBias("bias", shared=True)):
        of_images = replace(BLOCK, relative=None, embeddings=None, patch_bias=bias)
        assert Block.from_dict(of_images.to_dict()) == of_images


def test_the_first_block_may_lack_a_norm() -> None:
    assert set(BLOCK.norms_of(0)) == set()
    assert set(BLOCK.norms_of(1)) == {"attention.before"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("width", 0),
        ("width", True),
        ("width", 1 << 40),
        ("width", "32"),
        ("heads", 3),
        ("kind_of", [0, 2]),
        ("kind_of", []),
        ("kind_of", [-1]),
        ("kinds", 5),
        ("kinds", [{}] * 4),
        ("relative", {"name": "bias", "buckets": 32, "distance": 1 << 20}),
        ("kinds", [{"before": -1}, {}]),
        ("kinds", [{"rotary": {"theta": 1e4, "numbers": 16}}, {}]),
        ("kinds", [{"rotary": {"theta": 1e4, "numbers": 7}}, {}]),
        ("kinds", [{"rotary": {"theta": float("nan"), "numbers": 8}}, {}]),
        ("kinds", [{"seen": 3}, {}]),
        ("scale", float("inf")),
        ("scale", 10**400),
        ("kinds", [{"rotary": {"theta": 1e4, "numbers": 8}}, {"rotary": {"theta": 1e4, "numbers": 4}}]),
        ("qkv", ["a", "b"]),
        ("qkv", [1, 2, 3]),
        ("output", ""),
        ("output", "a..b"),
        ("output", "x" * 1000),
        ("activation", "tanh"),
        ("gated", 1),
        ("norms", {"somewhere": {"name": "n", "kind": "rms", "eps": 1e-6}}),
        ("norms", {"last": {"name": "n", "kind": "batch", "eps": 1e-6}}),
        ("norms", {"last": {"name": "n", "kind": "rms", "eps": 0}}),
        ("norms", {"last": {"name": "n", "kind": "rms", "eps": 1.0}}),
        ("norms", {"last": 3}),
        ("norms", []),
        ("unnormed", [9]),
        ("layer_scales", ["one"]),
        ("relative", {"name": "bias", "buckets": 2, "distance": 128}),
        ("relative", {"name": "bias", "buckets": 32, "distance": 3}),
        ("embeddings", {"words": 3}),
        ("embeddings", {"words": "w", "first_position": -2}),
        ("patch_bias", {"name": "bias"}),  # beside a bias by distance, and for texts
        ("surprise", 1),
        ("kinds", [{"before": [1]}, {}]),
        ("scale", "x"),
        ("scale", [1.0]),
        ("heads", {}),
    ],
)
def test_a_value_that_is_none_is_refused_in_words(key: str, value: Any) -> None:
    with pytest.raises(
        FormatError, match=r"quantization_config|kind_of|heads|linears|rotary|_scales|gate|patches"
    ) as no:
        Block.from_dict(BLOCK.to_dict() | {key: value})
    assert not re.search(r"__init__|argument|supported between|object is not", str(no.value))


@pytest.mark.parametrize(
    "value", [3, {}, {"name": ""}, {"name": "a", "shared": 1}, {"name": "a", "rows": 14}, {"name": ["a"]}]
)
def test_a_bias_by_patches_that_is_none_is_refused_in_words(value: Any) -> None:
    of_images = replace(BLOCK, relative=None, embeddings=None).to_dict()
    with pytest.raises(FormatError, match="quantization_config"):
        Block.from_dict(of_images | {"patch_bias": value})
    for given in ("relative", "embeddings"):
        with pytest.raises(FormatError, match="by patches"):
            replace(BLOCK, **{given: None}, patch_bias=PatchBias("bias"))


@pytest.mark.parametrize("values", [3, [], None, {"": 3}, {3: {}}, {"a..b": BLOCK.to_dict()}, {"": {}}])
def test_descriptions_that_are_none_are_refused(values: Any) -> None:
    with pytest.raises(FormatError, match="quantization_config"):
        blocks_from_dict(values)
