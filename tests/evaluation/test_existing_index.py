"""The student's queries in the teacher's documents: the numbers, where they are shown, and their gate."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from support.models import save_tiny_bert
from support.sentences import load, make_sentences
from support.task_files import write_jsonl, write_pairs, write_retrieval
from ternarize_cli.errors import GateMissedError, InputError
from ternarize_cli.evaluation.card_results import results_of, table_of
from ternarize_cli.evaluation.compare import Comparison, Evaluation, Retention
from ternarize_cli.evaluation.existing_index import ExistingIndex, existing_index
from ternarize_cli.evaluation.gates import check, parse_gates
from ternarize_cli.evaluation.reading import read_tasks
from ternarize_cli.evaluation.samples import Sides

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents, and 20 queries that hold most of a document's words."""
    texts = make_sentences()
    queries = [{"_id": f"q{i}", "text": texts[i] + " cat", "relevant": [f"d{i}"]} for i in range(20)]
    folder = write_retrieval(tmp_path_factory.mktemp("data") / "pages", queries)
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": text} for i, text in enumerate(texts)])
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "student", seed=1)


def vectors(seed: int, rows: int, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_the_measures_of_retrieval_are_those_of_their_definitions(pages: Path) -> None:
    (data,) = read_tasks(retrieval=[pages])
    documents = vectors(1, 60)
    teacher = Sides(documents[:20] + vectors(0, 20), documents)
    student = Sides(teacher.queries + vectors(2, 20), 3 * teacher.documents)
    found = existing_index(data, student, teacher)
    nearest = [np.argsort(-unit(sides.queries) @ unit(teacher.documents).T)[:, :10] for sides in (student, teacher)]
    gains = [[sum(1 / np.log2(np.flatnonzero(row == i) + 2)) for i, row in enumerate(rows)] for rows in nearest]
    assert found.score == pytest.approx(np.mean(gains[0]), rel=1e-6)
    assert found.retention == pytest.approx(np.mean(gains[0]) / np.mean(gains[1]), rel=1e-6)
    assert found.low < found.retention < found.high
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)]
    assert found.overlap == pytest.approx(np.mean(shared))
    assert found.query_cosine == pytest.approx(np.mean(np.sum(unit(student.queries) * unit(teacher.queries), axis=1)))
    assert found.document_cosine == pytest.approx(1)


def test_pairs_have_the_first_sentence_by_the_student_and_the_second_by_the_teacher(tmp_path: Path) -> None:
    rows = [(f"first {i}", f"second {i}", float(i)) for i in range(15)] + [("first 15", "second 0", 15.0)]
    (data,) = read_tasks(sts=[write_pairs(tmp_path / "pairs.csv", rows)])
    teacher, student = Sides(vectors(0, 16), vectors(1, 16)), Sides(vectors(2, 16), vectors(3, 16))
    teacher.documents[15] = teacher.documents[0]  # one text has one vector
    found = existing_index(data, student, teacher)
    cosines = [np.sum(unit(sides.queries) * unit(teacher.documents), axis=1) for sides in (student, teacher)]
    ranks = [np.argsort(np.argsort(values)) for values in (*cosines, data.scores)]
    expected = [np.corrcoef(values, ranks[2])[0, 1] for values in ranks[:2]]
    assert found.score == pytest.approx(expected[0])
    assert found.retention == (pytest.approx(expected[0] / expected[1]) if expected[1] > 0 else None)
    different = unit(teacher.documents[:15])
    nearest = [np.argsort(-unit(sides.queries) @ different.T)[:, :10] for sides in (student, teacher)]
    assert found.overlap == pytest.approx(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(*nearest, strict=True)]))


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "pages", [{"_id": "d1", "text": "the", "relevant": ["d2"]}])
    (data,) = read_tasks(retrieval=[folder])
    documents = np.eye(3, 8, dtype=np.float32)
    queries = documents[:1] + 0.5 * documents[1:2]  # nearest to itself, then to d2
    assert existing_index(data, Sides(queries, documents), Sides(queries, documents)).score == 1


def test_vectors_of_another_width_have_no_numbers(pages: Path) -> None:
    (data,) = read_tasks(retrieval=[pages])
    found = existing_index(data, Sides(vectors(0, 20, 4), vectors(0, 60, 4)), Sides(vectors(0, 20), vectors(0, 60)))
    assert found == ExistingIndex(True, reason="vectors of 4 numbers don't fit an index of 8")


