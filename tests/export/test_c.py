"""The format c: its vectors are the runtime's, bit for bit, and a damaged file ends in a sentence."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.c_model import LIBRARY, CModel, RefusedError, save_weights
from support.families import save_family, save_word_tokenizer, stages
from support.fused_families import FUSED, Family, name_of
from support.models import add_dense, save_modules, save_tiny_bert
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.runtime.encoder import Encoder

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the compiled library is not built")
TEXTS = ["the cat", "", "dog house tree " * 15, "red green small cat in a tree by the river " * 3, "cat"]
FUZZ = Path(__file__).parents[1] / "support" / "model_fuzz.py"


def opened(packed: Path, place: Path) -> tuple[Encoder, CModel]:
    """A packed model in the runtime, and in C."""
    encoder = save_weights(packed, place / "model.tz")
    return encoder, CModel(place / "model.tz")


@pytest.mark.slow
@pytest.mark.parametrize("family", [f for f in FUSED if "image_size" not in f[2]], ids=name_of)
def test_every_family_of_text_encoders_has_the_vectors_of_the_runtime(family: Family, tmp_path: Path) -> None:
    source = save_family(family, tmp_path / "source")
    save_word_tokenizer(source)
    save_modules(source, next(family[2][key] for key in ("hidden_size", "dim", "d_model") if key in family[2]))
    encoder, model = opened(stages(source, tmp_path)[2], tmp_path)
    tokens = encoder.tokenize(TEXTS)
    assert (model.dim, model.limit) == (encoder.dim, encoder.limit)
    assert (model.encode(tokens) == encoder.encode_tokens(tokens)).all()


def test_every_instruction_set_has_the_vectors_of_the_runtime(lib: Any, packed: Path, tmp_path: Path) -> None:
    encoder, model = opened(packed, tmp_path)
    tokens = encoder.tokenize(TEXTS)
    assert (model.encode(tokens) == encoder.encode_tokens(tokens)).all()


def test_a_vector_depends_on_neither_threads_nor_neighbours(packed: Path, tmp_path: Path) -> None:
    encoder, model = opened(packed, tmp_path)
    tokens = encoder.tokenize(TEXTS * 200)  # more tokens than a batch has
    assert sum(len(text.ids) for text in tokens) > 2 * 8192
    made = model.encode(tokens, threads=3)
    assert (made[-5:] == model.encode(tokens[:5], threads=1)).all()
    assert (made == np.tile(made[:5], (200, 1))).all()


@pytest.mark.parametrize("changes", [{"table_bits": 4}, {"table_bits": 16}], ids=["4 bits", "floats"])
def test_other_tables_than_int8_have_the_vectors_of_the_runtime(
    changes: dict[str, Any], tiny_bert: Path, tmp_path: Path
) -> None:
    encoder, model = opened(stages(tiny_bert, tmp_path, Scheme(**changes))[2], tmp_path)
    tokens = encoder.tokenize(TEXTS)
    assert (model.encode(tokens) == encoder.encode_tokens(tokens)).all()


@pytest.mark.parametrize("keep_dense", [False, True], ids=["ternary", "floats"])
def test_modules_behind_pooling_have_the_vectors_of_the_runtime(keep_dense: bool, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    pooling = {"word_embedding_dimension": 32, "pooling_mode": ["max", "weightedmean"]}
    (source / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    add_dense(source, in_features=64, out_features=40, activation_function=torch.nn.Identity(), bias=False)
    add_dense(source, in_features=40, out_features=33, activation_function=torch.nn.Identity())
    (source / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": 24}))
    encoder, model = opened(stages(source, tmp_path, keep_dense=keep_dense)[2], tmp_path)
    tokens = encoder.tokenize(TEXTS)
    made = model.encode(tokens)
    assert made.shape == (5, 24)
    assert (made == encoder.encode_tokens(tokens)).all()


def test_a_tanh_is_that_of_the_runtime_up_to_its_last_bits(with_dense: Path, tmp_path: Path) -> None:
    encoder, model = opened(with_dense, tmp_path)
    tokens = encoder.tokenize(TEXTS)
    assert np.abs(model.encode(tokens) - encoder.encode_tokens(tokens)).max() < 1e-6


def test_arguments_that_are_wrong_are_refused_in_words_and_nothing_is_written(c_folder: Path) -> None:
    model = CModel(c_folder / "model.tz")
    ids, starts, out = np.arange(1, 7, dtype=np.int32), np.array([0, 3, 6], np.int32), np.full((2, 32), 7.0, np.float32)
    whole = [ids.ctypes.data, starts.ctypes.data, 2, out.ctypes.data, 1]
    assert model.call(*whole) == 0
    out[:] = 7

    def refused(why: str, *arguments: Any) -> None:
        assert model.call(*arguments) == -2
        assert why in model.why()
        assert (out == 7).all()

    for place, value, why in (
        (0, None, "there are no ids"),
        (1, None, "there are no starts"),
        (1, whole[1] + 1, "not aligned"),
        (2, -1, "there are 0 to 268,435,456 sequences"),
        (3, None, "there is no room for vectors"),
        (4, -1, "threads are 1 to 1024, or 0"),
        (4, 1025, "threads are 1 to 1024, or 0"),
    ):
        refused(why, *whole[:place], value, *whole[place + 1 :])
    for wrong in (-1, 9999, -(1 << 31)):
        ids[5] = wrong
        refused("an id is no row of the model's table", *whole)
    ids[5] = 1
    for at, wrong, why in ((0, 1, "starts at 0"), (1, 7, "behind the last token"), (2, -3, "268,435,456 tokens")):
        before, starts[at] = starts[at], wrong
        refused(why, *whole)
        starts[at] = before
    long = np.ones(65, np.int32)
    ends = np.array([0, 65], np.int32)
    refused("more tokens than tz_model_limit", long.ctypes.data, ends.ctypes.data, 1, out.ctypes.data, 1)
    assert model.call(None, np.zeros(1, np.int32).ctypes.data, 0, None, 0) == 0


def test_a_file_that_is_missing_or_something_else_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("a text of more than 24 bytes, and no weights")
    (tmp_path / "short").write_bytes(b"TERNARIZ")
    for name, why in (
        ("none", "no such file"),
        (".", "no regular file"),
        ("text", "no weights"),
        ("short", "no weights"),
    ):
        with pytest.raises(RefusedError, match=why):
            CModel(tmp_path / name)


def test_an_instruction_set_that_is_not_there_is_refused(c_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_NATIVE_ISA", "sse9")
    with pytest.raises(RefusedError, match="no instruction set of the name in TERNARIZE_NATIVE_ISA"):
        CModel(c_folder / "model.tz")


def test_the_name_of_an_instruction_set_may_have_large_letters(
    c_folder: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Encoder(packed).tokenize(TEXTS)
    monkeypatch.setenv("TERNARIZE_NATIVE_ISA", "Scalar")
    made = CModel(c_folder / "model.tz").encode(tokens)
    monkeypatch.setenv("TERNARIZE_NATIVE_ISA", "scalar")
    assert (made == CModel(c_folder / "model.tz").encode(tokens)).all()


def test_any_flipped_bit_and_any_cut_is_noticed(c_folder: Path, tmp_path: Path) -> None:
    whole, made = (c_folder / "model.tz").read_bytes(), tmp_path / "damaged.tz"
    places = [*range(8 * 32), *range(8 * 32, 8 * len(whole), 8 * 97 + 3)]
    for place in places:
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        made.write_bytes(content)
        with pytest.raises(RefusedError):
            CModel(made)
    for length in [*range(32), *range(32, len(whole), 101), len(whole) - 1]:
        made.write_bytes(whole[:length])
        with pytest.raises(RefusedError):
            CModel(made)
    made.write_bytes(whole + b"\0")
    with pytest.raises(RefusedError, match="shorter or longer than it was"):
        CModel(made)


@pytest.mark.slow
def test_damaged_structures_are_refused_or_encode_something(with_dense: Path, tmp_path: Path) -> None:
    opened(with_dense, tmp_path)
    made = subprocess.run(
        [sys.executable, FUZZ, str(LIBRARY), tmp_path / "model.tz", "0", "1500"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr[-2000:]
    assert made.stdout.startswith("1500 files: ")
