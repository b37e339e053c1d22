"""`ternarize encode --shards`: jobs, kills, damage, numbers, and an index of them."""

import dataclasses
import json

import numpy as np
import pytest

from support.models import WORDS
from support.warm import shared
from ternarize_cli.errors import DataError
from ternarize_cli.storage.checksummed import with_checksum
from ternarize_cli.vectors.vector_folder import VectorFolder, read_record


def _texts(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=8)) for _ in range(count)]


def _lines(texts) -> str:
    return "\n".join(json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(texts))


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(_lines(_texts(50)))
    return path


@pytest.fixture
def encode(run, tiny_bert, corpus, tmp_path):
    def encoded(*options, to="v", ok=True):
        result = run("encode", tiny_bert, corpus, "-o", tmp_path / to, "--shard-size", 8, "--json", *options)
        if not ok:
            return result
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return encoded


def _all(folder):
    opened = VectorFolder(folder)
    return list(opened.ids()), np.concatenate([opened.load(i) for i in range(opened.shards)])


@pytest.mark.parametrize("format", ["npy", "parquet"])
@pytest.mark.parametrize(("dtype", "error"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 1e-2)])
def test_shards_hold_the_vectors_of_encode(run, encode, tiny_bert, corpus, tmp_path, format, dtype, error):
    report = encode("--shards", "--format", format, "--dtype", dtype)
    assert (report["shards"], report["rows"], report["reused"], report["dtype"]) == (7, 50, 0, dtype)
    ids, vectors = _all(tmp_path / "v")
    assert ids == [f"d{i}" for i in range(50)]
    assert run("encode", tiny_bert, corpus, "-o", tmp_path / "one.npy", "--normalize").exit_code == 0
    np.testing.assert_allclose(vectors, np.load(tmp_path / "one.npy"), atol=error)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3)
    some = np.array([0, 7, 8, 49])
    np.testing.assert_array_equal(VectorFolder(tmp_path / "v").rows(some), vectors[some])


@pytest.mark.slow
def test_jobs_share_a_folder(encode, tmp_path):
    assert encode("--shards", to="one")["shards"] == 7
    assert encode("--shard", "2/3")["shards"] == 2
    with pytest.raises(DataError, match=r"000000\.parquet is missing"):
        VectorFolder(tmp_path / "v")
    assert (encode("--shard", "1/3")["shards"], encode("--shard", "3/3")["shards"]) == (3, 2)
    assert encode("--shards")["reused"] == 7
    ours, theirs = _all(tmp_path / "v"), _all(tmp_path / "one")
    assert ours[0] == theirs[0]
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.slow
def test_what_is_damaged_or_has_changed_is_done_again(encode, corpus, tmp_path):
    encode("--shards")
    path = tmp_path / "v" / "000003.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    (tmp_path / "v" / "__records__" / "000001.json").write_text('{"fi')
    (tmp_path / "v" / "000005.parquet").unlink()
    with pytest.raises(DataError, match=r"000001\.parquet or its record is damaged"):
        VectorFolder(tmp_path / "v")
    again = encode("--shards")
    assert (again["shards"], again["reused"]) == (3, 4)
    texts = _texts(50)
    texts[20] = "another text"
    corpus.write_text(_lines([*texts, "one more"]))
    changed = encode("--shards")
    assert (changed["shards"], changed["reused"]) == (2, 5)
    assert VectorFolder(tmp_path / "v").count == 51
    corpus.write_text(_lines(texts[:16]))
    encode("--shards")
    assert VectorFolder(tmp_path / "v").count == 16


@pytest.mark.slow
def test_shards_of_two_corpora_are_not_mixed(encode, corpus, tmp_path):
    encode("--shard", "1/2")
    encode("--shard", "2/2")
    corpus.write_text(_lines([text + " dog" for text in _texts(50)]))
    encode("--shard", "1/2")
    with pytest.raises(DataError, match=r"000001\.json is of another version of the corpus"):
        VectorFolder(tmp_path / "v")
    encode("--shard", "2/2")
    assert VectorFolder(tmp_path / "v").count == 50
    corpus.write_text(_lines(_texts(9)))
    encode("--shards")
    assert len(list((tmp_path / "v").glob("*.parquet"))) == 2


