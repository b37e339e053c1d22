"""Pixel values are those of transformers' image processors for PIL, bit for bit; files that are none are refused."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers as hf
from PIL import Image

from ternarize_cli.errors import CheckpointError, InputError, UnavailableError
from ternarize_cli.runtime.image_processor_file import read_processor

SIZES = [(1, 1), (5, 7), (16, 16), (24, 40), (40, 24), (31, 33), (224, 224), (300, 90), (1000, 3), (517, 641)]
"""Widths and heights."""
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": {},
    "DeiTImageProcessor": {},
    "BeitImageProcessor": {"do_center_crop": True, "crop_size": 200},
    "CLIPImageProcessor": {},
    "BitImageProcessor": {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}},
    "SiglipImageProcessor": {"size": {"height": 32, "width": 48}},
}
VALUES: dict[str, dict[str, Any]] = {
    "nearest": {"resample": 0, "size": 32},
    "Lanczos": {"resample": 1, "size": {"height": 50, "width": 20}},
    "a list of sides": {"size": [20, 30]},
    "the shorter side": {"size": {"shortest_edge": 20}, "do_center_crop": True, "crop_size": [18, 31]},
    "the shorter side as a number": {"size": 33, "default_to_square": False},
    "both sides bounded": {"size": {"shortest_edge": 40, "longest_edge": 51}},
    "black around a small image": {
        "do_resize": False,
        "do_center_crop": True,
        "crop_size": {"height": 37, "width": 44},
    },
    "no resizing": {"do_resize": False},
    "no rescaling": {"do_rescale": False, "image_mean": [127.5, 100.0, 3.25], "image_std": [127.5, 1.0, 33.3]},
    "no normalising": {"do_normalize": False, "rescale_factor": 0.00784313725490196},
    "neither": {"do_normalize": False, "do_rescale": False},
    "one mean": {"image_mean": 0.4, "image_std": 0.3, "rescale_factor": 1},
    "ImageNet's means": {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]},
}


def write(folder: Path, kind: str, **values: Any) -> Path:
    text = json.dumps({"image_processor_type": kind, **values})
    (folder / "preprocessor_config.json").write_text(text)
    return folder


def picture(size: tuple[int, int], mode: str = "RGB", seed: int = 0) -> Image.Image:
    random = np.random.default_rng(seed)
    wide, high = size
    if mode == "I;16":
        return Image.fromarray(random.integers(0, 65_536, (high, wide), dtype=np.uint16))
    if mode in ("I", "F"):
        return Image.fromarray((random.random((high, wide)) * 300).astype(np.int32 if mode == "I" else np.float32))
    smooth = Image.fromarray(random.integers(0, 256, (3, 4, 4), dtype=np.uint8)).resize((wide, high), 3)
    noisy = np.asarray(smooth).astype(int) + random.integers(-20, 21, (high, wide, 4))
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    if mode == "P with transparency":
        image = image.convert("RGB").quantize(16)
        image.info["transparency"] = 3
        return image
    return image.convert("RGB").quantize(16) if mode == "P" else image.convert(mode)


def by_transformers(folder: Path, image: Image.Image) -> np.ndarray:
    kind = json.loads((folder / "preprocessor_config.json").read_text())["image_processor_type"]
    made: np.ndarray = getattr(hf, f"{kind}Pil").from_pretrained(folder)(image, return_tensors="np").pixel_values[0]
    return made.astype(np.float32)


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixel_values_are_those_of_each_class(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    write(tmp_path, kind, **PROCESSORS[kind])
    image = picture(size)
    made = read_processor(tmp_path, "vit", 3)(image)
    assert made.dtype == np.float32
    assert np.array_equal(made, by_transformers(tmp_path, image))


@pytest.mark.parametrize("case", VALUES)
def test_pixel_values_are_those_of_each_value(case: str, tmp_path: Path) -> None:
    write(tmp_path, "ViTImageProcessor", **VALUES[case])
    process = read_processor(tmp_path, "vit", 3)
    for size in ((41, 29), (29, 41), (40, 40), (60, 300), (8, 90)):
        image = picture(size)
        assert np.array_equal(process(image), by_transformers(tmp_path, image)), size


@pytest.mark.parametrize("kind", ["CLIPImageProcessor", "BitImageProcessor", "SiglipImageProcessor"])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "P with transparency", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"]
)
def test_images_of_all_modes_become_rgb(kind: str, mode: str, tmp_path: Path) -> None:
    write(tmp_path, kind, size={"shortest_edge": 20}, crop_size=20)
    image = picture((37, 29), mode)
    assert np.array_equal(read_processor(tmp_path, "clip", 3)(image), by_transformers(tmp_path, image))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I", "F"])
def test_modes_that_transformers_refuses_where_nothing_is_converted_are_refused(mode: str, tmp_path: Path) -> None:
    write(tmp_path, "ViTImageProcessor", size=20)
    image = picture((37, 29), mode)
    with pytest.raises(ValueError, match=r"mean must have|converted to|Unable|Cannot handle|range"):
        by_transformers(tmp_path, image)
    with pytest.raises(InputError, match=f"image 3 has the mode {image.mode}, .*, and the model reads 3 of uint8"):
        read_processor(tmp_path, "vit", 3)(image, "image 3")


@pytest.mark.parametrize("mode", ["YCbCr", "HSV"])
def test_other_modes_of_three_channels_are_taken_as_they_are(mode: str, tmp_path: Path) -> None:
    write(tmp_path, "ViTImageProcessor", size=20)
    image = picture((37, 29), mode)
    assert np.array_equal(read_processor(tmp_path, "vit", 3)(image), by_transformers(tmp_path, image))


def test_a_model_of_greys_reads_greys(tmp_path: Path) -> None:
    write(tmp_path, "ViTImageProcessor", size=20, image_mean=[0.3], image_std=[0.2])
    image = picture((37, 29), "L")
    made = read_processor(tmp_path, "vit", 1)(image)
    assert made.shape == (1, 20, 20)
    assert np.array_equal(made, by_transformers(tmp_path, image))


@pytest.mark.parametrize(
    ("name", "model_type"),
    [
        ("CLIPFeatureExtractor", "vit"),
        ("CLIPImageProcessorFast", "vit"),
        ("CLIPImageProcessorPil", "vit"),
        (None, "clip"),
    ],
)
def test_the_class_is_known_by_all_its_names(name: str | None, model_type: str, tmp_path: Path) -> None:
    image = picture((300, 260), "RGBA")
    wanted = by_transformers(write(tmp_path, "CLIPImageProcessor"), image)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name, "size": None}))
    assert np.array_equal(read_processor(tmp_path, model_type, 3)(image), wanted)


def test_a_processor_config_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "ViTImageProcessor", size=20)
    own = {"image_processor_type": "ViTImageProcessor", "size": 12}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": own}))
    assert read_processor(tmp_path, "vit", 3)(picture((30, 30))).shape == (3, 12, 12)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_processor(tmp_path, "vit", 3)(picture((30, 30))).shape == (3, 20, 20)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": 3}))
    with pytest.raises(CheckpointError, match="image_processor is 3"):
        read_processor(tmp_path, "vit", 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"image_processor_type": "DonutImageProcessor"}, "names the image processor DonutImageProcessor"),
        ({"image_processor_type": "DINOv3ViTImageProcessorFast"}, "the image processor DINOv3ViTImageProcessorFast"),
        ({"do_pad": True}, "asks for do_pad"),
        ({"use_square_size": True}, "asks for use_square_size"),
        ({"size": {"longest_edge": 20}}, "resizes images by longest_edge"),
        ({"size": {"max_height": 20, "max_width": 20}}, "resizes images by max_height, max_width"),
        ({"size": {"min_pixels": 20, "max_pixels": 20}}, "resizes images by max_pixels, min_pixels"),
    ],
)
def test_what_is_not_done_here_is_named(values: dict[str, Any], words: str, tmp_path: Path) -> None:
    write(tmp_path, "ViTImageProcessor", **values)
    with pytest.raises(UnavailableError, match=words):
        read_processor(tmp_path, "vit", 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("image_processor_type", 7),
        ("image_processor_type", ["ViTImageProcessor"]),
        ("do_resize", "no"),
        ("do_resize", 1),
        ("do_normalize", []),
        ("do_convert_rgb", "yes"),
        ("default_to_square", 3),
        ("resample", 6),
        ("resample", -1),
        ("resample", True),
        ("resample", "bicubic"),
        ("resample", 2.0),
        ("size", 0),
        ("size", -224),
        ("size", 1_000_000),
        ("size", True),
        ("size", "224"),
        ("size", [224]),
        ("size", [224, 224, 3]),
        ("size", [224, 2.5]),
        ("size", {"height": 224}),
        ("size", {"height": 224, "width": 1 << 40}),
        ("size", {"shortest_edge": 1 << 20}),
        ("size", {"shortest_edge": "20"}),
        ("crop_size", 16_385),
        ("crop_size", {"shortest_edge": 20}),
        ("crop_size", {"height": 20, "width": False}),
        ("rescale_factor", "1/255"),
        ("rescale_factor", float("nan")),
        ("rescale_factor", 10**400),
        ("rescale_factor", [1.0, 2.0]),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, None]),
        ("image_mean", float("inf")),
        ("image_mean", {"r": 0.5}),
        ("image_std", 0),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", [0.5, -0.5, 0.5]),
        ("image_std", 1e-320),
    ],
)
def test_a_value_that_is_none_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    write(tmp_path, "ViTImageProcessor", **{"do_center_crop": True, "crop_size": 20, key: value})
    with pytest.raises((CheckpointError, UnavailableError), match=key):
        read_processor(tmp_path, "vit", 3)


def test_a_folder_without_a_processor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no image processor \(preprocessor_config\.json\)"):
        read_processor(tmp_path, "vit", 3)
    os.mkfifo(tmp_path / "preprocessor_config.json")
    with pytest.raises(CheckpointError):
        read_processor(tmp_path, "vit", 3)


def test_images_that_are_none_are_refused(tmp_path: Path) -> None:
    process = read_processor(write(tmp_path, "CLIPImageProcessor"), "clip", 3)
    for wrong in ("a.png", np.zeros((4, 4, 3), np.uint8), None):
        with pytest.raises(InputError, match=r"image 0 is a \w+, no image"):
            process(wrong, "image 0")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image 0 has no pixels"):
        process(Image.new("RGB", (0, 4)), "image 0")
    with pytest.raises(InputError, match="would be resized to 6,720,000 × 224"):
        process(Image.new("RGB", (60_000, 2)), "image 0")
    path = tmp_path / "cut.png"
    picture((64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    with Image.open(path) as cut, pytest.raises(InputError, match="image 0 can't be read"):
        process(cut, "image 0")
