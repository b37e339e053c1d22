"""Wheels of rerankers, classifiers and image encoders, and the server of a wheel."""

import importlib.util
import json
import signal
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from support.c_model import LIBRARY
from support.families import stages
from support.heads import save_headed
from support.wheels import MAIN, alone, site_of, wheel_of
from ternarize_cli.errors import UnavailableError
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


def test_an_image_encoder_needs_pillow_and_takes_files(tiny_vit: Path, tmp_path: Path) -> None:
    packed = stages(tiny_vit, tmp_path)[2]
    wheel = wheel_of(packed, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        about = archive.read("my_minilm-1.0.dist-info/METADATA").decode()
    assert "\nRequires-Dist: pillow>=" in about
    site = site_of(wheel, tmp_path / "site", "PIL", "pillow.libs")
    assert names_of(site) == ["Encoder", "encode_images"]
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    picture.save(tmp_path / "picture.png")
    made = alone(site, MAIN, str(tmp_path / "picture.png"))
    assert made.returncode == 0, made.stderr
    assert (np.float32(json.loads(made.stdout)["vector"]) == Encoder(packed).encode_images([picture])[0]).all()
    assert alone(site, MAIN, "--check").returncode == 0
    (tmp_path / "text.png").write_text("no image")
    assert "can't be read as an image" in alone(site, MAIN, str(tmp_path / "text.png")).stderr


SERVER = ("uvicorn", "click", "h11", "httptools", "orjson", "platformdirs", "PIL", "pillow.libs")


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
