"""The shapes that `bench` knows without a MODEL, the rivals made of them, and the check of what rivals compute."""

from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from ternarize_cli.bench.candidates import BACKEND, RIVAL, BenchCandidate, relative_l2
from ternarize_cli.bench.feeds import Feed
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.output_check import Loaded, compare_outputs
from ternarize_cli.bench.report import latency_table
from ternarize_cli.bench.run import benchmark
from ternarize_cli.bench.shapes import SHAPES, ModelShape, random_model
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.modalities import modalities_of
from ternarize_cli.engines import baselines, exports
from ternarize_cli.engines.exports import transformer
from ternarize_cli.engines.inputs import random_batch
from ternarize_cli.errors import TernarizeError
from ternarize_cli.measuring.timing import GridPoint

BERT = ModelShape("bert", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50})
MILLIONS = {
    "bert-base": 102.3, "minilm": 22.7, "distilbert-base": 66.4, "mpnet-base": 109.5, "modernbert-base": 149.0,
    "nomic-bert": 136.7, "eurobert-210m": 211.8, "t5-base": 109.6, "qwen3-0.6b": 595.8, "embeddinggemma-300m": 302.9,
    "vit-base": 86.4, "dinov2-base": 85.7, "dinov3-vit-base": 85.7, "clip-vit-b32": 87.5, "siglip-base": 92.9,
}  # fmt: skip
"""Parameters of the published models: without heads of their own (EmbeddingGemma's Dense modules), and of DINOv2 with
positions for images of 224 x 224."""
needs_rivals = pytest.mark.skipif(
    not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf"))), reason="no extra `rivals`"
)