def test_a_folder_of_something_else_is_no_vectors(run, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("mine")
    result = run("index", "build", tmp_path / "photos", "-o", tmp_path / "ix")
    assert result.exit_code == 2
    assert "holds no vectors" in result.stderr
    assert "remove" not in result.stderr


def test_vectors_of_any_length_get_no_index_of_directions(run, encode, tmp_path):
    encode("--shards", "--no-normalize")
    result = run("index", "build", tmp_path / "v", "-o", tmp_path / "ix", "--factory", "binary")
    assert result.exit_code == 2
    assert "needs vectors of length 1" in result.stderr
    assert "leave --resume out" in run("index", "build", tmp_path / "v", "--resume").stderr


@pytest.mark.slow
def test_other_vectors_are_not_mixed_in(encode, tmp_path):
    encode("--shards")
    result = encode("--shards", "--dtype", "fp16", ok=False)
    assert result.exit_code == 2
    assert "dtype is 'fp32' there and 'fp16' now" in result.stderr
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    result = encode("--shards", to="mine", ok=False)
    assert result.exit_code == 2
    assert "holds other files" in result.stderr
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/3"], "I from 1 to N"),
        (["--shard", "4/3"], "I from 1 to N"),
        (["--shard", "x"], "I from 1 to N"),
        (["--shards", "--format", "jsonl"], "parquet or npy"),
        (["--shards", "--dtype", "int4"], "there is no --dtype"),
        (["--shards", "--dtype", "int8", "--no-normalize"], "keeps directions only"),
        (["--dtype", "fp16"], "need --shards"),
        (["--shards", "--force"], "nothing to force"),
    ],
)
def test_wrong_options(encode, options, message):
    result = encode(*options, ok=False)
    assert result.exit_code == 2
    assert message in result.stderr


_KILLS = """
import os, random, signal, sys, time
from pathlib import Path

import ternarize_cli.vectors.vector_shards  # noqa: F401  (imported once; each child only encodes)
from ternarize_cli.__main__ import main

out, draw, killed = Path(sys.argv[-1]), random.Random(5), 0
for _ in range(4):
    before = len(list(out.glob("*/*.json"))) if out.is_dir() else 0
    child = os.fork()
    if not child:
        sys.stderr = open(os.devnull, "w")
        main()
        os._exit(0)
    while len(list(out.glob("*/*.json"))) <= before + 1 and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(killed)
"""


@pytest.mark.slow
def test_killed_at_four_moments_nothing_is_lost_or_doubled(run, tiny_bert, tmp_path):
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "v"
    corpus.write_text(_lines(_texts(3000)))
    arguments = ["encode", str(tiny_bert), str(corpus), "--shards", "--shard-size", "25", "--threads", "1"]
    done = shared().run(*arguments, "-o", out, program=_KILLS)
    assert done.stdout == "4\n", done.stderr
    assert 4 <= len(list(out.glob("*/*.json"))) < 120
    assert run(*arguments, "-o", out).exit_code == 0
    assert run(*arguments, "-o", tmp_path / "whole").exit_code == 0
    ours, theirs = _all(out), _all(tmp_path / "whole")
    assert ours[0] == theirs[0] == [f"d{i}" for i in range(3000)]
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.slow
def test_an_index_is_built_of_shards(run, encode, tiny_bert, tmp_path):
    encode("--shards", "--dtype", "int8")
    built = run("index", "build", tmp_path / "v", "-o", tmp_path / "ix", "--factory", "hnsw", "--json")
    assert built.exit_code == 0, built.stderr
    assert json.loads(built.stdout)["model"] == str(tiny_bert)
    found = run("index", "search", tmp_path / "ix", _texts(50)[9], "-k", 1, "--json")
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["results"][0]["id"] == "d9"
    assert run("index", "tune", tmp_path / "ix").exit_code == 0
    assert "leave --model" in run("index", "build", tmp_path / "v", "-m", tiny_bert).stderr
    assert run("index", "build", tmp_path / "corpus.jsonl").exit_code == 2


def test_a_record_of_another_width_builds_no_index(run, encode, tmp_path):
    encode("--shards")
    record = read_record(tmp_path / "v")
    other = with_checksum(dataclasses.asdict(dataclasses.replace(record, dim=16)))
    (tmp_path / "v" / "__records__" / "vectors.json").write_text(other)
    result = run("index", "build", tmp_path / "v", "-o", tmp_path / "ix")
    assert result.exit_code == 2
    assert "shard 0 has vectors of 32, and vectors.json says 16" in result.stderr
    assert not (tmp_path / "ix").exists()


@pytest.mark.parametrize("name", ["vectors.json", "000001.json"])
def test_an_edited_record_is_found(run, encode, tmp_path, name):
    encode("--shards")
    path = tmp_path / "v" / "__records__" / name
    record = json.loads(path.read_text())
    field = "model_sha256" if name == "vectors.json" else "rows"
    path.write_text(json.dumps({**record, field: 1}))
    result = run("index", "build", tmp_path / "v", "-o", tmp_path / "ix")
    assert result.exit_code == 2
    assert "damaged" in result.stderr
    assert not (tmp_path / "ix").exists()


def test_unfinished_shards_are_not_indexed(run, encode, tmp_path):
    encode("--shard", "1/2")
    result = run("index", "build", tmp_path / "v", "-o", tmp_path / "ix")
    assert result.exit_code == 2
    assert "000001.parquet is missing" in result.stderr
    assert not (tmp_path / "ix").exists()
