"""`ternarize bench --text`: texts from strings to vectors, by every candidate in the same way."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from ternarize_cli.bench.cells import point_title
from ternarize_cli.bench.end_to_end import count_tokens, mean_cosine
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.report import tables
from ternarize_cli.bench.report_files import csv_text
from ternarize_cli.bench.run import BenchReport, benchmark
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders.loading import load_encoder


@pytest.fixture(scope="module")
def packed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench-text")
    convert(tiny_bert, folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def report(packed: Path, corpus: Path) -> BenchReport:
    plan = BenchOptions(
        backends=("reference", "auto"), rivals=("torch-fp32", "torch-bf16"), batches=(64,), repeats=2, text=str(corpus)
    )
    return benchmark(str(packed), plan)


def test_all_texts_are_encoded_by_all(report: BenchReport) -> None:
    assert [row.name for row in report.rows] == ["reference", "auto", "torch-fp32", "torch-bf16"]
    assert {(row.encoded, row.batch, row.repeats) for row in report.rows} == {("300 texts of corpus.txt", 64, 2)}
    for row in report.rows:
        assert row.inputs_per_s == pytest.approx(300_000 / row.median_ms, rel=0.01)
        assert row.tokens_per_s <= row.padded_tokens_per_s
    assert report.memory == []


def test_vectors_are_those_of_the_model_at_full_width(report: BenchReport) -> None:
    packed, auto, exact, narrow = (row.cosine for row in report.rows)
    assert exact == 1.0
    assert min(packed, auto, narrow) > 0.995
    assert all(row.relative_l2 is None for row in report.rows)


@pytest.mark.slow
def test_the_cosine_is_to_the_teacher_if_there_is_one(packed: Path, tiny_bert: Path, corpus: Path) -> None:
    plan = BenchOptions(
        backends=("reference",), rivals=(), batches=(32,), repeats=1, text=str(corpus), teacher=str(tiny_bert)
    )
    (row,) = benchmark(str(packed), plan).rows
    assert row.cosine < 0.99  # it was converted without calibration
    assert row.ratio is None


@pytest.mark.slow
@pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))), reason="no extra `rivals`")
def test_another_runtime_stands_in_the_transformers_place(tiny_bert: Path, corpus: Path) -> None:
    plan = BenchOptions(backends=("reference",), rivals=("onnx-fp32",), batches=(32,), repeats=1, text=str(corpus))
    found = benchmark(str(tiny_bert), plan).rows
    assert [row.name for row in found] == ["reference", "onnx-fp32"]
    assert found[1].cosine > 0.99999


def test_tokens_are_counted_in_batches_by_length(tiny_bert: Path) -> None:
    encoder = load_encoder(tiny_bert, device="cpu")
    texts = ["cat", "cat dog cat", "cat dog", "dog"]
    assert count_tokens(encoder, texts, 2) == (7 + 8, 2 * 5 + 2 * 3)


def test_a_cosine_does_not_look_at_lengths() -> None:
    a = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert mean_cosine(a, 3 * a) == 1.0
    assert mean_cosine(a, np.array([[1.0, 0.0], [1.0, 0.0]])) == 0.5


def test_the_table_has_texts_per_second_and_cosine(report: BenchReport) -> None:
    encoding, *others = tables(report)
    assert encoding.columns == ["batch", "", "texts/s", "tokens/s", "seconds", "spread", "speed-up", "cosine"]
    assert encoding.title == "packed on cpu: 300 texts of corpus.txt, from strings to vectors"
    assert [line[0] for line in encoding.rows] == ["64", "", "", ""]
    assert encoding.rows[2][-1] == "1.0000"
    assert re.match(r"\d+ tokens a text on average, in batches by length \(\d+% padding\)", encoding.caption)
    assert len(others) == 1
    assert "300 texts of corpus.txt" in csv_text(report)
    assert point_title(vars(report.rows[0])) == "300 texts of corpus.txt, batches of 64"
    assert "1.00x" not in tables(replace(report, rows=[replace(row, ratio=None) for row in report.rows]))[0].rows[2]


@pytest.mark.slow
def test_the_command_encodes_in_batches_of_32(run: Callable[..., object], packed: Path, corpus: Path) -> None:
    options = ("--backend", "auto", "--against", "torch-fp32", "--repeats", 1, "--json")
    result = run("bench", packed, "--text", corpus, *options)
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [("auto", 32), ("torch-fp32", 32)]
    assert found["rows"][0]["ran"] != "auto"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokens", "8"), "--tokens is of forward passes"),
        (("--lengths", "x.txt"), "--lengths is of forward passes"),
        (("--text", "none.txt"), "none.txt can't be read: there is no such file"),
    ],
)
def test_what_does_not_go_with_texts_ends_with_2(
    run: Callable[..., object], packed: Path, corpus: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("bench", packed, "--text", corpus, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_model_of_images_encodes_no_texts(run: Callable[..., object], tiny_vit: Path, corpus: Path) -> None:
    result = run("bench", tiny_vit, "--text", corpus)
    assert result.exit_code == 2
    assert "--text is about texts" in result.stderr
