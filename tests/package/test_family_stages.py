"""Every family that runs fused goes through the stages of the command line, tiny and with random weights."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.families import IMAGE_FAMILIES, TEXT_FAMILIES, save_family, save_processor, save_text
from support.fused_families import MORE, needs_native
from support.images import make_labels, make_pixels, write_folder
from support.models import WORDS, add_dense, save_modules, save_tiny_clip
from support.task_files import write_pairs, write_retrieval

pytestmark = [needs_native, pytest.mark.slow]
Run = Callable[..., Any]
TEXT = {f[0].removesuffix("Model"): f for f in [*TEXT_FAMILIES, *MORE]}
IMAGES = {f[0].removesuffix("Model"): f for f in IMAGE_FAMILIES}
TEXT_NAMES = "MPNet DistilBert ModernBert NomicBert Gte EuroBert T5Encoder Qwen3 Llama Mistral".split()
IMAGE_NAMES = ["ViT", "DeiT", "Dinov2", "DINOv3ViT", "CLIPVision", "SiglipVision"]


def stages(run: Run, source: Path, data: Path, *tasks: object) -> dict[str, Any]:
    """Takes `source` through convert, distill, pack and eval in its folder; returns the report of eval."""
    folder = source.parent
    steps = [
        ("convert", source, "-o", folder / "ternary"),
        (
            *("distill", folder / "ternary", "--teacher", source, "--data", data, "-o", folder / "distilled"),
            *("--steps", 4, "--batch-size", 8),
        ),
        ("pack", folder / "distilled", "-o", folder / "packed"),
        ("eval", folder / "packed", "--against", source, *tasks, "--backend", "native"),
    ]
    reports = []
    for step in steps:
        result = run(*step, "--json")
        assert result.exit_code == 0, f"{step[0]}: {result.output}"
        assert "linears only" not in result.stderr
        reports.append(json.loads(result.stdout))
    _, distilled, packed, scores = reports
    assert distilled["steps"] == 4
    assert 0 < packed["bytes_packed"] < packed["bytes_source"]
    assert np.isfinite([score for task in scores["tasks"] for score in (task["teacher"], task["student"])]).all()
    described = json.loads((folder / "packed" / "config.json").read_text())["quantization_config"]
    assert described["block"]
    return scores


def vectors(run: Run, folder: Path, data: Path) -> np.ndarray:
    """Encodes with `native` and `reference`, which agree to a percent or two, and returns the vectors of `native`."""
    for backend in ("native", "reference"):
        output = folder / f"{backend}.npy"
        result = run("encode", folder / "packed", data, "--backend", backend, "-o", output, "--force")
        assert result.exit_code == 0, result.output
    native, reference = (np.load(folder / f"{backend}.npy") for backend in ("native", "reference"))
    cosines = (native * reference).sum(1) / np.linalg.norm(native, axis=1) / np.linalg.norm(reference, axis=1)
    assert np.median(cosines) > 0.998
    return native


@pytest.fixture(scope="module")
def text_tasks(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    folder = tmp_path_factory.mktemp("tasks")
    rows = [(f"{WORDS[i]} {WORDS[i + 20]}", f"{WORDS[i]} {WORDS[-i - 1]}", float(i % 5)) for i in range(20)]
    return ["--sts", write_pairs(folder / "pairs.csv", rows), "--retrieval", write_retrieval(folder / "search")]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pictures", make_pixels(40), make_labels(40))


@pytest.mark.parametrize("name", TEXT_NAMES)
def test_a_text_family(name: str, run: Run, corpus: Path, text_tasks: list[object], tmp_path: Path) -> None:
    source = save_text(TEXT[name], tmp_path / "source")
    save_modules(source, 32)
    scores = stages(run, source, corpus, *text_tasks)
    assert [task["name"] for task in scores["tasks"]] == ["pairs", "search"]
    assert vectors(run, tmp_path, corpus).shape == (300, 32)


def test_embedding_gemma_with_its_dense_heads_and_prompts(
    run: Run, corpus: Path, text_tasks: list[object], tmp_path: Path
) -> None:
    source = save_text(TEXT["Gemma3Text"], tmp_path / "source")
    save_modules(source, 32)
    plain = {"bias": False, "activation_function": None}
    add_dense(source, out_features=48, **plain)
    add_dense(source, in_features=48, out_features=32, **plain)
    prompts = {"query": "search the file ", "document": "a file of "}
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    stages(run, source, corpus, *text_tasks)
    made = json.loads((tmp_path / "packed" / "config_sentence_transformers.json").read_text())
    assert made["prompts"] == prompts
    assert "ternarize-cli" in made["requirements"]
    for part in ("2_Dense", "3_Dense"):
        assert json.loads((tmp_path / "packed" / part / "config.json").read_text())["quantization_config"]["codec"]
    assert vectors(run, tmp_path, corpus).shape == (300, 32)


@pytest.mark.parametrize("name", IMAGE_NAMES)
def test_an_image_family(name: str, run: Run, pictures: Path, tmp_path: Path) -> None:
    source = save_family(IMAGES[name], tmp_path / "source")
    save_processor(source)
    scores = stages(run, source, pictures, "--images", pictures, "--limit", 10)
    assert [task["name"] for task in scores["tasks"]] == ["pictures", "pictures-linear"]
    assert vectors(run, tmp_path, pictures).shape == (40, 32)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_a_model_of_texts_and_images(kind: str, run: Run, pictures: Path, corpus: Path, tmp_path: Path) -> None:
    source = save_tiny_clip(tmp_path / "source", kind)
    stages(run, source, pictures, "--images", pictures, "--limit", 10)
    for data in (pictures, corpus):
        vectors(run, tmp_path, data)
