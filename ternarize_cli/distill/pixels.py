"""Images as bytes until they are on the device.

An image processor resizes and crops bytes, and then makes floats of them, (byte · rescale_factor - mean) / std. On a
CPU that takes longer than all the rest, and makes four times as much to copy from process to process and to a GPU. So
the processor is asked to leave it out, and the device multiplies and adds. It is the same up to the rounding of floats;
where a processor gives anything else, tried on two images of noise, its floats are used as they are.
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
    """What makes features of images for an encoder, on the CPU.

    Its pixel_values are uint8 `[images, 3, height, width]`, beside what `finished` needs to make floats of them; or
    they are what the encoder's own `preprocess` gives.
    """
    factors = _factors(encoder[0].processor)
    if factors is None:
        return encoder.preprocess

    def prepare(images: "Sequence[Image]") -> dict[str, Any]:
        return {**encoder.preprocess(images, processing_kwargs=_LEFT_OUT), **factors}

    return prepare if _same(prepare, encoder.preprocess) else encoder.preprocess


def finished(features: dict[str, Any]) -> dict[str, Any]:
    """Features that an encoder takes, with pixel_values as floats, on the device that they are on."""
    if _SCALE not in features:
        return features
    scale, shift = features[_SCALE], features[_SHIFT]
    rest = {name: value for name, value in features.items() if name not in (_SCALE, _SHIFT)}
    return {**rest, _PIXELS: features[_PIXELS] * scale + shift}


def _factors(processor: Any) -> dict[str, Tensor] | None:
    """By channel, float32 `[1, channels, 1, 1]`; None for a processor that does not both rescale and normalise."""
    processor = getattr(processor, "image_processor", processor)
    if not (getattr(processor, "do_rescale", False) and getattr(processor, "do_normalize", False)):
        return None
    mean, std = (torch.tensor(values, dtype=torch.float64) for values in (processor.image_mean, processor.image_std))
    by_channel = {_SCALE: processor.rescale_factor / std, _SHIFT: -mean / std}
    return {name: values.float().reshape(1, -1, 1, 1) for name, values in by_channel.items()}


def _same(prepare: Callable[..., dict[str, Any]], preprocess: Callable[..., dict[str, Any]]) -> bool:
    from PIL import Image

    rng = np.random.default_rng(0)
    sizes = (40, 56, 3), (72, 31, 3)  # of two shapes: one may be padded
    noise = [Image.fromarray(rng.integers(256, size=size, dtype=np.uint8)) for size in sizes]
    try:
        made, wanted = prepare(noise), preprocess(noise)
    except (ValueError, RuntimeError):  # it does not resize, and stacks images of one size only
        return False
    raw, pixels = made[_PIXELS], wanted[_PIXELS]
    if not isinstance(raw, Tensor) or raw.dtype != torch.uint8 or raw.dim() != 4 or raw.shape != pixels.shape:
        return False
    return bool(torch.allclose(finished(made)[_PIXELS], pixels, rtol=0, atol=_ROUNDING))
