"""Image encoders run through sentence-transformers, and their vector is the one their family is used with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModel,
    BeitConfig,
    CLIPConfig,
    CLIPVisionConfig,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    SiglipVisionConfig,
    SwinConfig,
    ViTConfig,
)

from support.models import save_image_processor
from ternarize_cli.encoders import loading, vision
from ternarize_cli.encoders.modalities import modalities_of, require_modality
from ternarize_cli.errors import CheckpointError

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PATCHES = {"image_size": 16, "patch_size": 8}
SMALL = {**SHAPE, **PATCHES, "intermediate_size": 64}
FAMILIES = {
    "vit": (ViTConfig(**SMALL), "cls"),
    "deit": (DeiTConfig(**SMALL), "cls"),
    "dinov2": (Dinov2Config(**SHAPE, **PATCHES), "pooler_output"),
    "dinov2-registers": (Dinov2WithRegistersConfig(**SHAPE, **PATCHES), "pooler_output"),
    "swin": (
        SwinConfig(image_size=16, patch_size=2, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
        "pooler_output",
    ),
    "beit": (BeitConfig(**SMALL), "pooler_output"),
    "clip-vision": (CLIPVisionConfig(**SMALL), "pooler_output"),
    "siglip-vision": (SiglipVisionConfig(**SMALL), "pooler_output"),
}


def make_images(count: int = 5) -> list[Image.Image]:
    chance = np.random.default_rng(3)
    return [Image.fromarray(chance.integers(0, 256, (10 + i, 12, 3), dtype=np.uint8)) for i in range(count)]


def save(folder: Path, config: Any) -> Any:
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(folder)
    save_image_processor(folder, 16)
    return model


def by_hand(model: Any, images: list[Image.Image]) -> Any:
    pixels = np.stack([np.asarray(i.resize((16, 16), Image.Resampling.BILINEAR)) for i in images]) / 127.5 - 1
    with torch.inference_mode():
        return model(pixel_values=torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_vector_of_an_image_is_that_of_its_family(family: str, tmp_path: Path) -> None:
    config, pooling = FAMILIES[family]
    model, images = save(tmp_path, config), make_images()
    assert modalities_of(tmp_path) == {"image"}
    assert vision.image_pooling(model) == pooling
    output = by_hand(model, images)
    expected = output.last_hidden_state[:, 0] if pooling == "cls" else output.pooler_output
    encoder = loading.load_encoder(tmp_path, device="cpu")
    np.testing.assert_allclose(encoder.encode(images, batch_size=2), expected.numpy(), atol=2e-5)
    np.testing.assert_array_equal(encoder.encode(images), encoder.encode(images))
    note = loading.pooling_note(tmp_path)
    assert note is not None
    assert ("CLS token" if pooling == "cls" else "pooler_output") in note


def test_the_poolers_of_swin_and_dinov2_are_mean_and_cls(tmp_path: Path) -> None:
    for family in ("swin", "dinov2"):
        output = by_hand(save(tmp_path / family, FAMILIES[family][0]), make_images())
        tokens = output.last_hidden_state
        expected = tokens.mean(dim=1) if family == "swin" else tokens[:, 0]
        torch.testing.assert_close(output.pooler_output, expected)


def test_clip_reads_both_and_bert_reads_text(tiny_bert: Path, tmp_path: Path) -> None:
    CLIPConfig().save_pretrained(tmp_path)
    assert modalities_of(tmp_path) == {"text", "image"}
    assert modalities_of(tiny_bert) == {"text"}
    require_modality(tmp_path, "image", "clip")
    with pytest.raises(CheckpointError, match="bert reads text, not images"):
        require_modality(tiny_bert, "image", "bert")


def test_an_image_encoder_without_a_processor_is_refused(tmp_path: Path) -> None:
    save(tmp_path, FAMILIES["vit"][0])
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no image processor \(preprocessor_config.json\)"):
        loading.load_encoder(tmp_path, device="cpu")


@pytest.mark.slow
def test_latent_and_packed_models_encode_images_alike(run: Any, tiny_vit: Path, tmp_path: Path) -> None:
    latent, packed = tmp_path / "latent", tmp_path / "packed"
    assert run("convert", tiny_vit, "-o", latent, "-q").exit_code == 0
    assert run("pack", latent, "-o", packed, "-q").exit_code == 0
    assert json.loads((packed / "preprocessor_config.json").read_text())["size"] == {"height": 8, "width": 8}
    images = make_images()
    teacher, student, frozen = (
        loading.load_encoder(f, device="cpu", backend=b).encode(images)
        for f, b in ((tiny_vit, "auto"), (latent, "auto"), (packed, "reference"))
    )
    np.testing.assert_allclose(frozen, student, atol=1e-5)
    assert np.abs(teacher - student).max() > 0.01


DISAGREEING: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "size": ({}, {"size": {"height": 32, "width": 32}}, "size"),
    "not square": ({}, {"size": {"height": 16, "width": 32}}, "size"),
    "crop": ({}, {"image_processor_type": "CLIPImageProcessor", "crop_size": {"height": 8, "width": 8}}, "size"),
    "no resizing": ({}, {"do_resize": False}, "prepares no images"),
    "one side": ({}, {"size": {"shortest_edge": 16}}, "prepares no images"),
    "grey": ({"num_channels": 1}, {"image_mean": [0.5], "image_std": [0.5]}, "mean must have 3"),
    "four channels": ({"num_channels": 4}, {}, "channel"),
}


@pytest.mark.parametrize("case", DISAGREEING)
def test_a_processor_that_is_not_the_models_is_named_at_every_stage(case: str, tmp_path: Path, run: Any) -> None:
    changes, processor, expected = DISAGREEING[case]
    source, pictures = tmp_path / "source", tmp_path / "pictures"
    save(source, ViTConfig(**SMALL | changes))
    path = source / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | processor))
    pictures.mkdir()
    for i, image in enumerate(make_images(2)):
        image.save(pictures / f"{i}.png")
    for command in (("encode", source, pictures), ("convert", source, "-o", tmp_path / "made")):
        done = run(*command)
        assert done.exit_code == 2, done.stderr
        text = " ".join(done.stderr.split())
        assert "processor" in text
        assert expected in text or "does not encode a short image" in text
    assert not (tmp_path / "made").exists()


def test_a_processor_that_needs_a_missing_package_names_it(tmp_path: Path, run: Any) -> None:
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        pytest.skip("torchvision is installed")
    source = tmp_path / "source"
    save(source, ViTConfig(**SMALL))
    (source / "preprocessor_config.json").write_text('{"image_processor_type": "DINOv3ViTImageProcessorFast"}')
    done = run("convert", source, "-o", tmp_path / "made")
    assert done.exit_code == 4
    assert "requires the Torchvision library" in " ".join(done.stderr.split())
    assert "pip install torchvision" in done.stderr


def test_the_note_about_a_clip_tells_of_its_features(tmp_path: Path) -> None:
    config = CLIPConfig(text_config=SHAPE, vision_config=SMALL)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    note = loading.pooling_note(tmp_path)
    assert note is not None
    assert "projected features" in note
    assert "pooled" not in note
