"""An image of any PIL mode gives the picture that it shows, or is refused in words."""

import struct
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


def test_white_is_what_a_tiff_file_declares(tmp_path: Path) -> None:
    values = np.round(GREYS / 255 * 4095).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tiff", tiffinfo={341: 4095})
    assert abs(np.asarray(read_images(tmp_path)[0]).astype(float) - GREYS[..., None]).max() <= 1


def test_a_tiff_file_of_12_bits_keeps_its_greys(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(_tiff_of_12_bits([0, 1606, 3212, 4095]))
    assert np.asarray(read_images(tmp_path)[0])[..., 0].tolist() == [[0, 100, 200, 255]]


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_values_of_8_or_12_bits_in_16_are_dark_with_one_warning_a_run(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ternarize_cli.model_folder.integrity._noted", set())
    for name, highest in (("a", 4095), ("b", 255)):
        Image.fromarray((GREYS / 255 * highest).astype(np.uint16)).save(tmp_path / f"{name}.{ending}")
    Image.fromarray(np.zeros((2, 2), np.uint16)).save(tmp_path / f"c.{ending}")
    assert [np.asarray(image).max() for image in read_images(tmp_path)] == [16, 1, 0]
    (record,) = caplog.records
    assert "a." in record.getMessage()
    assert "its values end at 4,095; white is taken to be 65,535" in record.getMessage()


def _tiff_of_12_bits(row: list[int]) -> bytes:
    """A TIFF file of one row with an even number of pixels."""
    bits = "".join(f"{value:012b}" for value in row)
    data = int(bits, 2).to_bytes(len(bits) // 8)
    tags = {256: len(row), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    begin = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return begin + data + struct.pack("<H", len(tags)) + entries + bytes(4)
