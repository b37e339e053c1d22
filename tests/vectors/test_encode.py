"""`ternarize encode`: the same vectors by every way in and out."""

import json
import os
import shutil
from io import BytesIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from support.images import make_labels, make_pixels, write_folder
from support.models import WORDS
from support.warm import shared
from ternarize_cli.data.images import read_labelled
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import InputError
from ternarize_cli.vectors.session import encode

TEXTS = ["the cat", "a big red dog by the river", "water", "open the file and read a row"]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS))
    return path


@pytest.fixture(scope="session")
def expected(tiny_bert):
    return SentenceTransformer(str(tiny_bert), device="cpu").encode(TEXTS)


def test_npy_holds_what_sentence_transformers_computes(run, tiny_bert, source, tmp_path, expected):
    result = run("encode", tiny_bert, source, "-o", tmp_path / "v.npy", "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["count"], summary["dim"], summary["tokens"], summary["truncated"]) == (4, 32, 25, 0)
    vectors = np.load(tmp_path / "v.npy")
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_stdin_to_stdout_is_jsonl(run, tiny_bert, expected):
    result = run("encode", tiny_bert, input="\n".join(TEXTS))
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["id"] for row in rows] == ["1", "2", "3", "4"]
    np.testing.assert_allclose([row["vector"] for row in rows], expected, atol=1e-6)


def test_parquet_keeps_ids_and_vectors(run, tiny_bert, tmp_path, expected):
    source = tmp_path / "texts.jsonl"
    source.write_text("\n".join(json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(TEXTS)))
    assert run("encode", tiny_bert, source, "-o", tmp_path / "v.parquet").exit_code == 0
    table = pq.read_table(tmp_path / "v.parquet")
    assert table["id"].to_pylist() == ["d0", "d1", "d2", "d3"]
    np.testing.assert_allclose(table["vector"].to_pylist(), expected, atol=1e-6)


def test_format_overrides_the_suffix_and_npy_goes_through_a_pipe(run, tiny_bert, source, tmp_path, expected):
    assert run("encode", tiny_bert, source, "-o", tmp_path / "v.dat", "--format", "npy").exit_code == 0
    result = run("encode", tiny_bert, source, "--format", "npy")
    assert result.stdout_bytes == (tmp_path / "v.dat").read_bytes()
    np.testing.assert_allclose(np.load(BytesIO(result.stdout_bytes)), expected, atol=1e-6)


def test_order_is_kept_across_chunks(run, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setattr("ternarize_cli.vectors.text_batches.CHUNK", 3)
    texts = [" ".join(WORDS[: 1 + (i * 7) % 20]) for i in range(10)]
    result = run("encode", tiny_bert, "-o", tmp_path / "v.npy", input="\n".join(texts))
    assert result.exit_code == 0
    whole = SentenceTransformer(str(tiny_bert), device="cpu").encode(texts)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), whole, atol=1e-6)


def test_no_normalize_gives_the_pooled_vectors(run, tiny_bert, source, tmp_path, expected):
    assert run("encode", tiny_bert, source, "-o", tmp_path / "v.npy", "--no-normalize").exit_code == 0
    vectors = np.load(tmp_path / "v.npy")
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(vectors / lengths, expected, atol=1e-6)


def test_a_text_of_100_000_words_is_cut_and_that_is_said_once(run, tiny_bert, tmp_path, capfd):
    source = tmp_path / "long.txt"
    source.write_text("\n".join(["cat " * 100_000, "short", "dog " * 200, "dog " * 62]))
    result = run("encode", tiny_bert, source, "-o", tmp_path / "v.npy", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["truncated"] == 2  # the last one fits exactly
    assert result.stderr.count("longer than") == 1
    assert "2 of 4 texts are longer than the 64 tokens this model reads" in result.stderr
    assert "longer than" not in capfd.readouterr().err  # nor by transformers, past our stderr
    assert np.load(tmp_path / "v.npy").shape == (4, 32)


def test_a_prompt_is_named_or_refused(run, tiny_bert, source, tmp_path):
    assert run("encode", tiny_bert, source, "-o", tmp_path / "v.npy", "--prompt-name", "query").exit_code == 0
    result = run("encode", tiny_bert, source, "-o", tmp_path / "w.npy", "--prompt-name", "poem")
    assert result.exit_code == 2
    assert "no prompt named 'poem'" in result.stderr
    assert "query" in result.stderr


@pytest.fixture
def pictures(tmp_path):
    """Six labelled images in a train and a test part."""
    for part, count in (("train", 4), ("test", 2)):
        write_folder(tmp_path / "pictures" / part, make_pixels(count), make_labels(count))
    return tmp_path / "pictures"


def test_images_of_every_part_are_encoded_in_order(run, tiny_vit, pictures, tmp_path):
    result = run("encode", tiny_vit, pictures, "-o", tmp_path / "v.npy", "--batch-size", 4, "--json")
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["count"], summary["dim"]) == (6, 32)
    assert "CLS token" in result.stderr
    images = [image for part in ("train", "test") for image in read_labelled(pictures, part)]
    whole = load_encoder(tiny_vit, device="cpu").encode(images)
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), whole, atol=1e-6)
    rows = [json.loads(line) for line in run("encode", tiny_vit, pictures, "--normalize").stdout.splitlines()]
    assert [row["id"] for row in rows][:3] == ["train/0/000.png", "train/0/002.png", "train/1/001.png"]
    lengths = np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose([row["vector"] for row in rows], whole / lengths, atol=1e-6)


