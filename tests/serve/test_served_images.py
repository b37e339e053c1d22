"""Images are given as data URLs, and get the vectors that the model gives them."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.conftest import Running, Start, save_packed, start_server
from support.models import save_tiny_clip
from ternarize_cli.runtime import Encoder


def picture(seed: int, size: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def data_url(image: Image.Image, kind: str = "png") -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


@pytest.fixture(scope="module")
def vit(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_packed(tiny_vit, tmp_path_factory.mktemp("images") / "vit")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    return save_packed(save_tiny_clip(folder / "source"), folder / "clip")


@pytest.fixture(scope="module")
def images(vit: Path, clip: Path) -> Iterator[Running]:
    """A server of a model of images, and one of images and texts."""
    running = start_server(vit, clip)
    yield running
    said = "vit: image encoder, 32 dimensions\nclip: image and text encoder, 16 dimensions\n"
    assert running.end() == (0, said)


def test_images_get_their_vectors_in_order(images: Running, vit: Path) -> None:
    pictures = [picture(i, 8 + 5 * (i % 3)) for i in range(7)]
    urls = [data_url(image) for image in pictures]
    made = images.post("/embed", {"inputs": urls, "normalize": False}).json()
    np.testing.assert_array_equal(
        np.array(made, dtype=np.float32), Encoder(vit).encode_images(pictures, normalize=False)
    )
    answer = images.post("/v1/embeddings", {"model": "vit", "input": urls[2]}).json()
    expected = Encoder(vit).encode_images(pictures[2:3], normalize=True)
    np.testing.assert_array_equal(np.array([answer["data"][0]["embedding"]], dtype=np.float32), expected)
    assert answer["usage"]["total_tokens"] == 0


def test_texts_and_images_mix_in_one_request(images: Running, clip: Path) -> None:
    encoder, image = Encoder(clip), picture(1)
    made = images.post("/embed", {"model": "clip", "inputs": ["the cat", data_url(image), "a dog"]}).json()
    texts, pictures = (
        encoder.encode(["the cat", "a dog"], normalize=True),
        encoder.encode_images([image], normalize=True),
    )
    expected = np.stack([texts[0], pictures[0], texts[1]])
    np.testing.assert_array_equal(np.array(made, dtype=np.float32), expected)
    short = images.post("/embed", {"model": "clip", "inputs": [data_url(image)], "dimensions": 3}).json()
    np.testing.assert_array_equal(
        np.array(short, dtype=np.float32), encoder.encode_images([image], normalize=True, dimensions=3)
    )


def test_a_model_of_texts_reads_a_data_url_as_a_text(server: Running, encoder: Encoder) -> None:
    url = data_url(picture(1))
    made = server.post("/embed", {"inputs": url}).json()
    np.testing.assert_array_equal(np.array(made, dtype=np.float32), encoder.encode([url]))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("data:image/png,abc", "data:image/TYPE;base64,…"),
        ("data:image/png;base64", "data:image/TYPE;base64,…"),
        ("data:image/png;base64,%%%%", "an image is not base64"),
        ("data:image/png;base64,", "no PNG, JPEG, WebP, GIF or BMP"),
        ("data:image/png;base64,aGVsbG8=", "no PNG, JPEG, WebP, GIF or BMP"),
        (data_url(picture(1))[:502], "an image can't be read"),
        ("https://example.org/cat.png", "the model reads images only"),
        ("the cat", "the model reads images only"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_no_image_is_refused(images: Running, url: str, message: str) -> None:
    answer = images.post("/embed", {"model": "vit", "inputs": [data_url(picture(2)), url]})
    assert answer.status_code == 422
    assert message in answer.json()["error"]


@pytest.mark.parametrize(("wide", "high"), [(4001, 4000), (9400, 9500), (20_000, 20_000)])
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(images: Running, wide: int, high: int) -> None:
    url = data_url(Image.new("1", (wide, high)))
    answer = images.post("/embed", {"model": "vit", "inputs": [data_url(picture(2)), url]})
    assert (answer.status_code, answer.json()["error_type"]) == (413, "Validation")
    assert "more than the 16,000,000" in answer.json()["error"]
    answer = images.post("/v1/embeddings", {"model": "vit", "input": url})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_the_most_pixels_are_an_option(vit: Path, start: Start) -> None:
    server = start(vit, "--max-pixels", 400)
    assert server.post("/embed", {"inputs": data_url(picture(1, 20))}).status_code == 200
    answer = server.post("/embed", {"inputs": data_url(picture(1, 21))})
    assert answer.status_code == 413
    assert answer.json()["error"] == "an image has 21 × 21 pixels, more than the 400 that are read"


def test_paths_for_texts_refuse_a_model_of_images(images: Running) -> None:
    for path in ("/embed_all", "/tokenize"):
        answer = images.post(path, {"model": "vit", "inputs": "a"})
        assert (answer.status_code, answer.json()["error"]) == (424, "the model vit reads no texts")
