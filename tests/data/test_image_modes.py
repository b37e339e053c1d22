"""An image of any PIL mode gives the picture that it shows, or is refused in words."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ternarize_cli.data.images import read_images
from ternarize_cli.errors import DataError

GREYS = np.linspace(0, 255, 256).reshape(16, 16)
FORMATS = {"L": "png", "1": "png", "P": "png", "LA": "png", "RGB": "png", "RGBA": "png", "CMYK": "tiff"}
FORMATS |= {"YCbCr": "tiff"}


def _read(image: Image.Image, folder: Path, ending: str) -> np.ndarray:
    image.save(folder / f"a.{ending}")
    return np.asarray(read_images(folder)[0]).astype(float)


@pytest.mark.parametrize("mode", FORMATS)
def test_an_image_keeps_its_greys_in_every_mode(mode: str, tmp_path: Path) -> None:
    greys = GREYS if mode != "1" else (GREYS > 127) * 255
    image = Image.fromarray(greys.astype(np.uint8))
    image = image.convert("L").convert("P") if mode == "P" else image.convert("RGB").convert(mode)
    read = _read(image, tmp_path, FORMATS[mode])
    assert read.shape == (16, 16, 3)
    assert abs(read - greys[..., None]).max() <= (1 if mode != "CMYK" else 2)


DEPTHS = [(np.uint16, 65_535), (np.int32, 255), (np.int32, 65_535)]
DEPTHS += [(np.float32, 1), (np.float32, 255), (np.float32, 65_535)]


@pytest.mark.parametrize(("dtype", "highest"), DEPTHS)
def test_greys_of_more_than_8_bits_are_scaled(dtype: type, highest: float, tmp_path: Path) -> None:
    values = (GREYS / 255 * highest).astype(dtype)
    read = _read(Image.fromarray(values), tmp_path, "tiff")
    assert abs(read - GREYS[..., None]).max() <= 1.5


@pytest.mark.parametrize("value", [-3.0, float("nan"), 1e6])
def test_floats_that_are_no_greys_are_refused(value: float, tmp_path: Path) -> None:
    values = GREYS.astype(np.float32)
    values[3, 3] = value
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match="greys go from"):
        read_images(tmp_path)[0]
