"""The real all-MiniLM-L6-v2, as the demo extra carries it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from ternarize_cli import kernels
from ternarize_cli.convert import convert
from ternarize_cli.models import load_encoder
from ternarize_cli.pack import pack

pytestmark = pytest.mark.real

SENTENCES = [
    "Return a string of the hexadecimal digits of an object's memory address.",
    "The cat sat on the mat, looked around, and fell asleep in the afternoon sun.",
    "How do I reset the password of my account?",
    "Ternary weights take two bits each; four of them fit into a byte.",
    "Großbritannien und Frankreich liegen am Ärmelkanal.",
    "x",
    "In 1905 Einstein published four papers that changed physics. " * 12,
]


@pytest.fixture(scope="module")
def folders(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("minilm")
    convert(minilm, folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder


def test_packed_minilm_is_at_most_15_5_megabytes(minilm: Path, folders: Path) -> None:
    assert (minilm / "model.safetensors").stat().st_size > 90e6
    assert (folders / "packed" / "model.safetensors").stat().st_size <= 15.5e6


def test_packed_and_unpacked_student_agree_on_real_sentences(folders: Path) -> None:
    student = load_encoder(folders / "latent").encode(SENTENCES)
    packed = load_encoder(folders / "packed", backend="reference").encode(SENTENCES)
    assert abs(student - packed).max() <= 1e-4


def test_every_cpu_backend_is_within_two_percent_of_reference(folders: Path) -> None:
    expected = load_encoder(folders / "packed", backend="reference").encode(SENTENCES)
    for backend in kernels.describe():
        if backend.available and backend.device == "cpu":
            got = load_encoder(folders / "packed", backend=backend.name).encode(SENTENCES)
            relative = np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)
            assert relative.max() <= 2e-2, backend.name


def test_two_packs_are_byte_identical(folders: Path, tmp_path: Path) -> None:
    pack(folders / "latent", tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (folders / "packed" / "model.safetensors").read_bytes()


def test_optimal_is_closer_to_the_teacher_than_the_papers_rule(
    minilm: Path, folders: Path, tmp_path: Path, run: Callable[..., Any]
) -> None:
    result = run("convert", minilm, "-o", tmp_path / "paper", "--rule", "absmean", "--granularity", "tensor", "--json")
    assert result.exit_code == 0
    paper_error = [layer["error"] for layer in json.loads(result.stdout)["layers"]]
    teacher, ours, paper = (load_encoder(f).encode(SENTENCES) for f in (minilm, folders / "latent", tmp_path / "paper"))
    assert (teacher * ours).sum(axis=1).mean() > (teacher * paper).sum(axis=1).mean() + 0.05
    assert max(paper_error) < 1


def test_sentence_transformer_opens_the_packed_model(minilm: Path, folders: Path) -> None:
    packed = SentenceTransformer(str(folders / "packed"), device="cpu")
    assert packed.get_embedding_dimension() == 384
    assert packed.max_seq_length == SentenceTransformer(str(minilm), device="cpu").max_seq_length
    vectors = packed.encode(["a cat sleeps", "a kitten is asleep", "stock prices fell"])
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
