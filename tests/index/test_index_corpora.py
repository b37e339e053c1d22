"""What `index build` and `encode` read beside files of texts, what they skip, lists on disk, ten kills of a build."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.images import make_labels, make_pixels, write_folder
from support.models import WORDS
from support.warm import shared
from ternarize_cli.index.format import read_info
from ternarize_cli.index.search import open_index


def _texts(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=8)) for _ in range(count)]


def _found(result) -> list[str]:
    assert result.exit_code == 0, result.stderr
    return [hit["id"] for hit in json.loads(result.stdout)["results"]]


@pytest.fixture
def pictures(tmp_path):
    write_folder(tmp_path / "pictures", make_pixels(12), make_labels(12))
    return tmp_path / "pictures"


def test_an_index_of_images_is_asked_with_images(run, tiny_vit, pictures, tmp_path):
    index = tmp_path / "ix"
    built = run("index", "build", pictures, "-m", tiny_vit, "-o", index, "--shard-size", 5, "--json")
    assert built.exit_code == 0, built.stderr
    report = json.loads(built.stdout)
    assert (report["kind"], report["count"], report["shards"]) == ("image", 12, 3)
    files = sorted(str(p.relative_to(pictures)) for p in pictures.glob("*/*.png"))
    for name in files[:3]:
        assert _found(run("index", "search", index, "--image", pictures / name, "-k", 1, "--json")) == [name]
    assert _found(run("index", "search", index, "--image", pictures, "-k", 1, "--json")) == files
    queried = run("index", "build", pictures, "-m", tiny_vit, "-o", tmp_path / "no", "--queries", tmp_path / "q.txt")
    assert queried.exit_code == 2
    assert "leave --queries out" in queried.stderr
    refused = run("index", "search", index, "cat")
    assert refused.exit_code == 2
    assert "is an index of images" in refused.stderr
    assert "--image" in refused.stderr
    write_folder(tmp_path / "more", make_pixels(14)[12:], make_labels(2))
    for path in (tmp_path / "more").glob("*/*.png"):
        path.rename(path.with_name(f"new-{path.name}"))
    assert run("index", "add", index, tmp_path / "more").exit_code == 0
    assert read_info(index).count == 14


def test_an_index_of_texts_is_not_asked_with_images(run, tiny_bert, pictures, tmp_path):
    (tmp_path / "c.txt").write_text("cat\ndog\n")
    assert run("index", "build", tmp_path / "c.txt", "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    result = run("index", "search", tmp_path / "ix", "--image", pictures)
    assert result.exit_code == 2
    assert "is an index of texts" in result.stderr


def _as_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


def test_parquet_and_folders_of_texts_are_corpora(run, tiny_bert, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    texts = _texts(9)
    _as_parquet(folder / "a.parquet", [{"id": f"p{i}", "text": text} for i, text in enumerate(texts[:3])])
    (folder / "b.jsonl").write_text("\n".join(json.dumps({"_id": f"j{i}", "text": texts[3 + i]}) for i in range(3)))
    (folder / "c.txt").write_text("\n".join(texts[6:]))
    assert run("index", "build", folder, "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    asked = run("index", "search", tmp_path / "ix", texts[1], texts[4], texts[7], "-k", 1, "--json")
    assert _found(asked) == ["p1", "j1", "c.txt:2"]
    (tmp_path / "bad.parquet").write_text("no Parquet")
    result = run("encode", tiny_bert, tmp_path / "bad.parquet")
    assert result.exit_code == 2
    assert "Parquet" in result.stderr


def test_a_dataset_of_the_hub_is_streamed(run, tiny_bert, tmp_path, monkeypatch):
    import datasets

    texts = _texts(5)
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "train.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    load = datasets.load_dataset
    asked = []

    def local(name, **options):
        asked.append((name, options))
        return load(str(tmp_path / "hub"), **options)

    monkeypatch.setattr(datasets, "load_dataset", local)
    built = run("index", "build", "owner/name", "-m", tiny_bert, "-o", tmp_path / "ix")
    assert built.exit_code == 0, built.stderr
    assert asked == [("owner/name", {"split": "train", "streaming": True})]
    assert _found(run("index", "search", tmp_path / "ix", texts[3], "-k", 1, "--json")) == ["4"]


def test_a_dataset_that_is_not_there_is_said(run, tiny_bert, tmp_path):
    result = run("index", "build", "owner/no-such-data", "-m", tiny_bert, "-o", tmp_path / "ix")
    assert result.exit_code == 2
    assert "can't be read as a hub dataset" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["ivf", "IVF8,SQ8", "PCAR16,IVF8,PQ8x4"])
def test_lists_on_disk_hold_what_lists_in_memory_hold(run, tiny_bert, tmp_path, monkeypatch, factory):
    monkeypatch.setattr("ternarize_cli.index.fill._BLOCK", 20_000)  # bytes: 160 vectors, so several blocks
    texts = _texts(1000)
    (tmp_path / "c.txt").write_text("\n".join(texts))
    arguments = ["index", "build", tmp_path / "c.txt", "-m", tiny_bert, "--factory", factory, "--shard-size", 50]
    assert run(*arguments, "-o", tmp_path / "one").exit_code == 0
    built = run(*arguments, "-o", tmp_path / "two", "--on-disk")
    assert built.exit_code == 0, built.stderr
    assert sorted(p.name for p in (tmp_path / "two").iterdir() if p.suffix in (".faiss", ".ivfdata")) == [
        "index.faiss",
        "index.ivfdata",
    ]
    moved = (tmp_path / "two").rename(tmp_path / "moved")
    one, two = (open_index(folder, read_info(folder)) for folder in (tmp_path / "one", moved))
    queries = np.random.default_rng(1).normal(size=(50, 32)).astype(np.float32)
    for ours, theirs in zip(one.search(queries, 20), two.search(queries, 20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert run("index", "tune", moved).exit_code == 0
    (tmp_path / "more.jsonl").write_text(json.dumps({"id": "new", "text": "cat"}))
    assert run("index", "add", moved, tmp_path / "more.jsonl").exit_code == 0
    assert run("index", "delete", moved, "7").exit_code == 0
    refused = run("index", "compact", moved)
    assert refused.exit_code == 2
    assert "are on disk" in refused.stderr
    (tmp_path / "many.jsonl").write_text("\n".join(json.dumps({"id": f"m{i}", "text": t}) for i, t in enumerate(texts)))
    if factory == "ivf":  # lists that grow; what FAISS itself prints is seen in a process of its own only
        listed = shared().run("index", "add", moved, tmp_path / "many.jsonl", "--json")
        assert json.loads(listed.stdout)["count"] == 2000, listed.stderr
    assert "new" in _found(run("index", "search", moved, "cat", "-k", 10, "--nprobe", 8, "--json"))
    assert run("index", "info", moved).exit_code == 0


@pytest.mark.parametrize(
    ("factory", "message"), [("hnsw", "has no lists"), ("ivf-rabitq", "refine"), ("IVF8,PQ8x4fs", "can't lie on disk")]
)
def test_what_can_not_lie_on_disk_is_refused(run, tiny_bert, tmp_path, factory, message):
    (tmp_path / "c.txt").write_text("\n".join(_texts(400)))
    arguments = ["-m", tiny_bert, "-o", tmp_path / "ix", "--factory", factory, "--on-disk"]
    result = run("index", "build", tmp_path / "c.txt", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "ix").exists()


@pytest.mark.slow
def test_encode_skips_what_is_bad_where_that_is_asked(run, tiny_bert, tiny_vit, pictures, tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b'{"id": 1, "text": "cat"}\n\xff\n{"text": 3}\n{"id": 2, "text": "dog"}\n')
    result = run("encode", tiny_bert, tmp_path / "c.jsonl", "-o", tmp_path / "v.npy", "--skip-bad", "--json")
    assert result.exit_code == 0, result.stderr
    assert (json.loads(result.stdout)["count"], json.loads(result.stdout)["skipped"]) == (2, 2)
    assert "2 texts were skipped" in result.stderr
    sharded = run("encode", tiny_bert, tmp_path / "c.jsonl", "-o", tmp_path / "v", "--shards", "--skip-bad", "--json")
    assert json.loads(sharded.stdout)["rows"] == 2
    next(pictures.glob("*/*.png")).write_text("no image")
    assert run("encode", tiny_vit, pictures, "-o", tmp_path / "i.npy").exit_code == 2
    assert run("encode", tiny_vit, pictures, "-o", tmp_path / "i.npy", "--skip-bad").exit_code == 0
    assert np.load(tmp_path / "i.npy").shape == (11, 32)


def test_shards_notice_ids_that_come_twice(run, tiny_bert, tmp_path):
    rows = [{"id": i % 25, "text": f"cat {i}"} for i in range(26)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    result = run("encode", tiny_bert, tmp_path / "c.jsonl", "--shards", "-o", tmp_path / "v", "--shard-size", 4)
    assert result.exit_code == 2
    assert "texts 1 and 26 have the same id '0'" in result.stderr
    assert run("index", "build", tmp_path / "v", "-o", tmp_path / "ix").exit_code == 2


def test_an_empty_input_leaves_nothing(run, tiny_bert, tmp_path):
    (tmp_path / "c.txt").write_text("\n")
    for options in (["--shards", "-o", tmp_path / "v"], ["-o", tmp_path / "v.npy"]):
        result = run("encode", tiny_bert, tmp_path / "c.txt", *options)
        assert result.exit_code == 2
        assert "holds no text" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["c.txt"]


_KILLS = """
import os, random, signal, sys, time
from pathlib import Path

