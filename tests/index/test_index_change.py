"""`ternarize index add`, `delete`, `compact`: the same answers as an index built at once, whatever kind it is."""

import json
import shutil
import signal
import subprocess
import time

import numpy as np
import pytest

from support.models import WORDS, save_tiny_bert
from support.warm import shared
from ternarize_cli.index.format import read_deleted, read_info
from ternarize_cli.index.search import Searcher
from ternarize_cli.index.truth import read_truth
from ternarize_cli.storage.files import locked_folder, partial_path
from ternarize_cli.vectors.text_encoder import TextEncoder

KINDS = ["flat", "hnsw", "ivf", "ivf-pq", "ivf-rabitq", "binary", "lsh", "PCAR16,IVF4,PQ8x4"]


def _texts(count: int) -> list[str]:
    draw = np.random.default_rng(3)
    return [" ".join(draw.choice(WORDS, size=12)) for _ in range(count)]


TEXTS = _texts(400)


def _write(path, rows):
    path.write_text("\n".join(json.dumps({"id": f"d{i}", "text": TEXTS[i]}) for i in rows))
    return path


@pytest.fixture
def build(run, tiny_bert, tmp_path):
    def built(rows, *options, name="ix"):
        corpus = _write(tmp_path / f"{name}.jsonl", rows)
        result = run("index", "build", corpus, "-m", tiny_bert, "-o", tmp_path / name, *options)
        assert result.exit_code == 0, result.stderr
        return tmp_path / name

    return built


@pytest.fixture
def ask(run):
    def asked(index, k=10, rows=(5, 150, 399), *options):
        queries = [TEXTS[i] for i in rows]
        result = run("index", "search", index, *queries, "-k", k, "--json", *options)
        assert result.exit_code == 0, result.stderr
        found = json.loads(result.stdout)["results"]
        return [[hit["id"] for hit in found if hit["query"] == query] for query in queries]

    return asked


def _ok(result) -> dict:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
def test_what_is_added_to_an_exact_index_is_found_as_if_it_was_always_there(run, build, ask, tmp_path):
    whole, index = build(range(400), name="whole"), build(range(300))
    report = _ok(run("index", "add", index, _write(tmp_path / "more.jsonl", range(300, 400)), "--json"))
    assert (report["added"], report["count"], report["rows"]) == (100, 400, 400)
    assert ask(index) == ask(whole)
    assert _ok(run("index", "info", index, "--json"))["count"] == 400
    assert not partial_path(index).exists()


@pytest.mark.slow
def test_what_else_lies_in_the_folder_of_an_index_stays(run, build, tiny_bert, tmp_path):
    index = build(range(300))
    shutil.copytree(tiny_bert, index / "model")
    (index / "notes.txt").write_text("mine")
    (index / "link").symlink_to(tmp_path / "nowhere")
    more = _write(tmp_path / "more.jsonl", range(300, 310))
    changes = [("add", more, "--model", index / "model"), ("delete", "d7"), ("compact",)]
    for name, *given in changes:
        _ok(run("index", name, index, *given, "--json"))
        assert (index / "notes.txt").read_text() == "mine"
        assert (index / "link").is_symlink()
        assert {p.name for p in (index / "model").iterdir()} == {p.name for p in tiny_bert.iterdir()}
    assert _ok(run("index", "info", index, "--json"))["count"] == 309


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_deleted_documents_are_not_found_before_or_after_compacting(run, build, ask, kind):
    index = build(range(400), "--factory", kind)
    knob = ["--nprobe", 999] if "ivf" in kind.lower() else []
    if kind in ("ivf-pq", "ivf-rabitq", "binary"):
        knob += ["--refine", 40]  # all are candidates, so that what is deleted takes no place among them
    before = ask(index, 40, (5, 150, 399), *knob)
    gone = {*before[0][:20], *before[1][:5], "d7"}
    report = _ok(run("index", "delete", index, *gone, "--json"))
    assert (report["deleted"], report["count"], report["rows"]) == (len(gone), 400 - len(gone), 400)
    after = ask(index, 10, (5, 150, 399), *knob)
    assert all(len(hits) == 10 and not gone & {*hits} for hits in after)
    if kind in ("flat", "ivf", "lsh"):
        assert after == [[hit for hit in hits if hit not in gone][:10] for hits in before]
    assert _ok(run("index", "info", index, "--json"))["deleted"] == len(gone)
    assert run("index", "tune", index, "--dry-run").exit_code == 0

    compacted = _ok(run("index", "compact", index, "--json"))
    assert (compacted["deleted"], compacted["count"], compacted["rows"]) == (
        len(gone),
        400 - len(gone),
        400 - len(gone),
    )
    again = ask(index, 10, (5, 150, 399), *knob)
    if kind == "hnsw":  # another graph
        assert all(len({*a} & {*b}) >= 8 for a, b in zip(after, again, strict=True))
    else:
        assert [sorted(hits) for hits in again] == [sorted(hits) for hits in after]
    assert _ok(run("index", "info", index, "--json"))["deleted"] == 0
    assert sorted(p.name for p in index.iterdir() if "deleted" in p.name) == []
    assert run("index", "tune", index).exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_takes_more_documents(run, build, ask, tmp_path, kind):
    index = build(range(300), "--factory", kind)
    assert run("index", "add", index, _write(tmp_path / "more.jsonl", range(300, 400))).exit_code == 0
    assert "d399" in ask(index, 10, (399,))[0]
    assert read_info(index).count == 400