def test_text_and_images_are_not_mixed_up(run, tiny_bert, tiny_vit, source, pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for model, given, message in (
        (tiny_vit, source, "tiny-vit reads images, not text"),
        (tiny_bert, pictures, "tiny-bert reads text, not images"),
        (tiny_bert, tmp_path / "empty", "holds neither texts nor images"),
    ):
        result = run("encode", model, given)
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("encode", tiny_vit, pictures, "--prompt-name", "query")
    assert result.exit_code == 2
    assert "--prompt-name is for text" in result.stderr


def test_an_image_that_does_not_decode_leaves_no_output(run, tiny_vit, pictures, tmp_path):
    (pictures / "test" / "0" / "000.png").write_text("no image")
    result = run("encode", tiny_vit, pictures, "-o", tmp_path / "v.npy")
    assert result.exit_code == 2
    assert "000.png can't be read: no image that Pillow knows" in result.stderr
    assert not (tmp_path / "v.npy").exists()


def test_a_model_without_a_tokenizer_is_refused_by_name(run, tmp_path, source):
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    result = run("encode", folder, source)
    assert result.exit_code == 2
    assert "has no tokenizer, so it can't read text" in result.stderr


def test_a_tokenizer_in_another_folder_is_none(run, tmp_path, tiny_bert, source):
    folder = shutil.copytree(tiny_bert, tmp_path / "bert")
    (folder / "old").mkdir()
    for path in folder.glob("tokenizer*"):
        path.rename(folder / "old" / path.name)
    result = run("encode", folder, source)
    assert result.exit_code == 2
    assert "has no tokenizer, so it can't read text" in result.stderr


def test_pickled_weights_are_read_only_when_asked_for(run, tiny_vit, pictures, tmp_path):
    folder = tmp_path / "vit"
    shutil.copytree(tiny_vit, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    result = run("encode", folder, pictures, "-o", tmp_path / "v.npy")
    assert result.exit_code == 2
    assert "--allow-pickle" in result.stderr
    assert run("encode", folder, pictures, "-o", tmp_path / "v.npy", "--allow-pickle").exit_code == 0
    assert run("encode", tiny_vit, pictures, "-o", tmp_path / "w.npy").exit_code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "v.npy"), np.load(tmp_path / "w.npy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "v.npy"], "exists already"),
        (["-o", "v.xyz"], "no suffix that names a vector format"),
        (["-o", "w.npy", "--format", "csv"], "no vector format 'csv'"),
        (["--json"], "mix the summary"),
        (["--format", "parquet"], "parquet can't go to this stdout"),
    ],
)
def test_an_unusable_output_is_refused_before_the_work(
    run, tiny_bert, source, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "v.npy").write_text("mine")
    result = run("encode", tiny_bert, source, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert (tmp_path / "v.npy").read_text() == "mine"


def test_force_replaces_the_output(run, tiny_bert, source, tmp_path):
    (tmp_path / "v.npy").write_text("old")
    assert run("encode", tiny_bert, source, "-o", tmp_path / "v.npy", "--force").exit_code == 0
    assert np.load(tmp_path / "v.npy").shape == (4, 32)


def test_force_replaces_nothing_that_is_read(run, tiny_bert, source, tmp_path):
    model = tmp_path / "m"
    shutil.copytree(tiny_bert, model)
    for output, name in ((source, source), (model / "model.safetensors", model), (model / "tokenizer.json", model)):
        before = output.read_bytes()
        result = run("encode", model, source, "-o", output, "--format", "jsonl", "--force")
        assert result.exit_code == 2
        assert f"the output {output} and the input {name} overlap" in " ".join(result.stderr.split())
        assert output.read_bytes() == before
        with pytest.raises(InputError, match="overlap"):
            encode(str(model), str(source), output, "jsonl", force=True)
        assert output.read_bytes() == before
    for _ in range(2):  # vectors are no input of a model, and may lie beside it
        assert run("encode", model, source, "-o", model / "v.npy", "--force").exit_code == 0


def test_force_replaces_no_image_of_the_folder(run, tiny_vit, pictures, tmp_path):
    image = sorted(path for path in pictures.rglob("*") if path.is_file())[0]
    before = image.read_bytes()
    result = run("encode", tiny_vit, pictures, "-o", image, "--format", "npy", "--force")
    assert (result.exit_code, image.read_bytes()) == (2, before)
    assert "overlap" in result.stderr


def test_a_bad_line_leaves_no_output(run, tiny_bert, tmp_path):
    source = tmp_path / "bad.jsonl"
    source.write_text('{"text": "cat"}\n{"text": 5}\n')
    result = run("encode", tiny_bert, source, "-o", tmp_path / "v.npy")
    assert result.exit_code == 2
    assert "bad.jsonl line 2" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.slow
def test_a_closed_pipe_ends_without_a_traceback(tiny_bert):
    environment = {**os.environ, "TERNARIZE_DEBUG": "0"}
    with shared().start("encode", tiny_bert, "-", "--quiet", env=environment) as process:
        process.stdin.write("the cat\n" * 1100)
        process.stdin.close()
        first = json.loads(process.stdout.readline())
        process.stdout.close()
        complaints = process.stderr.read()
        assert process.wait() == 0
    assert first["id"] == "1"
    assert complaints == ""