def test_eval_shows_the_numbers_and_encodes_nothing_again(
    run: Run, tiny_bert: Path, student: Path, pages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ternarize_cli.evaluation.encoder import LocalEncoder

    seen: list[str] = []
    encode = LocalEncoder._encode_batch

    def counting(self: Any, by: Any, batch: list[Any], **kwargs: Any) -> Any:
        seen.extend(f"{self.name} {text}" for text in batch)
        return encode(self, by, batch, **kwargs)

    monkeypatch.setattr(LocalEncoder, "_encode_batch", counting)
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path / "cache"))
    files = ("--report", tmp_path / "page.html", "--junit", tmp_path / "junit.xml")
    arguments = ("eval", student, "--against", tiny_bert, "--retrieval", pages, "--min-retention", "index=1e-6")
    result = run(*arguments, *files, "--json")
    assert result.exit_code == 0, result.stderr
    payload = json.loads(result.stdout)
    index = payload["tasks"][0]["index"]
    texts = [row["text"] for row in map(json.loads, (pages / "corpus.jsonl").read_text().splitlines())]
    queries = [row["text"] for row in map(json.loads, (pages / "queries.jsonl").read_text().splitlines())]
    asked, documents = load(student).encode(queries), load(tiny_bert).encode(texts)
    ranks = [np.flatnonzero(np.argsort(-row) == i)[0] for i, row in enumerate(asked @ documents.T)]
    assert index["score"] == pytest.approx(np.mean([1 / np.log2(r + 2) if r < 10 else 0 for r in ranks]), abs=1e-6)
    assert index["retention"] == pytest.approx(index["score"] / payload["tasks"][0]["teacher"], abs=1e-4)
    assert index["retention"] == payload["mean_index_retention"] == payload["candidates"][0]["mean_index_retention"]
    assert len(seen) == 2 * (len(queries) + len(texts))  # each text once by each model

    again = run(*arguments)  # from the cache
    assert again.exit_code == 0, again.stderr
    assert len(seen) == 2 * (len(queries) + len(texts))
    table = again.stdout.split("with the teacher's index")[1]
    assert [f"{index[name]:.4f}" in table for name in ("score", "retention", "query_cosine", "overlap")] == [True] * 4
    assert f"{index['score']:.4f}" in (tmp_path / "page.html").read_text().split("With the teacher&#x27;s index")[-1]
    case = ElementTree.parse(tmp_path / "junit.xml").find("testsuite/testcase/properties")
    assert f"{index['retention']:.6g}" in {one.get("value") for one in case}


def test_a_model_keeps_all_of_itself_with_its_own_index(run: Run, tiny_bert: Path, pages: Path) -> None:
    arguments = ("--retrieval", pages, "--perturb", "typos", "--rival", "truncate-16", "--min-retention", "index=1")
    result = run("eval", tiny_bert, "--against", tiny_bert, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    payload = json.loads(result.stdout)
    index = payload["tasks"][0]["index"]
    assert (index["retention"], index["overlap"]) == (1, 1)
    rival = payload["candidates"][1]["tasks"][0]["index"]
    assert (rival["score"], rival["reason"]) == (None, "vectors of 16 numbers don't fit an index of 32")
    assert payload["candidates"][1]["mean_index_retention"] is None


def compared(*indexes: ExistingIndex | None) -> Comparison:
    tasks = tuple(
        Retention(name, "ndcg_at_10", 9, 0.8, 0.8, 1.0, index=index)
        for name, index in zip("abc", indexes, strict=False)
    )
    return Comparison((Evaluation("student", "s", 1, ()),), Evaluation("teacher", "t", 2, ()), (tasks,))


def test_the_card_has_what_is_kept_with_the_index() -> None:
    comparison = compared(ExistingIndex(True, 0.72, 0.9, 0.85, 0.95), None)
    table = table_of(comparison).splitlines()
    assert [line.split("|")[-3].strip() for line in table[:4]] == ["kept with its index", "---:", "90.0%", ""]
    assert [line.split("|")[-2].strip() for line in table[:4]] == ["95%", "---:", "85.0% to 95.0%", ""]
    assert "With its index: queries by this model" in table[-1]
    first, second = results_of(comparison, {}, "feature-extraction")
    assert (first.metric_args["index_retention"], "index_retention" in second.metric_args) == (0.9, False)
    assert first.metric_args["index_retention_interval"] == [0.85, 0.95]


def test_the_gate_takes_the_mean_over_retrieval_tasks() -> None:
    comparison = compared(ExistingIndex(True, 0.7, 0.9), ExistingIndex(True, 0.7, 1.0), ExistingIndex(False, 0.1, 0.1))
    check(parse_gates(["index=0.95"], ["a", "b", "c"], ["a", "b"]), comparison)
    noisy = replace(compared(ExistingIndex(True, 0.7, 0.95), ExistingIndex(True, 0.1, 0.1)), noisy=frozenset({"b"}))
    check(parse_gates(["index=0.95"], ["a", "b"], ["a"]), noisy)
    with pytest.raises(GateMissedError, match=r"the retention with the teacher's index is 0\.95, below 0\.96"):
        check(parse_gates(["index=0.96"], ["a", "b", "c"], ["a", "b"]), comparison)
    with pytest.raises(GateMissedError, match=r"index is undefined \(a: vectors of 4 numbers don't fit"):
        check(
            parse_gates(["index=0.1"], ["a"], ["a"]),
            compared(ExistingIndex(True, reason="vectors of 4 numbers don't fit an index of 8")),
        )


@pytest.mark.parametrize(
    ("tasks", "retrieval", "message"),
    [
        (["pairs"], [], "no task is retrieval from files"),
        (["pages", "index"], ["pages"], "there is a task named 'index', and this is also the name of the gate"),
    ],
)
def test_a_gate_without_retrieval_or_with_two_meanings_is_refused(
    tasks: list[str], retrieval: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        parse_gates(["index=0.9"], tasks, retrieval)


def test_a_gate_without_a_teacher_is_refused(run: Run, tiny_bert: Path, pages: Path) -> None:
    result = run("eval", tiny_bert, "--retrieval", pages, "--min-retention", "index=0.9")
    assert result.exit_code == 2
    assert "compares with a teacher" in result.stderr
