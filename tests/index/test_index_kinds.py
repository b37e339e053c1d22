"""Kinds of index by name, what they find compared with numpy, tuning, and queries by a student."""

import json
import subprocess
import sys

import faiss
import numpy as np
import psutil
import pytest

from support.models import WORDS, save_tiny_bert
from ternarize_cli.errors import InputError
from ternarize_cli.index.format import read_info
from ternarize_cli.index.presets import PRESETS, bytes_of, clusters, factory_of
from ternarize_cli.index.search import Searcher
from ternarize_cli.index.truth import find_truth, read_truth, recall

COUNT = 2000


def _texts(count: int = COUNT) -> list[str]:
    draw = np.random.default_rng(0)
    return [" ".join(draw.choice(WORDS, size=12)) for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("kinds") / "corpus.txt"
    path.write_text("\n".join(_texts()))
    return path


@pytest.fixture
def build(run, tiny_bert, corpus, tmp_path):
    def built(name, *options):
        out = tmp_path / f"ix-{name.replace(',', '-')}"
        result = run("index", "build", corpus, "-m", tiny_bert, "-o", out, "--factory", name, *options)
        assert result.exit_code == 0, result.stderr
        return out

    return built


@pytest.fixture(scope="module")
def vectors(tiny_bert):
    """What the tiny encoder makes of the corpus, and of a few of its texts with a word more."""
    from ternarize_cli.encoders import loading
    from ternarize_cli.vectors.text_encoder import TextEncoder

    encoder = loading.load_encoder(tiny_bert, device="cpu")
    documents = TextEncoder(encoder, role="document", normalize=True)(_texts())
    return documents, TextEncoder(encoder, role="query", normalize=True)([text + " cat" for text in _texts(50)])


def _by_numpy(queries, documents, k):
    return np.argsort(-(queries @ documents.T), axis=1)[:, :k]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if name != "auto"])
def test_every_kind_finds_what_numpy_finds_at_its_best_setting(run, build, name, vectors):
    index = build(name)
    tuned = run("index", "tune", index, "--recall", 0.9, "--json")
    assert tuned.exit_code == 0, tuned.stderr
    report = json.loads(tuned.stdout)
    searcher = Searcher(index)
    found = [[int(hit.id) - 1 for hit in hits] for hits in searcher.search([t + " cat" for t in _texts(50)])]
    reached = recall(np.array(found), _by_numpy(vectors[1], vectors[0], 10))
    assert reached >= (0.05 if name == "lsh" else 0.85)  # chance: .005
    assert report["reached"] == (name != "lsh")


@pytest.mark.slow
def test_truth_is_what_numpy_says(build, vectors):
    truth = read_truth(build("flat") / "truth.npz")
    assert truth.neighbours.shape == (1000, 100)
    similarities = vectors[0][truth.own] @ vectors[0].T
    similarities[np.arange(1000), truth.own] = -np.inf
    theirs = np.take_along_axis(similarities, truth.neighbours, axis=1)
    np.testing.assert_allclose(theirs, -np.sort(-similarities, axis=1)[:, :100], atol=1e-5)
    assert not (truth.neighbours == truth.own[:, None]).any()


def test_truth_comes_in_pieces():
    rng = np.random.default_rng(1)
    base, queries = rng.normal(size=(90, 8)).astype("f"), rng.normal(size=(5, 8)).astype("f")
    pieces = find_truth(queries, np.full(5, -1), iter(np.split(base, 3)), 90)
    true = np.argsort(((queries[:, None] - base[None]) ** 2).sum(axis=2), axis=1)
    np.testing.assert_array_equal(pieces.neighbours, true[:, :90])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "knob"), [("hnsw", "efSearch"), ("ivf", "nprobe")])
def test_a_preset_is_no_worse_than_faiss_by_hand(build, vectors, name, knob):
    index = build(name)
    info = read_info(index)
    by_hand = faiss.index_factory(info.dim, info.factory, faiss.METRIC_INNER_PRODUCT)
    by_hand.train(vectors[0])
    by_hand.add(vectors[0])
    faiss.ParameterSpace().set_index_parameter(by_hand, knob, 8)
    true = _by_numpy(vectors[1], vectors[0], 10)
    theirs = recall(by_hand.search(vectors[1], 10)[1], true)
    searcher = Searcher(index, settings={knob: 8})
    ours = [[int(hit.id) - 1 for hit in hits] for hits in searcher.search([t + " cat" for t in _texts(50)])]
    assert recall(np.array(ours), true) >= theirs - 0.02


