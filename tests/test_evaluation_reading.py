"""Files for `ternarize eval`: what is wrong is named with file and line; names, filters and hashes."""

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import WORDS

from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.reading import read_tasks


def write_pairs(path: Path, rows: list[tuple[str, str, float]]) -> Path:
    path.write_text("".join(f'"{a}",{b},{score!r}\n' for a, b, score in rows), encoding="utf-8")
    return path


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")


def write_retrieval(folder: Path, queries: list[dict[str, Any]] | None = None) -> Path:
    """Three documents; by default one query, q1, that d1 answers."""
    write_jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "text": word} for i, word in enumerate(WORDS[:3], start=1)])
    write_jsonl(folder / "queries.jsonl", queries or [{"_id": "q1", "text": "the", "relevant": ["d1"]}])
    return folder


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("cat,dog,1\ncat,dog\n", "line 2: 2 columns where 3 are needed"),
        ("cat,dog,1\n\ncat, a dog,tree,2\n", "line 3: 4 columns"),
        ('"a\ncat",dog,1\nb,c\n', "line 3: 2 columns"),
        ("cat,dog,1\ncat,dog,high\n", "line 2: the score 'high' is not a number"),
        ("sentence1,sentence2,score\n", "line 1: the score 'score' is not a number"),
        ("cat,dog,1\ncat,dog,nan\n", "line 2: the score 'nan' is not a finite number"),
        ("cat,dog,inf\n", "line 1: the score 'inf' is not a finite number"),
        ("cat,,1\n", "line 1: the second sentence is empty"),
        ('cat,dog,1\n"cat,dog,2\n', "line 2: not valid CSV"),
        ("cat,dog,3\nbird,tree,3.0\n", "every score is 3, so rank correlation"),
        (b"cat,dog,1\ncaf\xe9,dog,2\n", "line 2: not UTF-8 .byte 0xe9 at column 4"),
    ],
)
def test_bad_pairs_are_named(content: str | bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as error:
        read_tasks(sts=[file])
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("a\tcat\nno tab\n", "line 2: no tab"),
        ("a\tcat\n\tdog\n", "line 2: the label is empty"),
        ("a\tcat\nb\t \n", "line 2: the text is empty"),
        ("a\tcat\na\tdog\n", "every text has the label 'a'"),
        ("a\tcat\na\tdog\nb\ttree\n", "the label 'b' has only one text"),
    ],
)
def test_bad_labels_are_named(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "topics.tsv"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        read_tasks(classification=[file])


GOOD_QUERY = {"_id": "q", "text": "cat", "relevant": ["d1"]}


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("corpus.jsonl", "", r"corpus\.jsonl is empty"),
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": \n', r"corpus\.jsonl, line 2: not JSON"),
        ("corpus.jsonl", '["d1", "a"]\n', "line 1: .* is not a JSON object"),
        ("corpus.jsonl", '{"text": "a"}\n', 'line 1: the object has no "_id"'),
        ("corpus.jsonl", '{"_id": "d1"}\n', "line 1: the object 'd1' has no \"text\""),
        ("corpus.jsonl", '{"_id": "d1", "text": "a", "title": 3}\n', "line 1: the \"title\" of 'd1' is not a text"),
        (
            "corpus.jsonl",
            '{"_id": "d1", "text": "a"}\n\n{"_id": "d1", "text": "b"}',
            "line 3: the id 'd1' .* on line 1",
        ),
        ("queries.jsonl", [GOOD_QUERY, GOOD_QUERY], "line 2: the id 'q' is there already"),
        (
            "queries.jsonl",
            [{"_id": "q", "text": "cat", "relevant": ["d9"]}],
            "line 1.* relevant id 'd9' is not in the corpus",
        ),
        (
            "queries.jsonl",
            [{"_id": "q", "text": "cat", "relevant": []}],
            "line 1: the query 'q' has no relevant document",
        ),
        ("queries.jsonl", [{"_id": "q", "text": "cat", "relevant": "d1"}], "not a list of document ids"),
        ("queries.jsonl", [{"_id": "q", "text": "cat"}], "line 1: the query 'q' has no \"relevant\" ids"),
        ("queries.jsonl", [{"_id": "q", "text": " ", "relevant": ["d1"]}], "line 1: the query is empty"),
        ("qrels/test.tsv", "q1\td1\t1\n", "line 1: the header line"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\n", "holds no judgement"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td9\t1\n", "line 2: the document 'd9' is not in the corpus"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq9\td1\t1\n", "line 2: the query 'q9' is not in queries"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\t0\td1\t1\n", "line 2: 4 columns"),
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\tyes\n",
            "line 2: the score 'yes' is not a whole number",
        ),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1\nq1\td1\t0\n", "line 3: .* judged twice"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n", "no query that counts has a relevant document"),
    ],
)
def test_bad_retrieval_files_are_named(file: str, content: Any, message: str, tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "pages")
    if isinstance(content, list):
        write_jsonl(folder / file, content)
    else:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(content)
    with pytest.raises(InputError, match=message):
        read_tasks(retrieval=[folder])


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file .*nothing\.csv"):
        read_tasks(sts=[tmp_path / "nothing.csv"])
    with pytest.raises(InputError, match="is a folder; a file is needed"):
        read_tasks(classification=[tmp_path])
    with pytest.raises(InputError, match="nowhere does not exist"):
        read_tasks(retrieval=[tmp_path / "nowhere"])
    with pytest.raises(InputError, match=r"there is no file .*corpus\.jsonl"):
        read_tasks(retrieval=[tmp_path])


def test_tasks_of_one_file_name_get_numbers(tmp_path: Path) -> None:
    files = [tmp_path / name / "pairs.csv" for name in ("a", "b")] + [tmp_path / "pairs-2.csv"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        write_pairs(file, [("cat", "dog", 1.0), ("tree", "house", 2.0)])
    assert [task.name for task in read_tasks(sts=files)] == ["pairs", "pairs-2", "pairs-2-2"]


def test_queries_where_keeps_what_matches(tmp_path: Path) -> None:
    common = {"text": "cat", "relevant": ["d1"]}
    fields = [{"seen": True, "part": "a"}, {"seen": False, "part": 1}, {"part": "1"}]
    folder = write_retrieval(tmp_path / "pages", [common | {"_id": str(i)} | f for i, f in enumerate(fields)])

    def kept(where: str | None) -> list[str]:
        (task,) = read_tasks(retrieval=[folder], queries_where=where)
        return list(task.queries)

    assert kept(None) == ["0", "1", "2"]
    assert kept("seen=false") == ["1"]
    assert kept("part=a") == ["0"]
    assert kept("part=1") == ["1", "2"]
    with pytest.raises(InputError, match="no query has seen=no") as error:
        kept("seen=no")
    assert error.value.hint == "values of 'seen': false, true"
    with pytest.raises(InputError, match="no query has old=1") as error:
        kept("old=1")
    assert "part, relevant, seen" in str(error.value.hint)
    with pytest.raises(InputError, match="is not KEY=VALUE"):
        kept("seen")


def test_the_hash_of_a_task_follows_its_files_and_filter(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "pages", [GOOD_QUERY | {"seen": False}])
    hashes = {read_tasks(retrieval=[folder], queries_where=where)[0].sha256 for where in (None, "seen=false")}
    write_jsonl(folder / "queries.jsonl", [GOOD_QUERY])
    hashes.add(read_tasks(retrieval=[folder])[0].sha256)
    assert len(hashes) == 3
