"""Wheels of rerankers, classifiers and image encoders, and the server of a wheel."""

import importlib.util
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.c_model import LIBRARY
from support.families import stages
from support.heads import save_headed
from support.models import save_tiny_clip
from support.wheels import MAIN, alone, site_of, wheel_of
from ternarize_cli.errors import DataError, InputError, UnavailableError
from ternarize_cli.runtime import Classifier, Encoder, Reranker

pytestmark = [pytest.mark.slow, pytest.mark.skipif(LIBRARY is None, reason="the compiled library is not built")]
TEXTS = ["the cat in a tree", "light and water"]


def names_of(site: Path) -> list[str]:
    found = alone(site, "import json, my_minilm; print(json.dumps(my_minilm.__all__))")
    assert found.returncode == 0, found.stderr
    made: list[str] = json.loads(found.stdout)
    return made


def test_a_reranker_scores_texts_with_a_query(tmp_path: Path) -> None:
    packed = stages(save_headed(tmp_path / "source"), tmp_path)[2]
    site = site_of(wheel_of(packed, tmp_path / "dist"), tmp_path / "site")
    wanted = Reranker(packed).score([("the cat", text) for text in TEXTS])
    assert names_of(site) == ["Reranker", "score"]
    made = alone(
        site, "from my_minilm import score; print(*score([('the cat', text) for text in sys.argv[1:]]))", *TEXTS
    )
    assert (np.array(made.stdout.split(), np.float32) == wanted).all(), made.stderr
    lines = alone(site, MAIN, "--query", "the cat", text="\n".join(TEXTS)).stdout.splitlines()
    assert [np.float32(json.loads(line)["score"]) for line in lines] == wanted.tolist()
    assert "--query TEXT" in alone(site, MAIN, *TEXTS).stderr
    assert alone(site, MAIN, "--check").returncode == 0


def test_a_classifier_scores_its_labels(tmp_path: Path) -> None:
    packed = stages(save_headed(tmp_path / "source", labels=3), tmp_path)[2]
    site = site_of(wheel_of(packed, tmp_path / "dist"), tmp_path / "site")
    wanted = Classifier(packed).classify(TEXTS)
    assert names_of(site) == ["Classifier", "classify"]
    rows = [json.loads(line)["scores"] for line in alone(site, MAIN, *TEXTS).stdout.splitlines()]
    assert list(rows[0]) == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert (np.array([list(row.values()) for row in rows], np.float32) == wanted).all()
    assert alone(site, MAIN, "--check").returncode == 0