def test_presets_follow_size_width_and_memory():
    assert [clusters(n) for n in (1, 50, 2000, 1_000_000, 100_000_000)] == [1, 1, 32, 4096, 32768]
    assert factory_of("auto", 5000, 384)[:2] == ("flat", "Flat")
    assert factory_of("auto", 1_000_000, 384)[0] == "hnsw"
    assert factory_of("auto", 5000, 384, memory=4_000_000)[0] == "ivf-rabitq"
    assert factory_of("auto", 1_000_000, 384, memory=600_000_000)[1] == "RR384,IVF4096,RaBitQ,Refine(SQ8)"
    assert factory_of("ivf", 100_000_000, 768)[1] == "IVF32768_HNSW32,Flat"
    assert factory_of("IVF7,PQ3", 10, 3) == ("", "IVF7,PQ3", None)
    for name, count, dim, options in (
        ("auto", 1_000_000, 384, {"memory": 1_000_000}),
        ("ivf-pq", 15, 32, {}),
        ("ivf-pq", 1000, 30, {}),
        ("lsh", 1000, 32, {"normalized": False}),
    ):
        with pytest.raises(InputError):
            factory_of(name, count, dim, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("auto", "hnsw")])
def test_sizes_are_foretold(build, name):
    index = build(name)
    assert (index / "index.faiss").stat().st_size == pytest.approx(bytes_of(name, COUNT, 32), rel=0.2)


@pytest.mark.slow
def test_tuning_stores_what_searches_use(run, build):
    index = build("hnsw")
    before = run("index", "tune", index, "--dry-run", "--json")
    assert read_info(index).search == {}
    assert json.loads(before.stdout)["stored"] is False
    result = run("index", "tune", index, "--recall", 0.5)
    assert result.exit_code == 0, result.stderr
    assert "→ efSearch" in result.stdout
    assert "searches now use efSearch" in result.stderr
    assert set(read_info(index).search) == {"efSearch"}
    assert run("index", "info", index).exit_code == 0
    assert run("index", "search", index, "cat").exit_code == 0


@pytest.mark.slow
def test_the_command_searches_as_it_was_tuned(run, build, vectors):
    index = build("ivf")
    assert run("index", "tune", index, "--recall", 0.999).exit_code == 0
    query = _texts(1)[0] + " cat"
    found = json.loads(run("index", "search", index, query, "--json").stdout)["results"]
    assert [int(hit["id"]) - 1 for hit in found] == _by_numpy(vectors[1][:1], vectors[0], 10)[0].tolist()
    narrow = json.loads(run("index", "search", index, query, "--nprobe", 1, "--json").stdout)["results"]
    assert [hit["id"] for hit in narrow] != [hit["id"] for hit in found]


@pytest.mark.slow
def test_a_recall_out_of_reach_is_said(run, build):
    result = run("index", "tune", build("lsh"), "--recall", 1)
    assert result.exit_code == 0
    assert "no setting reaches a recall of 1" in result.stderr


@pytest.mark.slow
def test_tuning_on_a_busy_machine_is_warned_of(run, build):
    index = build("ivf")
    starting = (  # whose end makes what it started a child of another process: children count as ours
        "import subprocess, sys; busy = 'import time\\nwhile time.process_time() < 60: pass'\n"
        "none = subprocess.DEVNULL; print(subprocess.Popen([sys.executable, '-c', busy], stdout=none, stderr=none).pid)"
    )
    started = subprocess.run([sys.executable, "-c", starting], capture_output=True, text=True, check=True)
    other = psutil.Process(int(started.stdout))
    try:
        result = run("index", "tune", index, "--dry-run", "--json")
    finally:
        other.kill()
    assert json.loads(result.stdout)["others_percent"] > 25
    assert "the machine was busy" in result.stderr


@pytest.mark.parametrize("factory", ["ivf-pq", pytest.param("OPQ2,IVF2,PQ2", marks=pytest.mark.slow)])
def test_few_texts_to_train_on_are_said_once(run, tiny_bert, tmp_path, capfd, factory):
    (tmp_path / "c.txt").write_text("\n".join(_texts(400)))
    result = run("index", "build", tmp_path / "c.txt", "-m", tiny_bert, "-o", tmp_path / "ix", "--factory", factory)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.count("vectors: few to train") == 1
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.slow
def test_tuning_draws(run, build, tmp_path):
    pytest.importorskip("matplotlib")
    index = build("ivf")
    assert run("index", "tune", index, "--plot", tmp_path / "tune.png").exit_code == 0
    assert (tmp_path / "tune.png").read_bytes().startswith(b"\x89PNG")


def test_the_users_queries_judge(run, build, tmp_path):
    (tmp_path / "q.txt").write_text("cat dog\nbird\n")
    index = build("flat", "--queries", tmp_path / "q.txt")
    assert json.loads(run("index", "tune", index, "--json").stdout)["queries"] == 2
    assert (read_truth(index / "truth.npz").own == -1).all()