def small(name: str) -> ModelShape:
    """A shape with few narrow layers, one of each kind of attention, and a small vocabulary."""
    shape = SHAPES[name]
    names = {
        "distilbert": ("dim", "hidden_dim", "n_layers", "n_heads"),
        "t5": ("d_model", "d_ff", "num_layers", "num_heads"),
    }
    width, inner, layers, heads = names.get(
        shape.model_type, ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    )
    count = 2 if shape.model_type in ("modernbert", "gemma3_text") else 1
    config = shape.config | {width: 32, inner: 48, layers: count, heads: 4}
    if shape.model_type == "gemma3_text":
        config |= {"layer_types": ["sliding_attention", "full_attention"]}
    if shape.model_type in ("qwen3", "gemma3_text"):
        config |= {"head_dim": 8, "num_key_value_heads": 2}
    if not name.startswith(("vit", "dino", "clip", "siglip")):
        config |= {"vocab_size": 90, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        config |= {"cls_token_id": 2, "sep_token_id": 1} if shape.model_type == "modernbert" else {}
    else:
        config |= {"image_size": 32, "patch_size": 8}
    return replace(shape, config=config)


def parameters(name: str) -> float:
    """Millions of parameters of a shape, built without memory."""
    from transformers import AutoConfig, AutoModel

    from ternarize_cli.encoders.encoder_alone import encoder_alone

    config = AutoConfig.for_model(SHAPES[name].model_type, **SHAPES[name].config)
    with torch.device("meta"):
        model = (encoder_alone(config) or AutoModel.from_config)(config)
    return sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_parameters_of_the_model_it_is_named_after(name: str) -> None:
    assert parameters(name) == pytest.approx(MILLIONS[name], abs=0.1)


@pytest.mark.slow
@needs_rivals
@pytest.mark.parametrize("name", SHAPES)
def test_runtimes_compute_what_the_shape_computes(name: str, tmp_path: Path) -> None:
    folder = random_model(tmp_path / "m", small(name), seed=0)
    run = {which: baselines.require_baseline(which).build(folder, "cpu") for which in ("torch-fp32", "onnx-fp32")}
    image = modalities_of(folder) == {"image"}
    for point in (GridPoint(1), GridPoint(3)) if image else (GridPoint(1, 16), GridPoint(8, 128)):
        batch = random_batch(folder, point, seed=0)
        with torch.inference_mode():
            assert relative_l2(run["onnx-fp32"](*batch), run["torch-fp32"](*batch)) < 1e-4


def test_of_an_encoder_decoder_only_the_encoder_is_written(tmp_path: Path) -> None:
    folder = random_model(tmp_path, small("t5-base"), seed=0)
    assert type(transformer(folder)).__name__ == "T5EncoderModel"
    assert checkpoint.read_config(folder)["vocab_size"] == 90


def test_an_unknown_shape_ends_with_2_and_lists_all(run: Callable[..., object]) -> None:
    result = run("bench", "--shape", "modernbert")
    assert result.exit_code == 2
    assert "there is no shape 'modernbert'" in result.stderr
    assert all(name in " ".join(result.stderr.split()) for name in SHAPES)


# What rivals compute.


@needs_rivals
def test_an_export_that_computes_something_else_is_not_kept(
    tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path))
    opened = exports.open_session

    class Larger:
        def __init__(self, path: Path) -> None:
            self._session = opened(path)

        def run(self, names: None, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [1.5 * y for y in self._session.run(names, fed)]

    monkeypatch.setattr(exports, "open_session", Larger)
    with pytest.raises(TernarizeError, match=r"computes something else than the model: at 1 x 16 .* off by 50\.0%"):
        exports.onnx_export(tiny_bert)
    assert list((tmp_path / "rivals").iterdir()) == []


def test_a_rival_that_fails_or_computes_something_else_is_left_out_and_a_backend_is_not() -> None:
    def fail(*batch: torch.Tensor) -> torch.Tensor:
        raise TernarizeError("no memory")

    exact = torch.arange(1.0, 25).reshape(2, 3, 4)
    outputs = {"native": 3 * exact, "torch-bf16": 1.01 * exact, "onnx-fp32": 1.5 * exact, "onnx-int2": 4 * exact}
    forwards = {name: (lambda *batch, y=y: y) for name, y in outputs.items()} | {"openvino-fp32": fail}
    candidates = [BenchCandidate(name, BACKEND if name == "native" else RIVAL, Path(), "cpu") for name in forwards]
    ran = {name: name for name in forwards}
    loaded = Loaded(candidates, forwards, ran, lambda *batch: 4 * exact, lambda *batch: exact, [])
    feed = Feed(((torch.ones(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.int64)),))
    compared = compare_outputs(feed, loaded, recording=False)
    assert [c.name for c in loaded.candidates] == ["native", "torch-bf16", "onnx-int2"]
    assert compared.distance["native"] == pytest.approx(0.25)  # to `reference`, as onnx-int2
    assert compared.distance["onnx-int2"] == 0.0
    assert compared.distance["torch-bf16"] == pytest.approx(0.01)
    assert loaded.notes == [
        "left out: onnx-fp32 computes something else than the model at 2 x 3: its outputs are off by 50%",
        "left out: openvino-fp32 fails at 2 x 3: no memory",
    ]


def test_a_rival_that_can_not_be_made_is_told_of_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, device: str) -> None:
        raise TernarizeError("no operator for this")

    broken = replace(baselines.require_baseline("torch-bf16"), load=fail)
    monkeypatch.setitem(baselines._RIVALS, "torch-bf16", broken)
    said: list[str] = []
    plan = BenchOptions(backends=("reference",), batches=(1,), tokens=(4,), repeats=1, warmup=0, memory=False)
    report = benchmark(None, plan, shape=BERT, say=said.append)
    assert [row.name for row in report.rows] == ["reference", "torch-fp32"]
    note = "left out: torch-bf16 can't be made of this model: no operator for this"
    assert note in said
    assert note in report.notes
    assert {form.name for form in report.storage} == {"torch-fp32", "torch-bf16", "packed"}
    assert "torch-bf16" not in latency_table(report).columns


@pytest.mark.slow
@needs_rivals
def test_2_bit_codes_in_onnx_runtime_are_compared_with_reference(tmp_path: Path) -> None:
    plan = BenchOptions(backends=("reference",), rivals=("onnx-int2",), batches=(2,), tokens=(8,), repeats=2, warmup=0)
    report = benchmark(None, plan, shape=BERT)
    assert [row.name for row in report.rows] == ["reference", "onnx-int2"]
    assert 0 < report.rows[1].relative_l2 < 0.1
    assert any("products of 2-bit weights in blocks of" in note for note in report.notes)
    assert next(form for form in report.storage if form.name == "onnx-int2").bytes > 0
    assert [entry.name for entry in report.memory] == ["reference", "onnx-int2"]


@pytest.mark.slow
@needs_rivals
def test_2_bit_codes_encode_texts(tiny_bert: Path, corpus: Path) -> None:
    plan = BenchOptions(backends=("reference",), rivals=("onnx-int2",), batches=(32,), repeats=1, text=str(corpus))
    reference, other = benchmark(str(tiny_bert), plan).rows
    assert other.cosine == pytest.approx(reference.cosine, abs=0.01)
