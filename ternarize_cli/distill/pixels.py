"""Keeps images as bytes until they are on the device.

An image processor resizes and crops bytes, and then converts them to floats, (byte · rescale_factor - mean) / std. On a
CPU this conversion takes longer than all the rest, and makes the data to copy between processes and to a GPU four times
as large. So the processor leaves it out, and the device multiplies and adds. Results agree up to the rounding of
floats. If a test on two images of noise shows another result, the processor's own floats are used.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image
    from sentence_transformers import SentenceTransformer

__all__ = ["finished", "preparation"]

_PIXELS, _SCALE, _SHIFT = "pixel_values", "pixel_scale", "pixel_shift"
_LEFT_OUT = {"image": {"do_rescale": False, "do_normalize": False}}
_ROUNDING = 1e-5


def preparation(encoder: "SentenceTransformer") -> "Callable[[Sequence[Image]], dict[str, Any]]":
    """Makes the function that turns images into features of an encoder, on the CPU.

    Its pixel_values are uint8 `[images, 3, height, width]`, with the factors that `finished` needs to convert them to
    floats; or they are those of the encoder's own `preprocess`.
    """
    factors = _factors(encoder[0].processor)
    if factors is None:
        return encoder.preprocess

    def prepare(images: "Sequence[Image]") -> dict[str, Any]:
        return {**encoder.preprocess(images, processing_kwargs=_LEFT_OUT), **factors}

    return prepare if _same(prepare, encoder.preprocess) else encoder.preprocess


def finished(features: dict[str, Any]) -> dict[str, Any]:
    """Converts pixel_values to the floats that an encoder takes, on the device of the features."""
    if _SCALE not in features:
        return features
    scale, shift = features[_SCALE], features[_SHIFT]
    rest = {name: value for name, value in features.items() if name not in (_SCALE, _SHIFT)}
    return {**rest, _PIXELS: features[_PIXELS] * scale + shift}


def _factors(processor: Any) -> dict[str, Tensor] | None:
    """Factors for each channel, float32 `[1, channels, 1, 1]`; None if a processor does not rescale and normalise."""
    processor = getattr(processor, "image_processor", processor)
    if not (getattr(processor, "do_rescale", False) and getattr(processor, "do_normalize", False)):
        return None
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (processor.image_mean, processor.image_std))
    by_channel = {_SCALE: processor.rescale_factor / std, _SHIFT: -mean / std}
    return {name: values.float().reshape(1, -1, 1, 1) for name, values in by_channel.items()}


def _same(prepare: Callable[..., dict[str, Any]], preprocess: Callable[..., dict[str, Any]]) -> bool:
    from PIL import Image

    rng = np.random.default_rng(0)
    sizes = (40, 56, 3), (72, 31, 3)  # two shapes, because one may need padding
    noise = [Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)) for size in sizes]
    try:
        made, wanted = prepare(noise), preprocess(noise)
    except (ValueError, RuntimeError):  # a processor that does not resize can't stack images of two sizes
        return False
    raw, pixels = made[_PIXELS], wanted[_PIXELS]
    if not isinstance(raw, Tensor) or raw.dtype != torch.uint8 or raw.dim() != 4 or raw.shape != pixels.shape:
        return False
    return bool(torch.allclose(finished(made)[_PIXELS], pixels, rtol=0, atol=_ROUNDING))
