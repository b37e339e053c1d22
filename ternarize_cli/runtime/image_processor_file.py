"""Reads the image processor of a model's folder: preprocessor_config.json, or processor_config.json.

The file names a class of transformers, and the values that differ from that class's own. The class is taken that needs
only Pillow (`ViTImageProcessorPil` for `ViTImageProcessor`). With torchvision installed, transformers itself takes
another, whose resizing differs in some pixels by 1 of 255.

A class that is not known here, and a value that asks for something that is not done here, is refused by name. A value
of the wrong type, or a size that would fill the memory, is refused as damage. What the class does not read is not read
here, either.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.errors import CheckpointError, UnavailableError, named, shown
from ternarize_cli.runtime.image_processing import LARGEST_SIDE, ImageProcessor, Size
from ternarize_cli.runtime.packed_file import IN_TORCH
from ternarize_cli.storage.bounds import read_object

__all__ = ["read_processor"]

_FILTERS = range(6)
"""Pillow's numbers of its filters."""
_GREATEST = 1e30
"""The greatest number by which pixels are scaled or moved; float32 holds it."""
_HALF, _CLIP = ([0.5] * 3, [0.5] * 3), ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_SQUARE = {"height": 224, "width": 224}
_STEPS = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}


def _defaults(
    resample: int, size: Mapping[str, int], mean_and_std: tuple[list[float], list[float]], **more: Any
) -> Any:
    mean, std = mean_and_std
    return {**_STEPS, "resample": resample, "size": size, "image_mean": mean, "image_std": std, **more}


_TO_CROP = {"do_center_crop": True, "crop_size": _SQUARE, "do_convert_rgb": True, "default_to_square": False}
_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "ViTImageProcessor": _defaults(2, _SQUARE, _HALF),
    "DeiTImageProcessor": _defaults(3, {"height": 256, "width": 256}, _HALF, do_center_crop=True, crop_size=_SQUARE),
    "BeitImageProcessor": _defaults(3, _SQUARE, _HALF, crop_size=_SQUARE),
    "CLIPImageProcessor": _defaults(3, {"shortest_edge": 224}, _CLIP, **_TO_CROP),
    "BitImageProcessor": _defaults(3, {"shortest_edge": 224}, _CLIP, **_TO_CROP),
    "SiglipImageProcessor": _defaults(3, _SQUARE, _HALF, do_convert_rgb=True, default_to_square=False),
}
"""transformers' classes of image processors, and the values that they have where a folder names none."""
_CLASS_OF = {
    "vit": "ViTImageProcessor",
    "deit": "DeiTImageProcessor",
    "beit": "BeitImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "clip": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
}
"""The class for a `model_type`, for folders that name none."""


def read_processor(folder: Path, model_type: str, channels: int) -> ImageProcessor:
    """Reads the image processor of a model's folder.

    Args:
        folder: the model's folder.
        model_type: what config.json says that the model is.
        channels: the number of channels that the model reads.

    Raises:
        CheckpointError: the folder has no image processor, or a value is none.
        UnavailableError: the class is not known here, or a value asks for something that is not done here.
    """
    path, given = _given(folder)
    name = given.get("image_processor_type") or given.get("feature_extractor_type") or _CLASS_OF.get(model_type)
    if not isinstance(name, str):
        raise CheckpointError(f"{path}: image_processor_type is {shown(name)}", hint="fetch the file again")
    kind = name.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _CLASSES:
        raise UnavailableError(f"{path} names the image processor {named(name)}", hint=IN_TORCH)
    values = _Values(path, {**_CLASSES[kind], **{key: v for key, v in given.items() if v is not None}})
    for key in ("do_pad", "use_square_size"):
        if values.flag(key):
            raise UnavailableError(f"{path} asks for {key}", hint=IN_TORCH)
    return ImageProcessor(
        channels=channels,
        convert_rgb=values.flag("do_convert_rgb"),
        size=values.size() if values.flag("do_resize") else None,
        resample=values.filter(),
        crop=values.sides("crop_size", square=True) if values.flag("do_center_crop") else None,
        values=_pixel_values(values, channels),
    )


