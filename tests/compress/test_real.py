"""The real all-MiniLM-L6-v2, as the demo extra carries it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from ternarize_cli import kernels
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders.loading import load_encoder

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


@pytest.mark.slow
def test_packed_and_unpacked_student_agree_on_real_sentences(folders: Path) -> None:
    student = load_encoder(folders / "latent").encode(SENTENCES)
    packed = load_encoder(folders / "packed", backend="reference").encode(SENTENCES)
    assert abs(student - packed).max() <= 1e-4


def distances(got: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.linalg.norm(got - expected, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.mark.slow
def test_onednn_equals_reference_and_native_is_as_near_as_last_bits_allow(folders: Path) -> None:
    reference = load_encoder(folders / "packed", backend="reference")
    expected = reference.encode(SENTENCES)
    available = {info.name for info in kernels.describe() if info.available}
    if "onednn" in available:
        assert (load_encoder(folders / "packed", backend="onednn").encode(SENTENCES) == expected).all()
    if "native" not in available:
        return
    native = distances(load_encoder(folders / "packed", backend="native").encode(SENTENCES), expected)
    # int8 rounding makes percents of a millionth: how far is the reference from itself with such noise?
    generator = torch.Generator().manual_seed(0)
    for module in reference.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_hook(lambda m, i, y: y * (1 + 1e-6 * torch.randn(y.shape, generator=generator)))
    noise = distances(reference.encode(SENTENCES), expected)
    assert np.median(native) < 2 * np.median(noise)
    assert native.max() < 2 * noise.max()


@pytest.mark.slow
def test_two_packs_are_byte_identical(folders: Path, tmp_path: Path) -> None:
    pack(folders / "latent", tmp_path / "again")
    again = (tmp_path / "again" / "model.safetensors").read_bytes()
    assert again == (folders / "packed" / "model.safetensors").read_bytes()


@pytest.mark.slow
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