@pytest.mark.slow
def test_ids_that_are_there_are_refused_or_replaced(run, build, ask, tmp_path, monkeypatch):
    index = build(range(50))
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    (tmp_path / "new.jsonl").write_text(
        json.dumps({"id": "d3", "text": TEXTS[399]}) + "\n" + json.dumps({"id": "n", "text": TEXTS[350]})
    )
    monkeypatch.setattr(TextEncoder, "forward", None)  # nothing is encoded for nothing
    refused = run("index", "add", index, tmp_path / "new.jsonl")
    monkeypatch.undo()
    assert refused.exit_code == 2
    assert "has documents 'd3' already" in refused.stderr
    assert "--replace" in refused.stderr
    assert {p.name: p.read_bytes() for p in index.iterdir()} == before
    report = _ok(run("index", "add", index, tmp_path / "new.jsonl", "--replace", "--json"))
    assert (report["added"], report["replaced"], report["count"], report["rows"]) == (2, 1, 51, 52)
    assert ask(index, 1, (399, 350)) == [["d3"], ["n"]]
    assert ask(index, 1, (3,)) != [["d3"]]
    assert _ok(run("index", "add", index, tmp_path / "new.jsonl", "--replace", "--json"))["count"] == 51


def test_ids_to_delete_come_from_arguments_files_and_stdin(run, build, tmp_path):
    index = build(range(50))
    (tmp_path / "ids.txt").write_text("d1\n\nd2\n")
    assert _ok(run("index", "delete", index, "d3", "--ids", tmp_path / "ids.txt", "--json"))["deleted"] == 3
    assert _ok(run("index", "delete", index, "--ids", "-", "--json", input="d4\nd5\n"))["deleted"] == 2
    assert read_deleted(index, read_info(index)).tolist() == [1, 2, 3, 4, 5]
    missing = run("index", "delete", index, "d6", "d1", "nowhere")
    assert missing.exit_code == 2
    assert "has no documents 'd1', 'nowhere'; nothing was deleted" in missing.stderr
    report = _ok(run("index", "delete", index, "d6", "d1", "nowhere", "--missing-ok", "--json"))
    assert (report["deleted"], report["missing"], report["count"]) == (1, 2, 44)
    assert len(list(index.glob("deleted-*"))) == 1
    assert run("index", "delete", index).exit_code == 2
    assert "ids.csv can't be read" in run("index", "delete", index, "--ids", tmp_path / "ids.csv").stderr


