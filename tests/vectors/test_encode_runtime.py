"""`encode` and `index` run packed models without PyTorch, and give the vectors that they give in PyTorch."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.families import stages
from support.fused_families import needs_native
from support.images import make_pixels, write_folder
from support.models import save_tiny_bert
from ternarize_cli.vectors.encode import open_model
from ternarize_cli.vectors.options import EncoderOptions
from ternarize_cli.vectors.runtime_encoder import RuntimeEncoder, RuntimeImageEncoder

pytestmark = needs_native
Run = Callable[..., Any]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model that reads texts, with prompts."""
    folder = tmp_path_factory.mktemp("reader")
    source = save_tiny_bert(folder / "source")
    path = source / "config_sentence_transformers.json"
    values = json.loads(path.read_text()) if path.exists() else {}
    prompts = {"query": "a cat: ", "document": "the dog: "}
    path.write_text(json.dumps({**values, "prompts": prompts, "default_prompt_name": None}))
    return stages(source, folder)[2]


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory, tiny_vit: Path) -> Path:
    """A packed model that reads images."""
    return stages(tiny_vit, tmp_path_factory.mktemp("viewer"))[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(folder, make_pixels(40), None)
    return folder


def both(run: Run, monkeypatch: pytest.MonkeyPatch, folder: Path, *command: object) -> list[np.ndarray]:
    """The vectors of a command without PyTorch, and in it."""
    made = []
    for where in ("", "torch"):
        monkeypatch.setenv("TERNARIZE_RUNTIME", where)
        path = folder / f"{where or 'runtime'}.npy"
        result = run("encode", *command, "-o", path)
        assert result.exit_code == 0, result.stderr
        made.append(np.load(path))
    return made


@pytest.mark.parametrize("options", [(), ("--normalize",), ("--no-normalize",), ("--prompt-name", "query")], ids=str)
def test_texts_have_the_vectors_of_pytorch(
    options: tuple[str, ...], run: Run, reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "texts.txt").write_text("the cat\na dog by the river\nfire\n" * 20)
    light, torch = both(run, monkeypatch, tmp_path, reader, tmp_path / "texts.txt", *options)
    assert np.array_equal(light, torch)


@pytest.mark.parametrize("options", [(), ("--normalize",), ("--batch-size", "7")], ids=str)
def test_images_have_the_vectors_of_pytorch(
    options: tuple[str, ...], run: Run, viewer: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    light, torch = both(run, monkeypatch, tmp_path, viewer, pictures, *options)
    assert light.shape == (40, 32)
    assert np.array_equal(light, torch)


@pytest.mark.parametrize("backend", ["auto", "native", "reference"])
def test_models_run_without_pytorch_unless_another_backend_is_asked_for(
    backend: str, reader: Path, viewer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, is_light = EncoderOptions(backend=backend, device="cpu"), backend != "reference"
    assert isinstance(open_model(reader, "text", options).encode, RuntimeEncoder) == is_light
    assert isinstance(open_model(viewer, "image", options).encode, RuntimeImageEncoder) == is_light
    monkeypatch.setenv("TERNARIZE_RUNTIME", "torch")
    assert not isinstance(open_model(viewer, "image", options).encode, RuntimeImageEncoder)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["texts", "images", "an index"])
def test_commands_run_where_pytorch_can_not_be_imported(
    what: str, run: Run, reader: Path, viewer: Path, pictures: Path, tmp_path: Path
) -> None:
    blocked = "import sys; sys.modules['torch'] = sys.modules['transformers'] = None; "
    start = [sys.executable, "-c", f"{blocked}from ternarize_cli.__main__ import main; main()"]
    (tmp_path / "texts.txt").write_text("the cat\na dog\n")
    lines = {
        "texts": [["encode", reader, tmp_path / "texts.txt", "-o", tmp_path / "v.npy"]],
        "images": [["encode", viewer, pictures, "-o", tmp_path / "v.npy"]],
        "an index": [
            ["index", "build", tmp_path / "texts.txt", "--model", reader, "-o", tmp_path / "ix"],
            ["index", "search", tmp_path / "ix", "a cat"],
        ],
    }
    for line in lines[what]:
        done = subprocess.run([*start, *map(str, line)], capture_output=True, text=True, env=os.environ, timeout=60)
        assert done.returncode == 0, done.stderr