def test_a_query_that_is_a_document_is_not_its_own_neighbour(run, tiny_bert, tmp_path):
    documents = [{"_id": f"d{i}", "title": "cat", "text": text} for i, text in enumerate(_texts(30))]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, documents)))
    queries = [{"_id": "d3", "text": documents[3]["text"]}, {"_id": "d4", "text": "bird"}, {"text": "dog"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, queries)))
    index, arguments = tmp_path / "ix", ("-m", tiny_bert, "--queries", tmp_path / "q.jsonl", "--factory", "flat")
    assert run("index", "build", tmp_path / "c.jsonl", *arguments, "-o", index).exit_code == 0
    truth = read_truth(index / "truth.npz")
    assert truth.own.tolist() == [3, -1, -1]  # d4 has another text: its number is a coincidence
    assert 3 not in truth.neighbours[0]
    tuned = json.loads(run("index", "tune", index, "-k", 5, "--json").stdout)
    assert tuned["chosen"]["recall"] == 1


@pytest.mark.parametrize(("arguments", "message"), [(["-k", 101], "between 1 and 100"), (["-k", 0], "-k")])
def test_tuning_knows_a_hundred_neighbours(run, build, arguments, message):
    result = run("index", "tune", build("flat"), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_one_document_has_no_neighbours(run, tiny_bert, tmp_path):
    (tmp_path / "one.txt").write_text("cat\n")
    assert run("index", "build", tmp_path / "one.txt", "-m", tiny_bert, "-o", tmp_path / "ix").exit_code == 0
    result = run("index", "tune", tmp_path / "ix")
    assert result.exit_code == 2
    assert "1 document" in result.stderr


def test_ids_that_come_twice_are_refused(run, tiny_bert, tmp_path):
    lines = [{"id": i % 4, "text": f"cat {i}"} for i in range(6)]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = run("index", "build", tmp_path / "c.jsonl", "-m", tiny_bert, "-o", tmp_path / "ix")
    assert result.exit_code == 2
    assert "texts 1 and 5 have the same id '0'; 1 more text with an id of another" in result.stderr
    assert not (tmp_path / "ix").exists()


def test_bad_lines_are_skipped_and_counted_where_that_is_asked(run, tiny_bert, tmp_path):
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "cat"}\n\xff\n{"text": 3}\nno json\n{"text": "dog"}\n{"x": 1}\n')
    arguments = ["index", "build", tmp_path / "c.jsonl", "-m", tiny_bert, "-o", tmp_path / "ix"]
    assert "line 2: not UTF-8" in run(*arguments).stderr
    result = run(*arguments, "--skip-bad", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["count"], report["skipped"]) == (2, 4)
    assert "4 texts were skipped" in result.stderr
    assert "line 2: not UTF-8" in result.stderr


@pytest.mark.slow
def test_a_student_may_ask_what_its_teacher_encoded(run, build, tiny_bert, tmp_path):
    index = build("flat")
    sha = read_info(index).model_sha256
    student = save_tiny_bert(tmp_path / "student", seed=1)
    refused = run("index", "search", index, "cat", "-m", student)
    assert refused.exit_code == 2
    assert run("index", "search", index, "cat", "-m", student, "--asymmetric").exit_code == 0
    (student / "distillation.json").write_text(json.dumps({"teacher_sha256": sha}))
    result = run("index", "search", index, "cat", "-m", student)
    assert result.exit_code == 0, result.stderr
    assert f"queries encoded by {student}, documents by {tiny_bert}" in result.stderr


@pytest.mark.slow
def test_vectors_of_another_width_are_refused(run, build, tmp_path):
    narrow = save_tiny_bert(tmp_path / "narrow", hidden_size=16)
    result = run("index", "search", build("flat"), "cat", "-m", narrow, "--asymmetric")
    assert result.exit_code == 2
    assert "vectors of 16 dimensions; the index has 32" in result.stderr


@pytest.mark.slow
def test_a_search_tells_encoding_from_searching(run, build):
    index = build("flat")
    result = run("index", "search", index, "cat", "--json")
    took = json.loads(result.stdout)["milliseconds"]
    assert set(took) == {"encoding", "searching", "reading"}
    assert took["encoding"] > 0 < took["searching"]


def test_a_damaged_truth_is_said(run, build):
    index = build("flat")
    content = bytearray((index / "truth.npz").read_bytes())
    content[:4] = b"\0\0\0\0"
    (index / "truth.npz").write_bytes(content)
    assert "truth.npz is damaged" in run("index", "tune", index).stderr
    assert "truth.npz is damaged" in run("index", "info", index).stderr