def test_texts_without_ids_do_not_take_the_place_of_others(run, tiny_bert, ask, tmp_path):
    for name, rows in (("a.txt", range(5)), ("b.txt", range(5, 9))):
        (tmp_path / name).write_text("\n".join(TEXTS[i] for i in rows))
    index = tmp_path / "ix"
    assert run("index", "build", tmp_path / "a.txt", "-m", tiny_bert, "-o", index).exit_code == 0
    assert _ok(run("index", "add", index, tmp_path / "b.txt", "--json"))["count"] == 9
    assert _ok(run("index", "add", index, "-", "--json", input=TEXTS[9]))["count"] == 10
    assert ask(index, 1, (2, 6, 9)) == [["3"], ["b.txt:2"], ["stdin:1"]]
    again = run("index", "add", index, tmp_path / "b.txt")
    assert again.exit_code == 2
    assert "has documents 'b.txt:1', 'b.txt:2', 'b.txt:3' and 1 more already" in again.stderr
    assert "FILE:LINE" in again.stderr


def test_ids_are_taken_as_they_are(run, tiny_bert, tmp_path):
    ids = [" a ", "a", "x\u2028y", "x", "y"]
    (tmp_path / "c.jsonl").write_text("\n".join(json.dumps({"id": i, "text": f"cat {i}"}) for i in ids))
    index = tmp_path / "ix"
    assert run("index", "build", tmp_path / "c.jsonl", "-m", tiny_bert, "-o", index).exit_code == 0
    assert _ok(run("index", "delete", index, "--ids", "-", "--json", input=" a \r\nx\u2028y\n"))["deleted"] == 2
    assert read_deleted(index, read_info(index)).tolist() == [0, 2]


def test_an_open_index_answers_as_it_was_opened(run, build):
    index = build(range(100))
    searcher = Searcher(index)
    before = searcher.search([TEXTS[50]], 5)
    assert run("index", "delete", index, *(f"d{i}" for i in range(40))).exit_code == 0
    assert run("index", "compact", index).exit_code == 0
    assert searcher.search([TEXTS[50]], 5) == before


def test_damage_gets_no_new_digest_by_deleting(run, build):
    index = build(range(50))
    assert run("index", "delete", index, "d1", "d2").exit_code == 0
    path = index / "deleted-2.bin"
    path.write_bytes(bytes(reversed(path.read_bytes())))
    result = run("index", "delete", index, "d3")
    assert result.exit_code == 2
    assert "deleted-2.bin is damaged" in result.stderr


def test_fewer_neighbours_stay_known_where_some_were_taken_out(run, build, tmp_path):
    index = build(range(300))
    assert run("index", "delete", index, *(f"d{i}" for i in range(0, 300, 2))).exit_code == 0
    assert run("index", "compact", index).exit_code == 0
    assert run("index", "add", index, _write(tmp_path / "more.jsonl", range(300, 400))).exit_code == 0
    report = _ok(run("index", "tune", index, "--dry-run", "-k", 100, "--json"))
    assert report["chosen"]["recall"] == 1


def test_one_change_at_a_time(run, build, tmp_path):
    index = build(range(5))
    with locked_folder(index):
        for command in (["delete", index, "d1"], ["compact", index], ["add", index, index / "x"]):
            result = run("index", *command)
            assert result.exit_code == 1
            assert "another process is changing" in result.stderr
        assert run("index", "search", index, "cat").exit_code == 0
    assert run("index", "delete", index, "d1").exit_code == 0


def test_empty_texts_are_left_out_and_counted(run, tiny_bert, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"id": "a", "text": "cat"}, {"id": "b", "text": " "}, {"id": "c", "text": "dog"}]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("c.jsonl", "c.parquet"):
        result = run("index", "build", tmp_path / name, "-m", tiny_bert, "-o", tmp_path / f"{name}-ix", "--json")
        assert (_ok(result)["count"], _ok(result)["empty"]) == (2, 1)
        assert "1 text was empty" in result.stderr
        out = tmp_path / f"{name}.npy"  # a line in, a line out
        assert _ok(run("encode", tiny_bert, tmp_path / name, "-o", out, "--json"))["count"] == 3


def test_when_all_is_deleted_nothing_is_found_or_compacted(run, build):
    index = build(range(3))
    assert run("index", "delete", index, "d0", "d1", "d2").exit_code == 0
    assert _ok(run("index", "search", index, "cat", "--json"))["results"] == []
    result = run("index", "compact", index)
    assert result.exit_code == 2
    assert "all documents" in result.stderr


