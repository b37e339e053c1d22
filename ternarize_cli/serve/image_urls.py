"""Reads images that are given as data URLs, such as data:image/png;base64,iVBORw0…"""

import base64
import binascii
import io
import warnings

from ternarize_cli.serve.answers import Fault, Refusal

__all__ = ["DATA_URL", "image_bytes", "pixels"]

DATA_URL = "data:image/"
"""What the text of an image begins with."""
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def image_bytes(url: str) -> bytes:
    """Returns the encoded image of a data URL.

    Raises:
        Refusal: it is no data URL, or not in base64.
    """
    head, comma, content = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise Refusal(Fault.INVALID, "an image is given as data:image/TYPE;base64,…")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as e:
        raise Refusal(Fault.INVALID, f"an image is not base64: {e}") from e


def pixels(encoded: bytes, most: int) -> int:
    """Returns the number of pixels of an encoded image, without decoding it.

    Args:
        encoded: the bytes of the image's file.
        most: the most pixels that it may have.

    Raises:
        Refusal: it is no PNG, JPEG, WebP, GIF or BMP, or has more pixels.
    """
    from PIL import Image

    Image.init()
    known = [name for name in _FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded), formats=known) as image:
            wide, high = image.size
    except Image.DecompressionBombError as e:  # far more than any server takes
        raise Refusal(Fault.TOO_LARGE, f"an image has more than the {most:,} pixels that are read") from e
    except Exception as e:  # a damaged header can raise any error in a decoder
        raise Refusal(Fault.INVALID, "an image is no PNG, JPEG, WebP, GIF or BMP, or its header is damaged") from e
    if wide * high > most:
        raise Refusal(Fault.TOO_LARGE, f"an image has {wide:,} × {high:,} pixels, more than the {most:,} that are read")
    return int(wide * high)
