"""Folders of vectors, and an index's FAISS file, as other programs read them."""

import json
import re
import subprocess
from pathlib import Path

import datasets
import faiss
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from support.models import WORDS
from ternarize_cli.storage.digests import content_hash
from ternarize_cli.vectors.vector_folder import RECORDS

TEXTS = [f"{a} {b} {c}" for a, b, c in zip(WORDS, WORDS[1:], WORDS[5:], strict=False)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(TEXTS)))
    return path


@pytest.mark.parametrize("dtype", ["fp32", "int8"])
def test_pandas_and_datasets_read_a_folder_of_shards(run, tiny_bert, corpus, tmp_path, dtype):
    folder = tmp_path / "v"
    result = run("encode", tiny_bert, corpus, "--shards", "--shard-size", 4, "--dtype", dtype, "-o", folder)
    assert result.exit_code == 0, result.stderr
    ids = [f"d{i}" for i in range(len(TEXTS))]
    frame = pd.read_parquet(folder)
    assert frame["id"].tolist() == ids
    loaded = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded["id"][:] == ids
    np.testing.assert_array_equal(np.stack(frame["vector"]), np.array(loaded["vector"][:]))
    about = pq.read_schema(folder / "000000.parquet").metadata
    assert about[b"ternarize.model_sha256"].decode() == content_hash(tiny_bert)
    assert (about[b"ternarize.dtype"], about[b"ternarize.metric"]) == (dtype.encode(), b"cosine")


def test_a_parquet_file_of_vectors_says_where_they_come_from(run, tiny_bert, corpus, tmp_path):
    assert run("encode", tiny_bert, corpus, "-o", tmp_path / "v.parquet").exit_code == 0
    about = pq.read_schema(tmp_path / "v.parquet").metadata
    assert about[b"ternarize.model_sha256"].decode() == content_hash(tiny_bert)
    assert (about[b"ternarize.dtype"], about[b"ternarize.metric"]) == (b"fp32", b"cosine")


def test_a_folder_of_an_older_version_is_said_to_be_one(run, tiny_bert, corpus, tmp_path):
    arguments = ("encode", tiny_bert, corpus, "--shards", "-o", tmp_path / "v")
    assert run(*arguments).exit_code == 0
    assert run("index", "build", tmp_path / "v", "-o", tmp_path / "index").exit_code == 0
    for path in (tmp_path / "v" / RECORDS).iterdir():
        path.rename(tmp_path / "v" / path.name)
    (tmp_path / "v" / RECORDS).rmdir()
    build = ("index", "build", tmp_path / "v", "-o", tmp_path / "other")
    for command in (arguments, build, ("index", "add", tmp_path / "index", tmp_path / "v", "--replace")):
        result = run(*command)
        assert result.exit_code == 2
        assert "has its records beside its vectors" in result.stderr
        way = re.search(r"mkdir .*", result.stderr.replace("\n", ""))
        assert way is not None
    subprocess.run(way[0], shell=True, check=True)
    assert run(*build).exit_code == 0


def test_an_index_of_shards_keeps_the_texts_that_it_is_given(run, tiny_bert, corpus, tmp_path):
    assert run("encode", tiny_bert, corpus, "--shards", "--shard-size", 4, "-o", tmp_path / "v").exit_code == 0
    built = run("index", "build", tmp_path / "v", "--texts", corpus, "-o", tmp_path / "ix")
    assert built.exit_code == 0, built.stderr
    found = json.loads(run("index", "search", tmp_path / "ix", TEXTS[9], "-k", 1, "--json").stdout)["results"][0]
    assert (found["id"], found["text"]) == ("d9", TEXTS[9])
    lines = corpus.read_text().splitlines()
    for name, wrong, message in (
        ("few.jsonl", lines[:-1], f"no text with the id 'd{len(lines) - 1}'"),
        ("turned.jsonl", lines[::-1], "no text with the id"),
    ):
        (tmp_path / name).write_text("\n".join(wrong))
        result = run("index", "build", tmp_path / "v", "--texts", tmp_path / name, "-o", tmp_path / "no")
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("index", "build", corpus, "-m", tiny_bert, "--texts", corpus, "-o", tmp_path / "no")
    assert result.exit_code == 2
    assert "leave --texts out" in result.stderr
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("factory", ["flat", "hnsw", "IVF2,Flat"])
def test_the_recipe_of_the_guide_finds_the_ids_of_rows_after_a_delete(
    run, tiny_bert, corpus, tmp_path, monkeypatch, factory
):
    monkeypatch.chdir(tmp_path)
    assert run("index", "build", corpus, "-m", tiny_bert, "--factory", factory, "-o", "my-index").exit_code == 0
    for gone in (("d3",), ("d5", "d9")):
        assert run("index", "delete", "my-index", *gone).exit_code == 0
    guide = (Path(__file__).parents[2] / "docs" / "guide" / "search.md").read_text(encoding="utf-8")
    recipe = re.search(r"```python\n(.*?faiss\.read_index.*?)```", guide, re.DOTALL)
    assert recipe is not None
    rows: dict[str, object] = {}
    exec(recipe[1], rows)
    index, ids, gone = rows["index"], rows["ids"], rows["gone"]
    assert isinstance(index, faiss.Index)
    assert [ids[row] for row in gone] == ["d3", "d5", "d9"]  # type: ignore[index, union-attr]
    assert len(ids) == index.ntotal == len(TEXTS)  # type: ignore[arg-type]
    assert run("encode", tiny_bert, "-o", "q.npy", input="\n".join(TEXTS)).exit_code == 0
    nearest = index.search(np.load("q.npy"), 1)[1][:, 0]
    assert [ids[row] for row in nearest] == [f"d{i}" for i in range(len(TEXTS))]  # type: ignore[index]
