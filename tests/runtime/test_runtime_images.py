"""Packed image encoders give equal vectors with and without PyTorch, bit for bit, in every family."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

import ternarize_cli as ternarize
from support.families import IMAGE, IMAGE_FAMILIES, Family, save_family, save_processor, stages
from support.fused_families import FUSED, distances, needs_native, opened
from support.models import save_tiny_bert, save_tiny_clip
from ternarize_cli import kernels
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, InputError, UnavailableError
from ternarize_cli.kernels.native.encoder import NativeForward
from ternarize_cli.model_folder.integrity import seal
from ternarize_cli.runtime import Encoder

pytestmark = needs_native
FAMILIES = [f for f in IMAGE_FAMILIES if f in FUSED]
MORE: list[Family] = [
    ("BeitModel", "BeitConfig", IMAGE | {"use_relative_position_bias": True, "image_size": [16, 24]}),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", IMAGE | {"num_register_tokens": 0, "patch_size": 2}),
    ("ViTModel", "ViTConfig", IMAGE | {"image_size": [16, 24]}),
    ("DINOv3ViTModel", "DINOv3ViTConfig", IMAGE | {"num_attention_heads": 2, "patch_size": 8}),
]
ANY_SIZE = ("BeitModel", "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel")


def packed(family: Family, folder: Path) -> Path:
    source = save_family(family, folder / "source")
    save_processor(source)
    return stages(source, folder)[2]


def resizes_to(folder: Path, size: Any, **values: Any) -> Path:
    """Changes the image processor of a folder, as a user would."""
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": size, **values}))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].pop("digest", None)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pictures(count: int = 5, mode: str = "RGB") -> list[Image.Image]:
    random = np.random.default_rng(3)
    sizes = [(20 + 7 * i, 31 - 3 * (i % 8)) for i in range(count)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)).convert(mode) for w, h in sizes]


def in_torch(folder: Path) -> Any:
    encoder = ternarize.load(folder, backend="native")
    model = encoder[0].auto_model
    towers = [getattr(model, name) for name in ("text_model", "vision_model") if hasattr(model, name)] or [model]
    assert all(isinstance(tower.forward, NativeForward) for tower in towers)
    return encoder


@pytest.mark.parametrize("family", [*FAMILIES, *MORE], ids=lambda f: f[0])
def test_a_family_gives_equal_bits(family: Family, tmp_path: Path) -> None:
    folder = packed(family, tmp_path)
    trained = family[2]["image_size"]
    sizes = [trained] if isinstance(trained, list) else [[trained, trained]]
    if family[0] in ANY_SIZE:
        sizes += [[24, 16], [20, 33], [64, 64], [8, 8]]
    for size in sizes:
        encoder, images = Encoder(resizes_to(folder, size)), pictures()
        made = encoder.encode_images(images)
        assert made.dtype == np.float32
        assert made.shape == (5, encoder.dim) == (5, 32)
        assert np.isfinite(made).all()
        assert np.ptp(made, axis=0).max() > 1e-3, "all images are alike"
        assert (encoder.reads, encoder.limit) == ({"image"}, 0)
        torch_encoder = in_torch(folder)
        assert np.array_equal(made, torch_encoder.encode(images)), size
        assert np.array_equal(made[2:4], torch_encoder.encode(images[2:4], batch_size=1)), size
        assert np.array_equal(made[:1], encoder.encode_images(images[:1])), size


@pytest.mark.parametrize("family", [*FAMILIES, *MORE], ids=lambda f: f[0])
def test_vectors_are_those_of_the_models_modules_up_to_rounding(family: Family, tmp_path: Path) -> None:
    folder = packed(family, tmp_path)
    if isinstance(family[2]["image_size"], list):
        resizes_to(folder, family[2]["image_size"])
    images = pictures(12)
    made = torch.from_numpy(Encoder(folder).encode_images(images))
    own = torch.from_numpy(load_encoder(folder, device="cpu", backend="reference").encode(images))
    assert distances(made, own).median() < 0.04


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_a_model_of_two_towers_gives_equal_bits(kind: str, tmp_path: Path) -> None:
    folder = stages(save_tiny_clip(tmp_path / "source", kind), tmp_path)[2]
    encoder, torch_encoder = Encoder(folder), in_torch(folder)
    for mode in ("RGB", "L", "RGBA", "P"):
        images = pictures(4, mode)
        made = encoder.encode_images(images)
        assert made.shape == (4, 16 if kind == "CLIP" else 32)
        if kind == "CLIP" or mode == "RGB":  # the processor of the tiny SigLIP converts nothing
            assert np.array_equal(made, torch_encoder.encode(images)), mode
    if kind == "CLIP":
        assert encoder.reads == {"text", "image"}
        texts = ["the cat on the house", "write", "a big red index of stone and light"]
        for some in (texts, texts[1:2]):
            assert np.array_equal(encoder.encode(some), torch_encoder.encode(some))
    else:
        assert encoder.reads == {"image"}
        with pytest.raises(InputError, match="texts of a 'siglip' are not read here, since padding"):
            encoder.encode(["a cat"])


def test_a_clip_of_an_old_config_ends_its_texts_at_their_highest_id(tmp_path: Path) -> None:
    folder = stages(save_tiny_clip(tmp_path / "source"), tmp_path)[2]
    text = json.loads((folder / "config.json").read_text())["text_config"]
    config(text_config=text | {"eos_token_id": 2})(resizes_to(folder, {"shortest_edge": 8}))
    texts = ["the cat on the house", "write", "a big red index of stone and light"]
    made = Encoder(folder).encode(texts)
    assert np.array_equal(made, in_torch(folder).encode(texts))
    config(text_config=text)(folder)
    assert not np.array_equal(made, Encoder(folder).encode(texts))
    config(text_config=text | {"eos_token_id": [3, 4]})(folder)
    with pytest.raises(CheckpointError, match=r"eos_token_id is \[3, 4\]"):
        Encoder(folder)


def test_a_clip_with_modules_gives_its_features(tmp_path: Path) -> None:
    folder = stages(save_tiny_clip(tmp_path / "source"), tmp_path)[2]
    expected = Encoder(folder).encode_images(pictures())
    outputs = {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("image", "text")
    }
    (folder / "modules.json").write_text(
        json.dumps([{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}])
    )
    (folder / "sentence_bert_config.json").write_text("{}")
    settings(modality_config=outputs, module_output_name="sentence_embedding")(resizes_to(folder, {"shortest_edge": 8}))
    encoder = Encoder(folder)
    assert np.array_equal(encoder.encode_images(pictures()), expected)
    assert np.array_equal(in_torch(folder).encode(pictures()), expected)
    settings(modality_config=outputs | {"image": {"method": "forward", "method_output_name": "pooler_output"}})(folder)
    with pytest.raises(UnavailableError, match="of images, as sentence_embedding"):
        Encoder(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images", "texts"])
def test_images_need_no_pytorch_and_texts_need_nothing_of_images(kind: str, tmp_path: Path) -> None:
    if kind == "images":
        folder = packed(FAMILIES[0], tmp_path)
        call = "from PIL import Image; encoder.encode_images([Image.new('RGB', (20, 30), 'red')])"
    else:
        folder, call = stages(save_tiny_bert(tmp_path / "source"), tmp_path)[2], "encoder.encode(['a cat'])"
    code = "import sys; from ternarize_cli.runtime import Encoder; encoder = Encoder(sys.argv[1]);"
    code += f"{call}; print(sorted(m for m in sys.modules if m in ('torch', 'transformers', 'PIL') or '.image_' in m))"
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    loaded = done.stdout
    assert not {"torch", "transformers"} & {*re.findall(r"'(\w+)'", loaded)}
    assert (loaded == "[]\n") == (kind == "texts")


def with_modules(folder: Path, pooling: str | None, output: str, *kinds: str) -> Path:
    """Gives a packed folder other modules behind its encoder."""
    listed = [("", "Transformer"), *([("1_Pooling", "Pooling")] if pooling else []), *((f"9_{k}", k) for k in kinds)]
    prefix = "sentence_transformers.models."
    modules = [{"idx": i, "name": str(i), "path": path, "type": prefix + k} for i, (path, k) in enumerate(listed)]
    (folder / "modules.json").write_text(json.dumps(modules))
    name = "token_embeddings" if output == "last_hidden_state" else "sentence_embedding"
    settings = {"modality_config": {"image": {"method": "forward", "method_output_name": output}}}
    (folder / "sentence_bert_config.json").write_text(json.dumps({**settings, "module_output_name": name}))
    for path, _ in listed[1:]:
        (folder / path).mkdir(exist_ok=True)
    if pooling:
        values = {"embedding_dimension": 32, "pooling_mode": pooling}
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(values))
    return resizes_to(folder, 16)


@pytest.mark.parametrize(
    ("kind", "pooling", "output"),
    [
        ("ViTModel", "cls", "last_hidden_state"),
        ("ViTModel", "mean", "last_hidden_state"),
        ("ViTModel", "max", "last_hidden_state"),
        ("ViTModel", None, "pooler_output"),
        ("Dinov2Model", "mean", "last_hidden_state"),
        ("Dinov2Model", None, "pooler_output"),
        ("CLIPVisionModel", None, "pooler_output"),
        ("SiglipVisionModel", "mean", "last_hidden_state"),
    ],
)
def test_what_a_folder_asks_for_is_done_in_equal_bits(
    kind: str, pooling: str | None, output: str, tmp_path: Path
) -> None:
    folder = packed(next(f for f in FAMILIES if f[0] == kind), tmp_path)
    with_modules(folder, pooling, output, "Normalize")
    encoder, images = Encoder(folder), pictures()
    made = encoder.encode_images(images)
    assert np.abs(np.linalg.norm(made, axis=1) - 1).max() < 1e-6
    assert np.array_equal(made, in_torch(folder).encode(images))
    short = encoder.encode_images(images, dimensions=8, normalize=False)
    assert short.shape == (5, 8)
    whole = encoder.encode_images(images, normalize=False)
    assert np.array_equal(short, whole[:, :8])
    lengths = np.linalg.norm(whole, axis=1, keepdims=True)
    assert np.abs(whole / lengths - made).max() < 1e-6


def test_images_of_many_sizes_keep_their_order(tmp_path: Path) -> None:
    folder = packed(next(f for f in FAMILIES if f[0] == "DINOv3ViTModel"), tmp_path)
    resizes_to(folder, {"shortest_edge": 16})
    encoder, images = Encoder(folder), pictures(9) * 3
    made = encoder.encode_images(images)
    alone = np.concatenate([encoder.encode_images([image]) for image in images])
    assert np.array_equal(made, alone)
    assert np.array_equal(alone[:4], np.concatenate([in_torch(folder).encode([image]) for image in images[:4]]))
    assert encoder.encode_images([]).shape == (0, 32)


def test_more_images_than_a_batch_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = packed(next(f for f in FAMILIES if f[0] == "ViTModel"), tmp_path)
    encoder, images = Encoder(folder), pictures(7)
    expected = encoder.encode_images(images)
    for budget in (1, 40, 17 * 3):
        monkeypatch.setattr("ternarize_cli.runtime.image_encoder.BATCH_TOKENS", budget)
        assert np.array_equal(encoder.encode_images(images), expected)


@torch.inference_mode()
def test_the_modules_of_replaced_embeddings_run(tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f[0] == "Dinov2Model")
    model = opened(family, packed(family, tmp_path))
    kernels.use_backend(model, "native")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = model(pixel_values=pixels).last_hidden_state
    own = model.embeddings.forward
    model.embeddings.forward = lambda pixels: own(-pixels)
    other = model(pixel_values=pixels).last_hidden_state
    assert distances(other, made).median() > 0.01
    del model.embeddings.forward
    assert torch.equal(model(pixel_values=pixels).last_hidden_state, made)
    with pytest.raises(ValueError, match="channel dimension"):
        model(pixel_values=pixels[:, :2])


@torch.inference_mode()
def test_a_pooling_that_changes_is_laid_out_again(tmp_path: Path) -> None:
    family = next(f for f in FAMILIES if f[0] == "SiglipVisionModel")
    model = opened(family, packed(family, tmp_path))
    kernels.use_backend(model, "native")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = model(pixel_values=pixels).pooler_output
    model.head.probe.mul_(-2)
    changed = model(pixel_values=pixels).pooler_output
    own = type(model).forward(model, pixel_values=pixels).pooler_output
    assert distances(changed, made).median() > 0.01
    assert distances(changed, own).median() < 0.04
    model.head.forward = lambda hidden: hidden[:, 3]
    assert torch.equal(model(pixel_values=pixels).pooler_output, model(pixel_values=pixels).last_hidden_state[:, 3])


def changed(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")

    return apply


def config(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def settings(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "sentence_bert_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def set_to(name: str, *shape: int) -> Callable[[Path], None]:
    return changed(lambda tensors: tensors.update({name: np.zeros(shape, np.float32)}))


def without(name: str) -> Callable[[Path], None]:
    return changed(lambda tensors: tensors.pop(name))


KERNEL, POSITIONS = "embeddings.patch_embeddings.projection.weight", "embeddings.position_embeddings"
DAMAGED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no kernel": ("ViTModel", without(KERNEL), "has no tensor"),
    "a kernel without pixels": ("ViTModel", set_to(KERNEL, 32, 3, 0, 4), "it has no numbers"),
    "a kernel of another width": ("ViTModel", set_to(KERNEL, 31, 3, 4, 4), "is F32"),
    "a flat kernel": ("ViTModel", set_to(KERNEL, 32, 48), "is F32"),
    "no class token": ("ViTModel", without("embeddings.cls_token"), "has no tensor"),
    "a wider class token": ("ViTModel", set_to("embeddings.cls_token", 1, 1, 33), "tokens are 32 wide"),
    "a class token without a shape": ("ViTModel", set_to("embeddings.cls_token"), "tokens are 32 wide"),
    "no positions": ("ViTModel", without(POSITIONS), "has no tensor"),
    "too few positions": ("ViTModel", set_to(POSITIONS, 1, 16, 32), "has 15 positions of patches, .* has 16 patches"),
    "positions of another grid": ("Dinov2Model", set_to(POSITIONS, 1, 15, 32), "has 14 positions of patches"),
    "an image size of a million": ("ViTModel", config(image_size=1_000_000), "image_size is 1000000"),
    "an image size of none": ("ViTModel", config(image_size=[16]), "image_size is \\[16\\]"),
    "an image size in words": ("ViTModel", config(image_size="16"), "image_size is '16'"),
    "a table of other biases": (
        "BeitModel",
        set_to("encoder.layer.1.attention.attention.relative_position_bias.relative_position_bias_table", 48, 4),
        "is F32",
    ),
    "a table of positions that is narrower": (
        "CLIPVisionModel",
        set_to("embeddings.position_embedding.weight", 17, 31),
        "is F32",
    ),
    "no norm of the pooler": ("CLIPVisionModel", without("post_layernorm.weight"), "has no tensor"),
    "a probe of another width": ("SiglipVisionModel", set_to("head.probe", 1, 1, 31), "is F32"),
    "another size": ("ViTModel", settings(processing_kwargs={"image": {"size": 20}}), "passes size=20 to transformers"),
    "no family": ("ViTModel", config(model_type=["vit"]), "model_type is .'vit'., no text"),
    "queries of another width": ("SiglipVisionModel", set_to("head.attention.in_proj_weight", 95, 32), "is F32"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_model_is_refused_in_words(case: str, tmp_path: Path) -> None:
    kind, damage, words = DAMAGED[case]
    folder = packed(next(f for f in FAMILIES if f[0] == kind), tmp_path)
    damage(folder)
    seal(folder)
    with pytest.raises(CheckpointError, match=words):
        Encoder(folder).encode_images(pictures(1))


REFUSED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no head": ("SiglipVisionModel", without("head.probe"), "asks for pooler_output, which the model does not have"),
    "another family": ("ViTModel", config(model_type="swin"), "is a 'swin', whose images are not read here"),
    "hidden states": ("ViTModel", config(output_hidden_states=True), "asks for output_hidden_states"),
    "arguments of loaders": ("ViTModel", settings(model_kwargs={"attn_implementation": "eager"}), "has model_kwargs"),
    "a list of outputs": (
        "Dinov2Model",
        settings(modality_config={"image": {"method": "forward", "method_output_name": ["hidden_states", -1]}}),
        "of images, as sentence_embedding",
    ),
    "no images": ("ViTModel", settings(modality_config={}), "takes None of images"),
    "pooled twice": (
        "ViTModel",
        settings(
            modality_config={"image": {"method": "forward", "method_output_name": "pooler_output"}},
            module_output_name="sentence_embedding",
        ),
        "of images",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_done_here_is_named(case: str, tmp_path: Path) -> None:
    kind, change, words = REFUSED[case]
    folder = packed(next(f for f in FAMILIES if f[0] == kind), tmp_path)
    change(folder)
    seal(folder)
    with pytest.raises(UnavailableError, match=words):
        Encoder(folder)


@pytest.mark.parametrize(("key", "value"), [("modality_config", 3), ("processing_kwargs", ["image"])])
def test_settings_that_are_none_are_refused(key: str, value: Any, tmp_path: Path) -> None:
    folder = packed(FAMILIES[0], tmp_path)
    settings(**{key: value})(folder)
    with pytest.raises(CheckpointError, match=f"{key} is no object"):
        Encoder(folder)


def test_images_and_texts_go_to_models_that_read_them(tmp_path: Path) -> None:
    encoder = Encoder(packed(FAMILIES[0], tmp_path / "vit"))
    for call in (encoder.encode, encoder.tokenize):
        with pytest.raises(InputError, match="reads images, not texts"):
            call(["a text"])
    with pytest.raises(InputError, match=r"images\[1\] is a str, no image"):
        encoder.encode_images([*pictures(1), "a.png"])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"images\[0\] has the mode L, 1 channels of uint8"):
        encoder.encode_images(pictures(1, "L"))
    with pytest.raises(InputError, match="33 dimensions are asked for"):
        encoder.encode_images(pictures(1), dimensions=33)
    texts = Encoder(stages(save_tiny_bert(tmp_path / "source"), tmp_path)[2])
    with pytest.raises(InputError, match="reads texts, not images"):
        texts.encode_images(pictures(1))


def test_a_processor_that_is_not_the_models_is_named(tmp_path: Path) -> None:
    folder = resizes_to(packed(FAMILIES[0], tmp_path), 20)
    with pytest.raises(InputError, match=r"has the pixel values \[3, 20, 20\], and the model reads \[3, 16, 16\]"):
        Encoder(folder).encode_images(pictures(1))
    dino = packed(next(f for f in FAMILIES if f[0] == "Dinov2Model"), tmp_path / "dino")
    with pytest.raises(InputError, match=r"\[3, 2, 2\], and the model reads at least \[3, 4, 4\]"):
        Encoder(resizes_to(dino, 2)).encode_images(pictures(1))


def test_a_beit_that_pools_its_first_token(tmp_path: Path) -> None:
    family: Family = ("BeitModel", "BeitConfig", IMAGE | {"use_mean_pooling": False})
    folder, images = packed(family, tmp_path), pictures()
    assert np.array_equal(Encoder(folder).encode_images(images), in_torch(folder).encode(images))
