"""A packed model that sentence-transformers opens, against `load` with the backend `native`: the bits are the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from support.families import IMAGE, SMALL, TEXT, Family, save_family, save_processor, save_text, stages
from ternarize_cli import load
from ternarize_cli.errors import InputError
from ternarize_cli.hf import TernarizeConfig
from ternarize_cli.kernels import describe
from ternarize_cli.layers import PackedLinear

pytestmark = [
    pytest.mark.skipif(
        not any(b.name == "native" and b.available for b in describe()), reason="the backend native is not built"
    ),
    pytest.mark.filterwarnings("ignore:You passed `quantization_config`"),
]

TEXTS = [" ".join((["the cat", "a house by the river", "fire"] * 9)[:n]) for n in (1, 2, 5, 9, 14, 20)]
TEXT_FAMILIES: list[Family] = [
    *(
        (f"{name}Model", f"{name}Config", SMALL | TEXT)
        for name in ("Bert", "Roberta", "XLMRoberta", "Camembert", "Ernie")
    ),
    ("ElectraModel", "ElectraConfig", SMALL | TEXT | {"embedding_size": 32}),
]
IMAGE_FAMILIES: list[Family] = [
    ("ViTModel", "ViTConfig", IMAGE),
    ("DeiTModel", "DeiTConfig", IMAGE),
    ("BeitModel", "BeitConfig", IMAGE | {"use_relative_position_bias": True}),
    ("Dinov2Model", "Dinov2Config", IMAGE | {"mlp_ratio": 2}),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", IMAGE | {"num_register_tokens": 2}),
]


def images() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (20, 20, 3), dtype=np.uint8)) for _ in range(6)]


def check(packed: Path, inputs: list[Any]) -> None:
    expected = load(packed, backend="native").encode(inputs)
    encoder: Any = SentenceTransformer(str(packed), device="cpu")
    for size in (1, 2, 5, 32):
        assert np.array_equal(encoder.encode(inputs, batch_size=size), expected), size
    assert type(encoder[0].auto_model.forward).__name__ == "NativeForward"


@pytest.mark.parametrize("family", TEXT_FAMILIES, ids=lambda family: family[0])
def test_texts_have_the_bits_of_native_in_any_batch(family: Family, tmp_path: Path) -> None:
    check(stages(save_text(family, tmp_path / "source"), tmp_path)[2], TEXTS)


@pytest.mark.parametrize("family", IMAGE_FAMILIES, ids=lambda family: family[0])
def test_images_have_the_bits_of_native_in_any_batch(family: Family, tmp_path: Path) -> None:
    save_processor(save_family(family, tmp_path / "source"))
    check(stages(tmp_path / "source", tmp_path)[2], images())


def test_a_caller_names_the_backend(tmp_path: Path) -> None:
    _, ternary, packed = stages(save_text(TEXT_FAMILIES[0], tmp_path / "source"), tmp_path)
    named = {"quantization_config": TernarizeConfig(backend="reference")}
    encoder = SentenceTransformer(str(packed), device="cpu", model_kwargs=named)
    encoder.encode("the cat")
    assert {m.backend for m in encoder.modules() if isinstance(m, PackedLinear)} == {"reference"}
    with pytest.raises(InputError, match="runs packed models"):
        AutoModel.from_pretrained(ternary, **named)
    with pytest.raises(InputError, match="is for packed models"):
        AutoModel.from_pretrained(tmp_path / "source", **named)


def test_a_file_can_not_choose_the_backend() -> None:
    with pytest.raises(InputError, match="is for packed models"):
        _ = TernarizeConfig.from_dict({}).artifact
