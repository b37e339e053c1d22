"""`TextEncoder` gives what `SentenceTransformer.encode` gives, for tokenizers and texts out of the ordinary."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from support.models import WORDS, save_gpt2
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.encoder import LocalEncoder
from ternarize_cli.vectors.text_encoder import TextEncoder


def with_settings(folder: Path, source: Path, **settings: str) -> Path:
    """Copies a model and changes settings of its tokenizer."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("truncation_side", ["left", "right"])
def test_the_side_that_the_tokenizer_truncates_is_cut(tiny_bert, tmp_path, truncation_side, padding_side):
    folder = with_settings(tmp_path / "m", tiny_bert, truncation_side=truncation_side, padding_side=padding_side)
    rng = random.Random(0)
    for words in (100, 3000):  # the latter is cut before it is tokenised, too
        texts = [" ".join(rng.choices(WORDS, k=words))]
        vectors = TextEncoder(load_encoder(folder, device="cpu"))(texts)
        np.testing.assert_allclose(vectors, SentenceTransformer(str(folder), device="cpu").encode(texts), atol=1e-6)


def test_a_prompt_is_cut_off_where_sentence_transformers_cuts_it_off(tiny_bert, tmp_path):
    folder = with_settings(tmp_path / "m", tiny_bert, truncation_side="left")
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "big red "}}')
    text = " ".join(random.Random(1).choices(WORDS, k=3000))
    encode = TextEncoder(load_encoder(folder, device="cpu"), role="query")
    expected = SentenceTransformer(str(folder), device="cpu").encode_query([text])
    np.testing.assert_allclose(encode([text]), expected, atol=1e-6)
    assert encode.truncated == 1


@pytest.mark.parametrize("mode", ["mean_tokens", "cls_token", "lasttoken", "weightedmean_tokens"])
def test_empty_texts_of_a_tokenizer_without_special_tokens(tmp_path, mode):
    pooling = {"pooling_mode_mean_tokens": False, f"pooling_mode_{mode}": True}
    folder = save_gpt2(tmp_path / "m", **pooling)
    among_others = SentenceTransformer(str(folder), device="cpu").encode(["", "the cat"])  # it can't encode "" alone
    encode = TextEncoder(load_encoder(folder, device="cpu"))
    for texts in (["", "the cat"], [""], ["", ""]):
        np.testing.assert_allclose(encode(texts), among_others[[int(t != "") for t in texts]], atol=1e-6)
    encode = TextEncoder(load_encoder(folder, device="cpu"), batch_size=1)
    np.testing.assert_allclose(encode(["", "the cat"]), among_others, atol=1e-6)


def test_a_text_without_a_token_has_no_maximum(run, tmp_path):
    pooling = {"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}
    folder = save_gpt2(tmp_path / "m", **pooling)
    encode = TextEncoder(load_encoder(folder, device="cpu"))
    expected = SentenceTransformer(str(folder), device="cpu").encode(["the cat"])
    np.testing.assert_allclose(encode(["the cat"]), expected, atol=1e-6)
    for texts in (["the cat", ""], [""]):
        with pytest.raises(InputError, match="the text '' has no token, and no finite vector"):
            encode(texts)


def test_commands_take_empty_texts_with_a_tokenizer_without_special_tokens(run, tmp_path):
    folder = save_gpt2(tmp_path / "m")
    texts = [*("" for _ in range(40)), *(f"{a} {b}" for a in WORDS for b in WORDS[:3])]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    result = run("encode", folder, tmp_path / "t.jsonl", "-o", tmp_path / "v.npy")
    assert result.exit_code == 0, result.output
    vectors = np.load(tmp_path / "v.npy")
    assert not vectors[:40].any()
    assert vectors[40:].any(axis=1).all()
    result = run("encode", folder, tmp_path / "t.jsonl", "--shards", "-o", tmp_path / "shards")
    assert result.exit_code == 0, result.output
    assert "40 texts were empty and left out" in result.stderr
    result = run("index", "build", tmp_path / "t.jsonl", "--model", folder, "-o", tmp_path / "index")
    assert result.exit_code == 0, result.output
    result = run("convert", folder, "--calibrate", tmp_path / "t.jsonl", "-o", tmp_path / "ternary")
    assert result.exit_code == 0, result.output
    distill = ("distill", tmp_path / "ternary", "--teacher", folder, "--data", tmp_path / "t.jsonl", "--steps", 2)
    result = run(*distill, "-o", tmp_path / "distilled")
    assert result.exit_code == 0, result.output


def test_mteb_gets_a_vector_of_each_empty_text(tmp_path):
    encoder = LocalEncoder(load_encoder(save_gpt2(tmp_path / "m"), device="cpu"), name="m", content_hash="")
    encode = encoder.model.encode
    assert not encoder._encode_batch(encode, ["", ""]).any()
    assert encoder._encode_batch(encode, ["", "cat"]).any(axis=1).tolist() == [False, True]
