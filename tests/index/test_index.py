"""`ternarize index`: build, search, info, and what happens when something is wrong or is killed."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import faiss
import numpy as np
import pytest

from support.models import WORDS, save_tiny_bert
from support.warm import shared
from ternarize_cli.index.format import StoredFile, read_info, stored_file, write_info
from ternarize_cli.storage.files import partial_path


def _texts(count: int) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=8)) for _ in range(count)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps({"_id": f"d{i}", "text": text}) for i, text in enumerate(_texts(50))))
    return path


@pytest.fixture
def index(run, tiny_bert, corpus, tmp_path):
    assert run("index", "build", corpus, "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    return tmp_path / "ix"


def _results(result) -> list[dict]:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["results"]


def test_a_text_finds_itself_first(run, index):
    text = _texts(50)[17]
    found = _results(run("index", "search", index, text, "-k", 3, "--json"))
    assert [hit["rank"] for hit in found] == [1, 2, 3]
    assert (found[0]["query"], found[0]["id"], found[0]["text"]) == (text, "d17", text)
    assert found[0]["score"] == pytest.approx(1, abs=1e-5)
    assert found[0]["score"] > found[1]["score"] >= found[2]["score"]


def test_queries_come_from_arguments_files_and_stdin(run, index, tmp_path):
    texts = _texts(50)
    (tmp_path / "q.txt").write_text(f"{texts[4]}\n{texts[9]}\n")
    from_file = _results(run("index", "search", index, texts[1], "--queries", tmp_path / "q.txt", "-k", 1, "--json"))
    assert [hit["id"] for hit in from_file] == ["d1", "d4", "d9"]
    from_stdin = _results(run("index", "search", index, "--queries", "-", "-k", 1, "--json", input=texts[4]))
    assert [hit["id"] for hit in from_stdin] == ["d4"]


def test_people_see_query_score_id_and_text(run, index):
    text = _texts(50)[3]
    lines = run("index", "search", index, text, "-k", 1).stdout.splitlines()
    assert lines == [text, f"   1.0000  d3  {text}"]


@pytest.mark.slow
@pytest.mark.parametrize("factory", ["HNSW32", "IVF4,Flat", "SQ8", "PCA16,IVF2,PQ8x4fs"])
@pytest.mark.parametrize("metric", ["ip", "l2"])
def test_any_factory_string_works(run, tiny_bert, corpus, tmp_path, factory, metric):
    out = tmp_path / "ix"
    built = run(
        "index", "build", corpus, "-m", tiny_bert, "-o", out, "--factory", factory, "--metric", metric, "--json"
    )
    assert built.exit_code == 0, built.stderr
    assert json.loads(built.stdout)["factory"] == factory
    ids = [hit["id"] for hit in _results(run("index", "search", out, _texts(50)[20], "-k", 10, "--json"))]
    assert "d20" in ids


def test_the_default_name_comes_from_the_corpus(run, tiny_bert, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("index", "build", corpus, "-m", tiny_bert).exit_code == 0
    assert (tmp_path / "corpus-index" / "index.faiss").is_file()
    assert run("index", "build", "-", "-m", tiny_bert, input="cat").exit_code == 2


def test_small_shards_give_the_same_index(run, tiny_bert, corpus, index, tmp_path):
    built = run("index", "build", corpus, "-m", tiny_bert, "-o", tmp_path / "two", "--shard-size", 7, "--json")
    assert json.loads(built.stdout)["shards"] == 8
    one, two = (faiss.read_index(str(folder / "index.faiss")) for folder in (index, tmp_path / "two"))
    np.testing.assert_allclose(one.reconstruct_n(0, 50), two.reconstruct_n(0, 50), atol=1e-6)
    written = ["documents.jsonl", "index.faiss", "index.json", "offsets.bin", "truth.npz"]
    assert sorted(p.name for p in (tmp_path / "two").iterdir()) == written


def test_one_document_is_a_corpus_and_k_may_exceed_it(run, tiny_bert, tmp_path):
    (tmp_path / "one.txt").write_text("the cat\n")
    assert run("index", "build", tmp_path / "one.txt", "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    assert [hit["id"] for hit in _results(run("index", "search", tmp_path / "ix", "dog", "-k", 99, "--json"))] == ["1"]


def test_info_tells_how_the_index_was_made(run, index, tiny_bert):
    record = json.loads(run("index", "info", index, "--json").stdout)
    assert (record["count"], record["dim"], record["metric"], record["normalized"]) == (50, 32, "ip", True)
    assert (record["model"], record["factory"], record["seed"]) == (str(tiny_bert), "Flat", 0)
    assert record["bytes"] == sum(p.stat().st_size for p in index.iterdir() if p.name != "index.json")
    shown = run("index", "info", index).stdout
    assert all(words in shown for words in ("documents", "50", "32 dimensions, of length 1", "inner product", "Flat"))
    assert record["model_sha256"] not in shown


def test_a_long_text_is_said_once(run, tiny_bert, tmp_path):
    (tmp_path / "long.txt").write_text("cat " * 100_000 + "\nshort\n" + "dog " * 300)
    result = run("index", "build", tmp_path / "long.txt", "-m", tiny_bert, "-o", tmp_path / "ix", "--shard-size", 1)
    assert result.exit_code == 0
    assert result.stderr.count("longer than") == 1
    assert "2 of 3 texts" in result.stderr


@pytest.mark.slow
def test_knobs_fit_the_kind_of_index(run, tiny_bert, corpus, index, tmp_path):
    ivf = tmp_path / "ivf"
    assert run("index", "build", corpus, "-m", tiny_bert, "-o", ivf, "--factory", "IVF10,Flat").exit_code == 0
    near = _results(run("index", "search", ivf, "cat", "-k", 50, "--nprobe", 1, "--json"))
    far = _results(run("index", "search", ivf, "cat", "-k", 50, "--nprobe", 10, "--json"))
    assert len(near) < len(far) == 50
    result = run("index", "search", index, "cat", "--nprobe", 3)
    assert result.exit_code == 2
    assert "an index 'Flat' has no nprobe" in result.stderr


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Bogus", "could not parse index string Bogus"),
        ("IVF256,Flat", "wants 256 clusters"),
        ("IVF0,Flat", "without any part"),
        ("HNSW0", "without any part"),
        ("PQ7", "should be a multiple"),
        ("PQ8", "should be at least as large as number of clusters"),
        ("IDMap,Flat", "use add_with_ids"),
    ],
)
def test_a_factory_that_does_not_fit_is_refused(run, tiny_bert, corpus, tmp_path, factory, message):
    result = run("index", "build", corpus, "-m", tiny_bert, "-o", tmp_path / "ix", "--factory", factory)
    assert result.exit_code == 2
    assert message in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "holds no text"), (None, "can't be read"), (b"\xff\n", "line 1: not UTF-8")]
)
def test_an_unusable_corpus_leaves_nothing(run, tiny_bert, tmp_path, content, message):
    if content is not None:
        (tmp_path / "c.txt").write_bytes(content)
    before = sorted(tmp_path.iterdir())
    result = run("index", "build", tmp_path / "c.txt", "-m", tiny_bert, "-o", tmp_path / "ix")
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_an_existing_output_needs_force(run, tiny_bert, corpus, index):
    result = run("index", "build", corpus, "-m", tiny_bert, "-o", index)
    assert result.exit_code == 2
    assert "exists already" in result.stderr
    assert run("index", "build", corpus, "-m", tiny_bert, "-o", index, "--force").exit_code == 0


@pytest.mark.parametrize("arguments", [["-k", 0], ["-k", -1], ["-k", "ten"]])
def test_k_is_a_positive_number(run, index, arguments):
    result = run("index", "search", index, "cat", *arguments)
    assert result.exit_code == 2
    assert "-k" in result.stderr


def test_a_search_needs_a_query(run, index):
    result = run("index", "search", index)
    assert result.exit_code == 2
    assert "there is no query" in result.stderr


def test_another_model_is_refused_by_its_hash(run, index, tmp_path):
    other = save_tiny_bert(tmp_path / "other", seed=1)
    result = run("index", "search", index, "cat", "--model", other)
    assert result.exit_code == 2
    assert "is not the model that made this index" in result.stderr
    assert f"the index has {read_info(index).model_sha256[:12]}" in result.stderr
    assert "--asymmetric, if" in result.stderr


@pytest.mark.slow
def test_a_model_may_move_but_not_change(run, corpus, tmp_path):
    model = save_tiny_bert(tmp_path / "model")
    index = tmp_path / "ix"
    assert run("index", "build", corpus, "-m", model, "-o", index).exit_code == 0
    moved = model.rename(tmp_path / "moved")
    gone = run("index", "search", index, "cat")
    assert gone.exit_code == 2
    assert "the model that made this index is gone" in gone.stderr
    assert "--model" in gone.stderr
    assert len(_results(run("index", "search", index, "cat", "--model", moved, "--json"))) == 10
    moved.rename(model)
    (model / "1_Pooling" / "config.json").write_text('{"word_embedding_dimension": 32, "pooling_mode_cls_token": true}')
    changed = run("index", "search", index, "cat")
    assert changed.exit_code == 2
    assert "has changed since the index was built" in changed.stderr


def _truncate(folder):
    path = folder / "index.faiss"
    path.write_bytes(path.read_bytes()[:-100])


def _garble(folder):
    path = folder / "index.faiss"
    path.write_bytes(b"XXXX" + path.read_bytes()[4:])


def _lose(folder):
    (folder / "documents.jsonl").unlink()


def _break_record(folder):
    (folder / "index.json").write_text('{"format_version": 1')


def _future(folder):
    (folder / "index.json").write_text('{"format_version": 99}')


def _exchange(folder):
    other = faiss.IndexFlatIP(32)
    other.add(np.ones((3, 32), dtype=np.float32))
    info = read_info(folder)
    faiss.write_index(other, str(folder / "index.faiss"))
    write_info(folder, replace(info, files={**info.files, "index.faiss": stored_file(folder / "index.faiss")}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "index.faiss is damaged"),
        (_garble, "index.faiss is damaged"),
        (_lose, "documents.jsonl is missing"),
        (_break_record, "index.json is damaged"),
        (_future, "index format 99; this ternarize reads version 4"),
    ],
)
def test_a_damaged_index_is_named(run, index, damage, message):
    damage(index)
    for command in (["search", index, "cat"], ["info", index]):
        result = run("index", *command)
        assert result.exit_code == 2
        assert message in result.stderr


@pytest.mark.slow
def test_an_index_of_other_vectors_is_not_searched(run, index):
    _exchange(index)
    result = run("index", "search", index, "cat")
    assert result.exit_code == 2
    assert "holds 3 vectors of 32 dimensions; index.json says 50 of 32" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"), [("metric", "cosine"), ("kind", 3), ("search", {"nprobe": "x"}), ("deleted", 1), ("more", 1)]
)
def test_an_edited_record_is_refused_by_all_commands(run, index, tmp_path, field, value):
    record = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps({**record, field: value}))
    (tmp_path / "more.txt").write_text("cat\n")
    arguments = {
        "search": ["cat"],
        "info": [],
        "tune": [],
        "compact": [],
        "add": [tmp_path / "more.txt"],
        "delete": ["d1"],
    }
    for command, more in arguments.items():
        result = run("index", command, index, *more)
        assert result.exit_code == 2
        assert "index.json is damaged or was edited" in result.stderr


def _at_equal_size(path):
    path.write_bytes(b"\xff" * path.stat().st_size)


@pytest.mark.parametrize("name", ["documents.jsonl", "offsets.bin"])
def test_damaged_documents_are_named(run, index, name):
    _at_equal_size(index / name)
    result = run("index", "search", index, "cat")
    assert result.exit_code == 2
    assert f"{name}" in result.stderr
    assert "build the index again" in result.stderr


@pytest.mark.parametrize("name", ["documents.jsonl", "offsets.bin", "truth.npz", "index.faiss"])
def test_what_changes_an_index_does_not_sign_what_is_damaged(run, index, tmp_path, name):
    assert run("index", "delete", index, "d1").exit_code == 0
    content = bytearray((index / name).read_bytes())
    content[-1] ^= 1
    (index / name).write_bytes(content)
    (tmp_path / "more.txt").write_text("cat\n")
    for command in (["add", index, tmp_path / "more.txt"], ["compact", index]):
        result = run("index", *command)
        assert result.exit_code == 2
        assert f"{name} is damaged" in result.stderr


def test_a_stored_setting_of_another_kind_is_said(run, index):
    write_info(index, replace(read_info(index), search={"nprobe": 8.0}))
    result = run("index", "search", index, "cat")
    assert result.exit_code == 2
    assert "was tuned as another kind of index" in result.stderr


def test_what_steers_a_terminal_is_shown_not_sent(run, tiny_bert, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps({"id": "a\x1b[31m\nb", "text": "cat"}))
    assert run("index", "build", tmp_path / "c.jsonl", "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    assert r"a\x1b[31m\nb" in run("index", "search", tmp_path / "ix", "cat").stdout
    assert _results(run("index", "search", tmp_path / "ix", "cat", "--json"))[0]["id"] == "a\x1b[31m\nb"


def test_names_that_are_not_utf_8_are_no_reason_to_fail(run, tiny_bert, tmp_path):
    folder = tmp_path / os.fsdecode(b"w\xff")
    folder.mkdir()
    (folder / os.fsdecode(b"a\xff.txt")).write_text("cat\n")
    assert run("index", "build", folder, "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    assert _results(run("index", "search", tmp_path / "ix", "cat", "--json"))[0]["id"] == r"a\xff.txt:1"


def test_wrong_options(run, index, corpus, tiny_bert, tmp_path):
    shards = ["encode", tiny_bert, tmp_path, "--shards", "-o", tmp_path / "v"]
    assert "overlap" in run(*shards).stderr
    build = ["index", "build", corpus, "-m", tiny_bert, "-o", tmp_path / "no", "--memory", 1]
    assert "--memory lets `auto` choose" in run(*build, "--factory", "hnsw").stderr
    assert "--memory lets `auto` choose" in run(*build, "--on-disk").stderr
    assert "--asymmetric needs the model" in run("index", "search", index, "cat", "--asymmetric").stderr
    assert "a query is empty" in run("index", "search", index, "cat", " ").stderr
    assert not (tmp_path / "no").exists()


def test_info_sees_a_flipped_bit(run, index):
    path = index / "index.faiss"
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    result = run("index", "info", index)
    assert result.exit_code == 2
    assert "its sha256 has changed" in result.stderr


def test_a_folder_that_is_no_index_says_so(run, tmp_path):
    assert "is no index" in run("index", "search", tmp_path, "cat").stderr
    assert "does not exist" in run("index", "info", tmp_path / "none").stderr


def test_the_record_survives_writing_and_reading(index):
    info = read_info(index)
    assert isinstance(info.files["index.faiss"], StoredFile)
    before = (index / "index.json").read_text()
    write_info(index, info)
    assert (index / "index.json").read_text() == before


@pytest.mark.slow
def test_a_killed_build_leaves_nothing_and_resumes(run, tiny_bert, tmp_path):
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(_texts(2000)))
    out = tmp_path / "ix"
    arguments = ["index", "build", str(corpus), "-m", str(tiny_bert), "-o", str(out), "--shard-size", "20"]
    process = shared().start(*arguments, output=subprocess.DEVNULL)
    shards = partial_path(out) / "vectors"
    deadline = time.monotonic() + 120
    while len(list(shards.glob("*.npy"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not out.exists()
    assert partial_path(out).is_dir()

    resumed = run(*arguments, "--resume", "--json")
    assert resumed.exit_code == 0, resumed.stderr
    report = json.loads(resumed.stdout)
    assert 2 <= report["reused"] < report["shards"] == 100
    assert not partial_path(out).exists()
    assert run(*arguments[:4], tiny_bert, "-o", tmp_path / "fresh").exit_code == 0
    one, two = (faiss.read_index(str(folder / "index.faiss")) for folder in (out, tmp_path / "fresh"))
    np.testing.assert_allclose(one.reconstruct_n(0, 2000), two.reconstruct_n(0, 2000), atol=1e-6)
    assert json.loads(run("index", "info", out, "--json").stdout)["count"] == 2000


def test_a_dash_is_stdin_as_a_query(run, tiny_bert, tmp_path):
    (tmp_path / "x.txt").write_text("cat\nriver stone\n")
    assert run("index", "build", tmp_path / "x.txt", "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    result = run("index", "search", tmp_path / "ix", "dog", "-", "-k", 1, "--json", input="cat\nriver stone\n")
    assert result.exit_code == 0, result.stderr
    assert [row["query"] for row in json.loads(result.stdout)["results"]] == ["dog", "cat", "river stone"]
    for command, message in (
        (("search", tmp_path / "ix", "-", "-"), "stdin is named twice"),
        (("search", tmp_path / "ix", "-", "--queries", "-"), "stdin is named twice"),
        (("search", tmp_path / "ix", "--image", "-"), "is an index of texts"),
        (("delete", tmp_path / "ix", "-"), "--ids -"),
        (("build", "-", "-m", tiny_bert, "--queries", "-", "-o", tmp_path / "no"), "stdin is named twice"),
    ):
        result = run("index", *command, input="cat\n")
        assert result.exit_code == 2
        assert message in result.stderr
    result = run("eval", tiny_bert, "--sts", "-", input="a,b,1\n")
    assert result.exit_code == 2
    assert "write stdin to a file" in result.stderr
