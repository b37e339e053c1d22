"""`ternarize bench` on encoders of images: what they are fed, the rivals made of them, and what is shown."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ternarize_cli.bench.candidates import BACKEND, BenchCandidate, relative_l2
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.probe import probe
from ternarize_cli.bench.report import latency_table
from ternarize_cli.bench.run import BenchReport, benchmark
from ternarize_cli.bench.shapes import SHAPES, ModelShape
from ternarize_cli.bench.subject import prepare
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import baselines
from ternarize_cli.engines.inputs import image_shape, random_batch
from ternarize_cli.measuring.timing import GridPoint

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
IMAGES = TINY | {"image_size": 16, "patch_size": 4}


@pytest.fixture(scope="module")
def packed(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench-images")
    convert(tiny_vit, folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def report(packed: Path) -> BenchReport:
    plan = BenchOptions(
        backends=("reference", "auto"),
        rivals=("torch-fp32", "torch-bf16"),
        batches=(2, 1),
        repeats=2,
        warmup=0,
        memory=False,
    )
    return benchmark(str(packed), plan)


def test_images_have_the_size_that_the_image_processor_makes(tiny_vit: Path, tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "vit"
    shutil.copytree(tiny_vit, folder)
    config = json.loads((folder / "config.json").read_text()) | {"image_size": [20, 12]}
    (folder / "config.json").write_text(json.dumps(config))
    assert image_shape(folder) == (3, 8, 8)
    (folder / "preprocessor_config.json").unlink()
    assert image_shape(folder) == (3, 20, 12)
    assert image_shape(tiny_bert) is None


def test_images_are_random_and_of_the_seed(tiny_vit: Path) -> None:
    (pixels,) = random_batch(tiny_vit, GridPoint(5), seed=1)
    assert pixels.shape == (5, 3, 8, 8)
    assert torch.equal(pixels, random_batch(tiny_vit, GridPoint(5), seed=1)[0])
    assert not torch.equal(pixels, random_batch(tiny_vit, GridPoint(5), seed=2)[0])


def test_a_row_counts_images_and_their_tokens(report: BenchReport) -> None:
    assert [(row.batch, row.tokens, row.image, row.name) for row in report.rows] == [
        (batch, 5, "8x8", name)  # four patches and the CLS token
        for batch in (1, 2)
        for name in ("reference", "auto", "torch-fp32", "torch-bf16")
    ]
    for row in report.rows:
        assert row.inputs_per_s == pytest.approx(1000 * row.batch / row.median_ms, rel=0.1)
        assert row.tokens_per_s == pytest.approx(5 * row.inputs_per_s, rel=0.1)
        assert row.relative_l2 < 0.05


def test_the_table_says_images(report: BenchReport) -> None:
    table = latency_table(report)
    assert (table.columns[0], table.columns[-2]) == ("batch x image", "images/s")
    assert [line[0] for line in table.rows] == ["1 x 8x8", "2 x 8x8"]
    assert table.caption.endswith("An image of 8x8 pixels is 5 tokens.")


def test_the_twin_of_packed_images_keeps_the_image_processor(packed: Path) -> None:
    with prepare(str(packed)) as subject:
        assert subject.image == (3, 8, 8) == image_shape(subject.dense)
        assert checkpoint.stage(subject.dense) is None
        batch = random_batch(packed, GridPoint(2), seed=0)
        with torch.inference_mode():
            hidden = baselines.require_baseline("torch-fp32").build(subject.dense, "cpu")(*batch)
            assert relative_l2(hidden, BenchCandidate("reference", BACKEND, packed, "cpu").load()[0](*batch)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "most"), [("onnx-fp32", 1e-5), ("onnx-int8", 0.1), ("openvino-fp32", 1e-5), ("openvino-int8", 0.2)]
)
def test_other_runtimes_run_any_number_of_images(tiny_vit: Path, name: str, most: float) -> None:
    if not all(find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime", "openvino", "nncf")):
        pytest.skip("the extra `rivals` is not installed")
    rival, eager = (baselines.require_baseline(which).build(tiny_vit, "cpu") for which in (name, "torch-fp32"))
    with torch.inference_mode():
        for count in (1, 3):
            batch = random_batch(tiny_vit, GridPoint(count), seed=0)
            assert relative_l2(rival(*batch), eager(*batch)) < most


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_image_encoder_gives_what_eager_torch_gives(tiny_vit: Path) -> None:
    compiled, eager = (
        baselines.require_baseline(name).build(tiny_vit, "cpu") for name in ("torch-compiled", "torch-fp32")
    )
    batch = random_batch(tiny_vit, GridPoint(3), seed=0)
    with torch.inference_mode():
        assert relative_l2(compiled(*batch), eager(*batch)) < 1e-5


@pytest.mark.slow
def test_memory_is_measured_with_images(packed: Path) -> None:
    assert probe(BenchCandidate("reference", BACKEND, packed, "cpu"), GridPoint(2), threads=1, seed=0).model_bytes > 0


@pytest.mark.slow
@pytest.mark.parametrize("shape", [ModelShape("vit", IMAGES), ModelShape("dinov2", IMAGES)])
def test_without_a_model_a_shape_of_images_is_measured(shape: ModelShape) -> None:
    said: list[str] = []
    plan = BenchOptions(backends=("auto",), rivals=(), batches=(1,), repeats=1, warmup=0, memory=False)
    found = benchmark(None, plan, shape=shape, say=said.append)
    assert [(row.image, row.tokens) for row in found.rows] == [("16x16", 17)]
    assert any("with random weights" in text for text in said)


def test_the_shapes_are_those_of_the_models_they_are_named_after() -> None:
    from transformers import AutoConfig

    for name, patch in (("vit-base", 16), ("dinov2-base", 14)):
        config = AutoConfig.for_model(SHAPES[name].model_type, **SHAPES[name].config)
        assert (config.hidden_size, config.num_hidden_layers, config.image_size) == (768, 12, 224)
        assert config.patch_size == patch


@pytest.mark.slow
def test_the_command_takes_a_model_of_images(run: Callable[..., object], packed: Path, tiny_vit: Path) -> None:
    quick = ("--backend", "auto", "--batch", 1, "--repeats", 1, "--warmup", 0, "--no-memory")
    result = run("bench", packed, "--teacher", tiny_vit, "--against", "torch-fp32", *quick)
    assert result.exit_code == 0, result.stderr
    assert "images/s" in result.stdout
    assert f"the rivals run {tiny_vit}" in result.stderr
