"""Rivals made of a teacher: they give its vectors, within what their width allows, and say what is missing."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import quantize_embeddings

from support.models import WORDS, add_dense, save_tiny_bert
from ternarize_cli.compress.convert import convert
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.engines import baselines, exports, onnx, rivals
from ternarize_cli.engines.inputs import random_tokens
from ternarize_cli.errors import InputError, TernarizeError, UnavailableError
from ternarize_cli.evaluation.costs import latency
from ternarize_cli.measuring.timing import GridPoint

TEXTS = [" ".join(WORDS[i : i + 1 + i % 7]) for i in range(40)]
CALIBRATION = [" ".join(WORDS[i % 40 : i % 40 + 3 + i % 9]) for i in range(60)]


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_onnx = needs("onnx", "onnxscript", "onnxruntime")
needs_openvino = needs("onnx", "onnxscript", "openvino", "nncf")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TERNARIZE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT whose pooled embeddings go through a Dense module."""
    folder = save_tiny_bert(tmp_path_factory.mktemp("teacher") / "dense")
    add_dense(folder)
    return folder


@pytest.fixture(scope="module")
def teacher_vectors(tiny_bert: Path) -> np.ndarray:
    return load_encoder(tiny_bert, device="cpu").encode(TEXTS)


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of each row."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


# Other runtimes and widths.


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param("onnx-fp32", marks=needs_onnx), pytest.param("openvino-fp32", marks=needs_openvino)]
)
def test_fp32_of_another_runtime_gives_the_teachers_vectors(teacher: Path, name: str) -> None:
    made = rivals.make(name, teacher, threads=1)
    expected = load_encoder(teacher, device="cpu").encode(TEXTS)
    assert made.encoder.encode(TEXTS) == pytest.approx(expected, abs=1e-3)
    assert made.encoder.encode(TEXTS[3]) == pytest.approx(expected[3], abs=1e-3)
    assert made.weights_bytes > 0.8 * (teacher / "model.safetensors").stat().st_size
    assert made.vector_bytes == 4 * 16


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "runtime", "least"),
    [
        pytest.param("onnx-int8", "ONNX Runtime, dynamic int8", 0.999, marks=needs_onnx),
        pytest.param("openvino-int8", "calibrated on 60 texts", 0.98, marks=needs_openvino),
    ],
)
def test_int8_stays_close_to_the_teacher(
    teacher: Path, capfd: pytest.CaptureFixture[str], name: str, runtime: str, least: float
) -> None:
    made = rivals.make(name, teacher, threads=1, calibration=CALIBRATION)
    vectors, expected = made.encoder.encode(TEXTS), load_encoder(teacher, device="cpu").encode(TEXTS)
    assert cosine(vectors, expected).mean() > least
    assert not np.allclose(vectors, expected, atol=1e-5)
    assert runtime in made.note
    assert capfd.readouterr() == ("", "")


