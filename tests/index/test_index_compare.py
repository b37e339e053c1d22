"""`ternarize index compare`: measures against pytrec_eval, and the table."""

import json

import faiss
import numpy as np
import pytest

from support.models import WORDS, save_tiny_bert
from ternarize_cli.evaluation.document_search import precision_and_ndcg, search


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(WORDS, size=10)) for _ in range(400)]
    data = tmp_path / "data"
    data.mkdir()
    (data / "corpus.jsonl").write_text("\n".join(json.dumps({"_id": f"d{i}", "text": t}) for i, t in enumerate(texts)))
    queries = [{"_id": f"q{i}", "text": texts[i] + " cat", "relevant": [f"d{i}"]} for i in range(20)]
    (data / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    return data


def test_measures_are_those_of_their_definitions():
    draw = np.random.default_rng(3)
    found = np.array([draw.permutation(30)[:10] for _ in range(12)])
    found[0, 4:] = -1  # the index found four
    found[1] = -1
    grades = [
        dict(zip(draw.permutation(30)[:15].tolist(), draw.integers(1, 4, 15).tolist(), strict=True)) for _ in found
    ]
    discount = 1 / np.log2(np.arange(10) + 2)
    gained = np.array([[good.get(row, 0) for row in rows] for rows, good in zip(found.tolist(), grades, strict=True)])
    best = np.array([sorted(good.values(), reverse=True)[:10] for good in grades])
    expected = (gained > 0).mean(), ((gained @ discount) / (best @ discount)).mean()
    assert [measure.mean() for measure in precision_and_ndcg(found, grades)] == pytest.approx(expected, rel=1e-12)
    precision, ndcg = precision_and_ndcg(np.array([[7, 3], [5, -1]]), [{3: 2}, {5: 1}])
    assert precision == pytest.approx([0.1, 0.1], rel=1e-12)
    assert ndcg == pytest.approx([1 / np.log2(3), 1], rel=1e-12)


@pytest.mark.slow
def test_three_pairs_of_encoders_on_every_kind(run, tiny_bert, folder, tmp_path):
    student = save_tiny_bert(tmp_path / "student", seed=1)
    result = run("index", "compare", folder, "-m", student, "--teacher", tiny_bert, "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    kinds = ["FLAT", "IVFFLAT", "LSH", "HNSW", "PQ", "RaBitQ", "RaBitQ + int8"]
    assert [(row["encoders"], row["index"]) for row in report["rows"]] == [
        (pair, kind) for pair in ("teacher", "student", "student → teacher") for kind in kinds
    ]
    by = {(row["encoders"], row["index"]): row for row in report["rows"]}
    assert by["teacher", "FLAT"]["recall"] == 1
    assert by["teacher", "FLAT"]["ndcg"] > 0.9
    assert by["student → teacher", "FLAT"]["ndcg"] < 0.2  # models that have nothing in common
    assert by["teacher", "FLAT"]["bytes_per_vector"] == pytest.approx(4 * 32, rel=0.01)
    assert [cost["model"] for cost in report["encoding"]] == [str(tiny_bert), str(student)]


def test_people_see_two_tables(run, tiny_bert, folder):
    lines = (folder / "corpus.jsonl").read_text().splitlines()[:100]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    result = run("index", "compare", folder, "-m", tiny_bert, "--teacher", tiny_bert)
    assert result.exit_code == 0, result.stderr
    assert "100 documents, 20 queries" in result.stdout
    assert "student → teacher" in result.stdout


def test_widths_must_agree(run, tiny_bert, folder, tmp_path):
    narrow = save_tiny_bert(tmp_path / "narrow", hidden_size=16)
    result = run("index", "compare", folder, "-m", narrow, "--teacher", tiny_bert)
    assert result.exit_code == 2
    assert "dimensions" in result.stderr


def test_a_query_does_not_find_the_document_that_it_is():
    vectors = np.random.default_rng(0).normal(size=(30, 8)).astype(np.float32)
    index = faiss.IndexFlatL2(8)
    index.add(vectors)
    found = search(index, vectors[:3], np.array([0, -1, 2]))
    expected = index.search(vectors[:3], 11)[1]
    np.testing.assert_array_equal(found, [expected[0, 1:], expected[1, :10], expected[2, 1:]])
