"""Turns images into pixel values: resizes, crops, rescales and normalises them.

    PIL image ──convert──▶ 8-bit channels ──resize──▶ ──crop──▶ ──rescale, normalise──▶ float32 [channels, high, wide]

`image_processor_file` reads what a model's folder says about it. The result is that of transformers' image processors
for PIL, bit for bit: Pillow resizes, and the rest is arithmetic in the order of transformers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ternarize_cli.errors import InputError, reason

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["LARGEST_SIDE", "ImageProcessor", "Size"]

LARGEST_SIDE = 16_384
"""The most pixels of a side that a folder may ask for."""
_LARGEST_IMAGE = 1 << 26
"""The most pixels of an image that is resized to."""


@dataclass(frozen=True)
class Size:
    """What images are resized to: a height and a width, or the length of the shorter side.

    Attributes:
        height, width: both sides; None if the proportions of an image are kept.
        shorter: the length of the shorter side.
        longest: the most pixels of the longer side, for which the shorter side may become shorter; None: any number.
    """

    height: int | None = None
    width: int | None = None
    shorter: int = 0
    longest: int | None = None

    def of(self, high: int, wide: int) -> tuple[int, int]:
        """Returns the height and width that an image of a size is resized to."""
        if self.height is not None and self.width is not None:
            return self.height, self.width
        low, great = min(high, wide), max(high, wide)
        shorter, exact = self.shorter, float(self.shorter)
        if self.longest is not None and great / low * shorter > self.longest:
            exact = self.longest * float(low) / great
            shorter = round(exact)
        if self.longest is not None and shorter == low:
            return high, wide
        longer = int(exact * great / low)
        return (longer, shorter) if wide <= high else (shorter, longer)


@dataclass(frozen=True)
class ImageProcessor:
    """Turns images into pixel values.

    Attributes:
        channels: the number of channels that the model reads.
        convert_rgb: whether images are converted to RGB; what is transparent becomes white.
        size: what images are resized to; None for no resizing.
        resample: the filter, by Pillow's number.
        crop: height and width of the middle that is cut out, with black around images that are smaller; None: all.
        values: float32 `[channels, 256]`, the pixel value for each 8-bit value of a channel.
    """

    channels: int
    convert_rgb: bool
    size: Size | None
    resample: int
    crop: tuple[int, int] | None
    values: np.ndarray

    def __call__(self, image: "Image", name: str = "the image") -> np.ndarray:
        """Computes the pixel values of an image: float32 `[channels, height, width]`.

        Args:
            image: the image, upright; its EXIF orientation is not followed.
            name: the name of the image in messages.

        Raises:
            InputError: it is no image of PIL, can't be read, has other channels than the model reads, or would become
                too large.
        """
        pixels = self._channels(image, name)
        if self.size is not None:
            pixels = self._resized(pixels, self.size, name)
        if self.crop is not None:
            pixels = _middle(pixels, *self.crop)
        made = np.empty((self.channels, *pixels.shape[:2]), dtype=np.float32)
        for channel, values in enumerate(self.values):
            made[channel] = values[pixels[:, :, channel]]
        return made

    def _channels(self, image: "Image", name: str) -> np.ndarray:
        """Returns an image's channels: uint8 `[height, width, channels]`."""
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise InputError(
                f"{name} is a {type(image).__name__}, no image", hint="pass images of PIL: Image.open(path)"
            )
        try:
            pixels = np.asarray(_rgb(image) if self.convert_rgb else image)
        except Exception as e:  # a damaged file can raise any error in a decoder, which reads it only now
            raise InputError(f"{name} can't be read: {reason(e)}", hint="repair or remove it") from e
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if not pixels.size:
            raise InputError(f"{name} has no pixels", hint="remove it")
        if pixels.dtype != np.uint8 or pixels.shape[2] != self.channels:
            has = f"{pixels.shape[2]} channels of {pixels.dtype}"
            raise InputError(
                f"{name} has the mode {image.mode}, {has}, and the model reads {self.channels} of uint8",
                hint=f"image.convert({'RGB' if self.channels == 3 else 'L'!r})",
            )
        return pixels

    def _resized(self, pixels: np.ndarray, size: Size, name: str) -> np.ndarray:
        from PIL import Image

        high, wide = pixels.shape[:2]
        height, width = size.of(high, wide)
        if not 0 < height * width <= _LARGEST_IMAGE:
            raise InputError(
                f"{name} is {wide:,} × {high:,} pixels, and would be resized to {width:,} × {height:,}",
                hint="crop it first",
            )
        picture = Image.fromarray(pixels[:, :, 0] if self.channels == 1 else pixels)
        made = np.asarray(picture.resize((width, height), resample=self.resample))
        return made[:, :, None] if made.ndim == 2 else made


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _middle(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cuts the middle out of an image `[high, wide, channels]`, or puts it in the middle of black."""
    high, wide, channels = pixels.shape
    top, left = (high - height) // 2, (wide - width) // 2
    if top >= 0 and left >= 0 and top + height <= high and left + width <= wide:
        return pixels[top : top + height, left : left + width]
    around = np.zeros((max(height, high), max(width, wide), channels), dtype=pixels.dtype)
    above, before = -(-(len(around) - high) // 2), -(-(around.shape[1] - wide) // 2)
    around[above : above + high, before : before + wide] = pixels
    top, left = top + above, left + before
    return around[max(0, top) : min(len(around), top + height), max(0, left) : min(around.shape[1], left + width)]