@pytest.fixture(scope="module")
def vit(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A packed tiny ViT, and where its wheel lies."""
    folder = tmp_path_factory.mktemp("vit")
    packed = stages(tiny_vit, folder)[2]
    return packed, site_of(wheel_of(packed, folder / "dist"), folder / "site", "PIL", "pillow.libs")


def test_an_image_encoder_needs_pillow_and_takes_files(vit: tuple[Path, Path], tmp_path: Path) -> None:
    packed, site = vit
    about = (site / "my_minilm-1.0.dist-info" / "METADATA").read_text()
    assert "\nRequires-Dist: pillow>=" in about
    assert names_of(site) == ["Encoder", "encode_images"]
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    picture.save(tmp_path / "picture.png")
    made = alone(site, MAIN, str(tmp_path / "picture.png"))
    assert made.returncode == 0, made.stderr
    assert (np.float32(json.loads(made.stdout)["vector"]) == Encoder(packed).encode_images([picture])[0]).all()
    assert alone(site, MAIN, "--check").returncode == 0


def save_pictures(folder: Path) -> None:
    """Saves a PNG with transparency, one of 16 bits, and JPEGs that have to be turned, with values all over."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    pixels = rng.integers(0, 256, (20, 30, 4), dtype=np.uint8)
    pixels[:10, :, 3] = 0
    Image.fromarray(pixels).save(folder / "alpha.png")
    Image.fromarray(rng.integers(0, 65536, (20, 30)).astype(np.uint16)).save(folder / "grey.png")
    for orientation in (3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(pixels[..., :3])).save(folder / f"turned{orientation}.jpg", exif=exif)


def test_images_have_the_vectors_that_ternarize_encode_gives(
    run: Callable[..., Any], vit: tuple[Path, Path], tmp_path: Path
) -> None:
    packed, site = vit
    save_pictures(tmp_path / "pictures")
    report = run("encode", packed, tmp_path / "pictures")
    assert report.exit_code == 0, report.output
    wanted = {row["id"]: row["vector"] for row in map(json.loads, report.stdout.splitlines())}
    assert len(wanted) == 4
    made = alone(site, MAIN, text="".join(f"{tmp_path / 'pictures' / name}\n" for name in wanted))
    assert made.returncode == 0, made.stderr
    rows = [json.loads(line)["vector"] for line in made.stdout.splitlines()]
    assert (np.array(rows, np.float32) == np.array(list(wanted.values()), np.float32)).all()


def test_an_image_that_can_not_be_read_is_named(vit: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for name, why in (("text.png", "no image that Pillow knows"), ("none.png", "No such file or directory")):
        made = alone(vit[1], MAIN, str(tmp_path / name))
        assert made.returncode == DataError.exit_code
        assert made.stderr.startswith(f"error: {tmp_path / name} can't be read: {why}\n"), made.stderr


def test_an_image_that_would_become_too_large_is_named(tmp_path: Path) -> None:
    site = site_of(
        wheel_of(stages(save_tiny_clip(tmp_path / "source"), tmp_path)[2], tmp_path / "dist"),
        tmp_path / "site",
        *("PIL", "pillow.libs"),
    )
    Image.new("L", (1, 1_100_000)).save(tmp_path / "line.png")
    made = alone(site, MAIN, "--images", str(tmp_path / "line.png"))
    assert made.returncode == InputError.exit_code
    assert made.stderr.startswith(f"error: {tmp_path / 'line.png'}"), made.stderr


SERVER = ("uvicorn", "click", "h11", "httptools", "orjson", "PIL", "pillow.libs")


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in SERVER[:-1]), reason="the extra serve is not installed"
)
def test_the_server_answers_with_the_vectors_of_the_runtime(packed: Path, tmp_path: Path) -> None:
    site = site_of(wheel_of(packed, tmp_path / "dist"), tmp_path / "site", *SERVER)
    begin = f"import sys; sys.path.insert(0, {str(site)!r}); {MAIN}"
    command = [sys.executable, "-S", "-I", "-c", begin, "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd="/") as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().removeprefix("listening on ").strip()
            body = json.dumps({"model": "my_minilm", "input": TEXTS}).encode()
            asked = urllib.request.Request(f"{url}/v1/embeddings", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(asked, timeout=60) as answer:
                rows = json.loads(answer.read())["data"]
        finally:
            server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    assert (np.float32([row["embedding"] for row in rows]) == Encoder(packed).encode(TEXTS)).all()


def test_without_the_extra_the_server_says_what_is_missing(packed: Path, tmp_path: Path) -> None:
    site = site_of(wheel_of(packed, tmp_path / "dist"), tmp_path / "site")
    made = alone(site, MAIN, "--serve")
    assert made.returncode == UnavailableError.exit_code
    assert "which is not installed" in made.stderr
    assert "pip install 'my_minilm[serve]'" in made.stderr


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in SERVER[:-1]), reason="the extra serve is not installed"
)
@pytest.mark.parametrize(
    ("arguments", "environment"),
    [(("--port", "99999"), {}), (("--port", "0"), {"TERNARIZE_API_KEY": "two words"}), (("--host", "256.0.0.1"), {})],
    ids=["port", "key", "host"],
)
def test_what_the_server_can_not_use_is_told_in_a_line(
    arguments: tuple[str, ...], environment: dict[str, str], packed: Path, tmp_path: Path
) -> None:
    site = site_of(wheel_of(packed, tmp_path / "dist"), tmp_path / "site", *SERVER)
    made = alone(site, MAIN, "--serve", *arguments, environment=environment)
    assert (made.returncode, made.stdout) == (InputError.exit_code, "")
    said, hint = made.stderr.splitlines()
    assert said.startswith("error: ")
    assert hint.startswith("  try: ")