class _Values:
    """The values of an image processor, checked as they are read."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path, self._values = path, values

    def wrong(self, key: str) -> CheckpointError:
        """Makes the error for a value that is none."""
        return CheckpointError(f"{self.path}: {key} is {shown(self._values.get(key))}", hint="fetch the file again")

    def flag(self, key: str) -> bool:
        """Returns a flag, which is false if it is missing."""
        value = self._values.get(key, False)
        if not isinstance(value, bool):
            raise self.wrong(key)
        return value

    def filter(self) -> int:
        """Returns the number of the filter."""
        value = self._values.get("resample")
        if type(value) is not int or value not in _FILTERS:
            raise self.wrong("resample")
        return value

    def numbers(self, key: str, count: int) -> np.ndarray:
        """Returns so many numbers, float64 `[count]`; one number in the file stands for all of them."""
        value = self._values.get(key)
        listed: list[Any] = value if isinstance(value, list) else [value] * count
        if len(listed) != count or not all(type(n) in (int, float) and abs(n) <= _GREATEST for n in listed):
            raise self.wrong(key)
        return np.array(listed, dtype=np.float64)

    def size(self) -> Size:
        """Returns what images are resized to."""
        value, square = self._values.get("size"), self._values.get("default_to_square", True)
        if not isinstance(square, bool):
            raise self.wrong("default_to_square")
        if type(value) is int and not square:
            value = {"shortest_edge": value}
        given = {key: side for key, side in value.items() if side is not None} if isinstance(value, dict) else {}
        if not given or given.keys() == {"height", "width"}:
            return Size(*self.sides("size", square=square))
        if not given.keys() <= {"shortest_edge", "longest_edge"} or "shortest_edge" not in given:
            what = ", ".join(sorted(named(key) for key in given))
            raise UnavailableError(f"{self.path} resizes images by {what}", hint=IN_TORCH)
        if not all(_is_side(side) for side in given.values()):
            raise self.wrong("size")
        return Size(shorter=given["shortest_edge"], longest=given.get("longest_edge"))

    def sides(self, key: str, *, square: bool) -> tuple[int, int]:
        """Returns a height and a width; `square` says whether a single number may stand for both."""
        value = self._values.get(key)
        if isinstance(value, dict):
            value = [value.get("height"), value.get("width")]
        elif square and type(value) is int:
            value = [value, value]
        if not isinstance(value, list) or len(value) != 2 or not all(map(_is_side, value)):
            raise self.wrong(key)
        return value[0], value[1]


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_SIDE


def _given(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Reads the values that a folder has for its image processor, and says in which file."""
    path = folder / "processor_config.json"
    if path.is_file():
        values = read_object(path).get("image_processor")
        if isinstance(values, dict):
            return path, values
        if values is not None:
            raise CheckpointError(f"{path}: image_processor is {shown(values)}", hint="fetch the file again")
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise CheckpointError(
            f"{folder} has no image processor ({path.name})",
            hint="copy the file over from the model's source: it says how images are resized and normalised",
        )
    return path, read_object(path)


def _pixel_values(values: _Values, channels: int) -> np.ndarray:
    """Computes the pixel value for each 8-bit value of a channel: float32 `[channels, 256]`.

    transformers rescales in float64, rounds to float32, and normalises in float32.
    """
    made = np.tile(np.arange(256, dtype=np.float32), (channels, 1))
    if values.flag("do_rescale"):
        made = (made.astype(np.float64) * values.numbers("rescale_factor", 1)).astype(np.float32)
    if values.flag("do_normalize"):
        mean, std = (values.numbers(key, channels).astype(np.float32)[:, None] for key in ("image_mean", "image_std"))
        if not (std > 0).all():
            raise values.wrong("image_std")
        with np.errstate(over="ignore"):
            made = (made - mean) / std
    if not np.isfinite(made).all():
        raise values.wrong("image_std")
    return made
