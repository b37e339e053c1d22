"""Decodes an image to 8-bit RGB.

Images are turned upright (EXIF), and an animation gives its first frame. Greys of 9 to 16 bits are scaled to 8 bits by
the white that the format of the file gives, and 32-bit numbers and floats by what their values fit into (1, 255 or
65,535). An image of more than MAX_PIXELS, and formats that need another program to be read (PostScript), are refused.
"""

import math
import warnings
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ternarize_cli.errors import DataError, reason
from ternarize_cli.model_folder.integrity import note_once
from ternarize_cli.storage.bounds import require_regular

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["MAX_PIXELS", "decoded_rgb"]

MAX_PIXELS = 89_478_485
"""The most pixels of an image, above which Pillow warns by default."""
_MAX_ENCODED = 1 << 30
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
_TIFF_BITS, _TIFF_WHITE = 258, 341


def decoded_rgb(source: "Path | IO[bytes] | Image", name: str) -> "Image":
    """Decodes an image to the PIL mode RGB, whatever mode it has.

    Args:
        source: the file, an open stream of its bytes, or an image that is decoded already.
        name: the name of the image in messages.

    Raises:
        DataError: the source is no image of a known format, is damaged or too large, or has greys without a range.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        if isinstance(source, Path) and (size := require_regular(source, DataError).st_size) > _MAX_ENCODED:
            raise ValueError(f"it has {size:,} bytes, more than the {_MAX_ENCODED:,} that are read")
        with (
            warnings.catch_warnings(action="ignore"),  # about a palette's transparency, a size, a damaged EXIF block
            source if isinstance(source, Image.Image) else Image.open(source, formats=_formats()) as opened,
        ):
            wide, high = opened.size
            if wide * high > MAX_PIXELS:
                raise ValueError(f"its {wide:,} × {high:,} pixels are more than the {MAX_PIXELS:,} that are read")
            white = _white(opened)
            return _eight_bits(ImageOps.exif_transpose(opened), white, name).convert("RGB")
    except DataError:
        raise
    except Exception as e:  # a damaged file can raise any error in a decoder
        if isinstance(e, Image.DecompressionBombError):
            what = f"it has more than the {MAX_PIXELS:,} pixels that are read"
        else:
            what = "no image that Pillow knows" if isinstance(e, UnidentifiedImageError) else reason(e)
        raise DataError(f"{name} can't be read: {what}", hint="repair or remove the file") from e


def _eight_bits(image: "Image", white: float | None, name: str) -> "Image":
    """Scales greys of more than 8 bits to 8 bits; PIL would clip them at 255, and floats between 0 and 1 at 0.

    Args:
        image: the image.
        white: the value of white, as `_white` gives it.
        name: the name of the image in messages.

    Raises:
        ValueError: the values are not finite, below 0, or above 65,535.
    """
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image, dtype=np.float64)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)) or low < 0 or high > 65_535:
        raise ValueError(f"its greys go from {low:g} to {high:g}, and nothing says which are black and white")
    if white == 65_535 and 0 < high < 4096:
        note_once(
            f"{name} has 16 bits a pixel, but its values end at {high:,.0f}; white is taken to be 65,535, and so it is "
            "almost black. If its values have 12 bits, multiply them by 16, or save TIFF files with "
            "SMaxSampleValue 4095 (tag 341)",
            kind="dark images",
        )
    if white is None:
        white = 1 if high <= 1 and image.mode == "F" else 255 if high <= 255 else 65_535
    return Image.fromarray(np.round(values * (255 / white)).clip(0, 255).astype(np.uint8))


def _white(image: "Image") -> float | None:
    """Finds the value of white that the file of a grey image declares; None if its format does not say.

    That is the TIFF tag SMaxSampleValue, or else the highest number of as many bits as a TIFF, PNG or PGM file has a
    pixel, if these are 9 to 16. It does not depend on the picture: a dark one stays dark.
    """
    tags = getattr(image, "tag_v2", {})
    (declared, *_), (bits, *_) = (np.atleast_1d(tags.get(tag, 0)).tolist() for tag in (_TIFF_WHITE, _TIFF_BITS))
    if 0 < declared <= 65_535 and image.mode != "F":
        return float(declared)
    if 8 < bits <= 16:
        return float(2**bits - 1)
    return 65_535.0 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM") else None


@cache
def _formats() -> tuple[str, ...]:
    """Lists those of `_FORMATS` that the installed Pillow can read."""
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