@needs_onnx
def test_an_export_is_made_once_and_kept(teacher: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exports.onnx_export(teacher)
    assert path.is_relative_to(cache / "rivals")
    assert not [p for p in (cache / "rivals").iterdir() if p.name.endswith(".partial")]
    monkeypatch.setattr(torch.onnx, "export", forbidden)
    assert exports.onnx_export(teacher) == path


@needs_onnx
def test_another_model_or_another_width_is_made_anew(
    teacher: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.int8_model(teacher)
    monkeypatch.setattr(exports, "onnx_export", lambda folder: pytest.fail("int8 is made of the export"))
    onnx.int8_model(teacher)
    with pytest.raises(pytest.fail.Exception, match="made of the export"):
        onnx.int8_model(tiny_bert)
    other_bits = 15 - onnx.weight_bits()
    monkeypatch.setattr(onnx, "weight_bits", lambda: other_bits)
    with pytest.raises(pytest.fail.Exception, match="made of the export"):
        onnx.int8_model(teacher)


@pytest.mark.slow
@needs_onnx
def test_a_roberta_counts_positions_from_the_mask_in_onnx_too(tmp_path: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    model = XLMRobertaModel(
        XLMRobertaConfig(vocab_size=60, max_position_embeddings=40, pad_token_id=1, initializer_range=0.3, **settings)
    ).eval()
    model.save_pretrained(tmp_path)
    run = baselines.require_baseline("onnx-fp32").build(tmp_path, "cpu")
    ids = torch.randint(5, 60, (3, 11))
    mask = torch.ones_like(ids)
    ids[2, 6:], mask[2, 6:] = 1, 0
    with torch.inference_mode():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert run(ids, mask)[mask > 0].numpy() == pytest.approx(expected[mask > 0].numpy(), abs=1e-4)


@needs_onnx
def test_a_model_that_cannot_be_exported_is_named(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise torch.onnx.OnnxExporterError("no translation for aten::warp")

    monkeypatch.setattr(torch.onnx, "export", fail)
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path))
    with pytest.raises(TernarizeError, match=r"can't be exported to ONNX: no translation for aten::warp"):
        rivals.make("onnx-fp32", tiny_bert)
    assert list((tmp_path / "rivals").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "width", "least"), [("torch-fp32", 4, 1.0), ("torch-bf16", 2, 0.999), ("torch-fp16", 2, 0.9999)]
)
def test_torch_in_half_the_width_takes_half_the_bytes(
    tiny_bert: Path, teacher_vectors: np.ndarray, name: str, width: int, least: float
) -> None:
    made = rivals.make(name, tiny_bert, device="cpu")
    vectors = made.encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert cosine(vectors, teacher_vectors).min() >= least - 1e-6
    assert made.weights_bytes == width * sum(p.numel() for p in made.encoder.parameters())


def test_an_image_encoder_runs_in_half_the_width_too(tiny_vit: Path) -> None:
    from PIL import Image

    images = [Image.new("RGB", (8, 8), (40 * i, 90, 255 - 40 * i)) for i in range(6)]
    expected = load_encoder(tiny_vit, device="cpu").encode(images)
    assert cosine(rivals.make("torch-bf16", tiny_vit, device="cpu").encoder.encode(images), expected).min() > 0.999
    short = rivals.make("truncate-16", tiny_vit, device="cpu").encoder.encode(images)
    assert cosine(short, expected[:, :16]).min() > 0.9999


# Vectors.


def test_int8_vectors_are_those_of_sentence_transformers(tiny_bert: Path, teacher_vectors: np.ndarray) -> None:
    made = rivals.make("vectors-int8", tiny_bert, device="cpu", calibration=CALIBRATION)
    calibration = load_encoder(tiny_bert, device="cpu").encode(CALIBRATION)
    codes = quantize_embeddings(teacher_vectors, "int8", calibration_embeddings=calibration).astype(np.float32)
    low, high = calibration.min(0), calibration.max(0)
    assert made.encoder.encode(TEXTS) == pytest.approx(low + (codes + 128.5) * (high - low) / 255, abs=1e-5)
    assert made.vector_bytes == 32


def test_binary_vectors_rank_as_hamming_distance_does(tiny_bert: Path, teacher_vectors: np.ndarray) -> None:
    made = rivals.make("vectors-binary", tiny_bert, device="cpu")
    signs = made.encoder.encode(TEXTS)
    bits = np.unpackbits(quantize_embeddings(teacher_vectors, "ubinary"), axis=1)
    distance = (bits[:, None] != bits[None]).sum(2)
    assert signs @ signs.T == pytest.approx(32 - 2 * distance)
    assert made.vector_bytes == 4
    assert made.weights_bytes == (tiny_bert / "model.safetensors").stat().st_size


def test_truncation_keeps_the_first_numbers_renormalised(tiny_bert: Path, teacher_vectors: np.ndarray) -> None:
    made = rivals.make("truncate-8", tiny_bert, device="cpu")
    expected = teacher_vectors[:, :8] / np.linalg.norm(teacher_vectors[:, :8], axis=1, keepdims=True)
    assert made.encoder.encode(TEXTS) == pytest.approx(expected, abs=1e-6)
    assert (made.encoder.get_embedding_dimension(), made.vector_bytes) == (8, 32)


def test_a_model_that_truncates_already_is_quantised_at_its_own_length(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path / "short")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 12}))
    made = rivals.make("vectors-int8", folder, device="cpu", calibration=CALIBRATION)
    encoder = SentenceTransformer(str(folder), device="cpu")
    assert made.encoder.encode(TEXTS).shape == encoder.encode(TEXTS).shape
    assert made.vector_bytes == encoder.get_embedding_dimension()


# What is refused.


@pytest.mark.parametrize(
    ("name", "near"), [("onnx-int9", "onnx-int8"), ("vector-int8", "vectors-int8"), ("truncate-0", "truncate-N")]
)
def test_an_unknown_rival_has_its_nearest_names(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"no rival '{name}'") as caught:
        rivals.require_rival(name)
    assert near in str(caught.value.hint)