def test_another_model_adds_nothing(run, build, tmp_path):
    index = build(range(50))
    more = _write(tmp_path / "more.jsonl", range(50, 60))
    other = save_tiny_bert(tmp_path / "other", seed=1)
    refused = run("index", "add", index, more, "-m", other).stderr
    assert "is not the model that made this index" in refused
    assert "--asymmetric" not in refused
    (other / "distillation.json").write_text(json.dumps({"teacher_sha256": read_info(index).model_sha256}))
    result = run("index", "add", index, more, "-m", other)
    assert result.exit_code == 2
    assert "is a student of the model that made this index" in result.stderr
    assert run("encode", other, more, "--shards", "-o", tmp_path / "v").exit_code == 0
    assert "not of the index's" in run("index", "add", index, tmp_path / "v").stderr
    assert read_info(index).count == 50


@pytest.mark.slow
def test_vectors_are_added_as_texts_are(run, build, ask, tiny_bert, tmp_path):
    one, two = build(range(300), name="one"), build(range(300), name="two")
    more = _write(tmp_path / "more.jsonl", range(300, 400))
    assert run("encode", tiny_bert, more, "--shards", "-o", tmp_path / "v", "--shard-size", 30).exit_code == 0
    assert run("index", "add", one, more).exit_code == 0
    assert (
        "leave --model and --skip-bad out" in run("index", "add", two, tmp_path / "v", "-m", "x", "--skip-bad").stderr
    )
    assert run("index", "add", two, tmp_path / "v").exit_code == 0
    assert ask(one) == ask(two)


def test_truth_stays_true_while_documents_come_and_go(run, build, tmp_path):
    whole, index = build(range(400), name="whole"), build(range(300))
    assert run("index", "add", index, _write(tmp_path / "more.jsonl", range(300, 400))).exit_code == 0
    ours, theirs = read_truth(index / "truth.npz"), read_truth(whole / "truth.npz")
    shared = np.searchsorted(theirs.own, ours.own)
    np.testing.assert_array_equal(theirs.own[shared], ours.own)
    np.testing.assert_allclose(ours.scores, theirs.scores[shared], atol=1e-6)
    assert (ours.neighbours == theirs.neighbours[shared]).mean() > 0.99  # but for ties
    dead = [f"d{i}" for i in range(0, 400, 3)]
    assert run("index", "delete", index, *dead).exit_code == 0
    assert run("index", "compact", index).exit_code == 0
    report = _ok(run("index", "tune", index, "-k", 5, "--json"))
    assert report["chosen"]["recall"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", '{"id": 1, "text": 3}\n', '{"id": 1, "text": "a"}\n{"id": 1, "text": "b"}\n'])
def test_what_can_not_be_added_leaves_the_index_as_it_was(run, build, tmp_path, content):
    index = build(range(50))
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    (tmp_path / "bad.jsonl").write_text(content)
    assert run("index", "add", index, tmp_path / "bad.jsonl").exit_code == 2
    assert {p.name: p.read_bytes() for p in index.iterdir()} == before
    assert not partial_path(index).exists()


@pytest.mark.slow
def test_a_killed_addition_leaves_the_index_as_it_was(run, build, ask, tmp_path):
    index = build(range(50))
    before = {p.name: p.read_bytes() for p in index.iterdir()}
    more = tmp_path / "more.jsonl"
    more.write_text("\n".join(json.dumps({"id": f"m{i}", "text": TEXTS[i % 400]}) for i in range(60_000)))
    process = shared().start("index", "add", index, more, output=subprocess.DEVNULL)
    growing, size, deadline = partial_path(index) / "documents.jsonl", (index / "documents.jsonl").stat().st_size, 0.0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (growing.exists() and growing.stat().st_size > size):
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert {p.name: p.read_bytes() for p in index.iterdir()} == before
    assert ask(index, 1, (5,)) == [["d5"]]
    assert _ok(run("index", "add", index, _write(more, range(50, 60)), "--json"))["count"] == 60