import ternarize_cli.index.build  # noqa: F401  (imported once; each child only builds)
from ternarize_cli.__main__ import main

out, draw, killed = Path(sys.argv[-1]), random.Random(7), 0
shards = out.parent / f".{out.name}.partial" / out.name / "vectors"
for _ in range(4):
    before = len(list(shards.glob("*/*.json")))
    child = os.fork()
    if not child:
        sys.stderr = open(os.devnull, "w")
        main()
        os._exit(0)
    while len(list(shards.glob("*/*.json"))) <= before + 1 and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.001)
    time.sleep(draw.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print(killed)
"""


@pytest.mark.slow
def test_a_build_killed_at_four_moments_ends_with_the_same_vectors(run, tiny_bert, tmp_path):
    corpus, out = tmp_path / "corpus.jsonl", tmp_path / "ix"
    corpus.write_text("\n".join(json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(_texts(3000))))
    arguments = ["index", "build", str(corpus), "-m", str(tiny_bert), "--shard-size", "25", "--threads", "1"]
    done = shared().run(*arguments, "--resume", "-o", out, program=_KILLS)
    assert done.stdout == "4\n", done.stderr
    assert not out.exists()
    resumed = run(*arguments, "--resume", "-o", out, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    assert 4 <= json.loads(resumed.stdout)["reused"] < 120
    assert run(*arguments, "-o", tmp_path / "whole").exit_code == 0
    ours, theirs = (read_info(folder).files for folder in (out, tmp_path / "whole"))
    assert {name: file.sha256 for name, file in ours.items() if name != "truth.npz"} == {
        name: file.sha256 for name, file in theirs.items() if name != "truth.npz"
    }