def test_all_names_are_rivals_and_models_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(rivals.is_rival(name) for name in rivals.rival_names())
    assert rivals.is_rival("onnx-int9")
    assert not any(rivals.is_rival(m) for m in ("intfloat/e5-small", "package:x", "./onnx-int8", "bert-base-chinese"))
    (tmp_path / "onnx-int8").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not rivals.is_rival("onnx-int8")


@pytest.mark.parametrize("name", ["onnx-int8", "openvino-int8"])
def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UnavailableError, match=f"{name} needs onnx, onnxscript") as caught:
        rivals.require_rival(name)
    assert "ternarize-cli[rivals]" in str(caught.value.hint)


@pytest.mark.parametrize("name", rivals.CALIBRATED)
def test_ranges_are_not_found_without_texts(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(rivals, "require_rival", lambda name: None)
    with pytest.raises(InputError, match="needs calibration texts for its ranges, and there are none"):
        rivals.make(name, tiny_bert, calibration=[])


@needs_onnx
def test_what_can_not_be_a_teacher_is_refused(tiny_bert: Path, tiny_vit: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    with pytest.raises(InputError, match="made from a full-precision model"):
        rivals.make("torch-bf16", tmp_path / "latent")
    with pytest.raises(InputError, match="text encoders only"):
        rivals.make("onnx-fp32", tiny_vit)
    with pytest.raises(InputError, match="the vectors have 32 numbers"):
        rivals.make("truncate-32", tiny_bert)


def test_a_runtime_for_the_cpu_is_not_asked_for_a_gpu() -> None:
    with pytest.raises(UnavailableError, match="onnx-int8 runs on the CPU, not on cuda"):
        baselines.on_cpu("onnx-int8", "cuda")


# What decides a rival's vectors, and what it costs.


def test_a_fingerprint_changes_with_all_that_decides_the_vectors(tiny_bert: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_bert, other)
    same = rivals.fingerprint("vectors-int8", other, CALIBRATION)
    assert same == rivals.fingerprint("vectors-int8", tiny_bert, CALIBRATION)
    (other / "vocab.txt").write_text("changed")
    changed = [
        rivals.fingerprint("vectors-int8", other, CALIBRATION),
        rivals.fingerprint("vectors-int8", tiny_bert, CALIBRATION[:-1]),
        rivals.fingerprint("vectors-binary", tiny_bert, CALIBRATION),
    ]
    assert len({same, *changed}) == 4
    assert changed[2] == rivals.fingerprint("vectors-binary", tiny_bert)


def test_latency_is_of_the_same_batch_for_all(tiny_bert: Path) -> None:
    encoders = {name: load_encoder(tiny_bert, device="cpu") for name in ("a", "b")}
    seen: list[list[str]] = []
    for encoder in encoders.values():
        encoder.encode = lambda texts, **kwargs: seen.append(texts)
    found = latency(encoders, TEXTS, repeats=4)
    assert set(found) == {"a", "b"}
    assert all(value > 0 for value in found.values())
    assert len(seen) == 2 * (2 + 4)
    assert all(batch == TEXTS[::5] for batch in seen)


@pytest.mark.slow
@needs_onnx
def test_bench_compares_with_onnx(run: Callable[..., object], teacher: Path) -> None:
    arguments = ("--backend", "reference", "--batch", 1, "--tokens", 8, "--repeats", 2, "--warmup", 0, "--no-memory")
    result = run("bench", teacher, *arguments, "--against", "onnx-int8", "--json")
    assert result.exit_code == 0, result.stderr
    assert [row["name"] for row in json.loads(result.stdout)["rows"]] == ["reference", "onnx-int8"]


@pytest.mark.slow
@needs_openvino
def test_openvino_int8_of_bench_needs_no_texts(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openvino", "nncf"):  # which another test may have imported here
        monkeypatch.delitem(sys.modules, name, raising=False)
    run = baselines.require_baseline("openvino-int8").build(teacher, "cpu")
    ids, mask = random_tokens({"vocab_size": 40, "pad_token_id": 0}, GridPoint(2, 8), seed=0)
    assert run(ids, mask).shape == (2, 8, 32)
    assert not {"openvino", "nncf"} & sys.modules.keys()  # they run in processes of their own


def forbidden(*args: object, **kwargs: object) -> None:
    raise AssertionError("the model was exported again")
