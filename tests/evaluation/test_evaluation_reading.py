"""Files for `ternarize eval`: what is wrong is named with file and line; names, filters and hashes."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from support.task_files import write_jsonl, write_pairs, write_retrieval, write_task
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.reading import read_tasks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("cat,dog,1\ncat,dog\n", "line 2: 2 columns where 3 are needed"),
        ("cat,dog,1\n\ncat, a dog,tree,2\n", "line 3: 4 columns"),
        ('"a\ncat",dog,1\nb,c\n', "line 3: 2 columns"),
        ("cat,dog,1\ncat,dog,high\n", "line 2: the score 'high' is not a number"),
        ("a,b,similarity\ncat,dog,1\n", "line 1: the score 'similarity' is not a number"),
        ("sentence1,sentence2,score\n", "is empty"),
        ("score,sentence2,sentence1,more\n1,dog,cat\n", "line 2: 3 columns where 4 are needed, as many as the header"),
        ("cat,dog,1\ncat,d\0g,2\n", "line 2: a NUL at byte 6"),
        ("cat,dog,1\n".encode("utf-16-le"), "line 1: a NUL at byte 2"),
        ("caf\xe9,dog,1\n".encode() + "caf\xe9,dog,2\n".encode("latin-1"), r"line 2: not UTF-8 text \(byte 4 is 0xe9"),
        ("cat,dog,1\ncat,dog,nan\n", "line 2: the score 'nan' is not a finite number"),
        ("cat,dog,inf\n", "line 1: the score 'inf' is not a finite number"),
        ("cat,,1\n", "line 1: the second sentence is empty"),
        ('cat,dog,1\n"cat,dog,2\n', "line 2: not valid CSV"),
        ("cat,dog,3\nbird,tree,3.0\n", "every score is 3, so rank correlation"),
        (b"cat,dog,1\ncaf\xe9,dog,2\n", r"line 2: not UTF-8 text \(byte 4 is 0xe9"),
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
        ("a\tcat\nno tab\n", "line 2: 1 column where 2 are needed: label tab text"),
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
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": \n', r"corpus\.jsonl, line 2 is not valid JSON"),
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
        (
            "qrels/test.tsv",
            "query-id\tcorpus-id\tscore\nq1\td1\t0\n",
            "the query 'q1' has no relevant document .1 of 1 have none",
        ),
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


def test_columns_are_found_by_their_header_in_every_format(tmp_path: Path) -> None:
    rows = [("cat", "dog", 1.5), ("river", 'a "stone"', 0.0)]
    table = pa.table(
        {"score": [r[2] for r in rows], "sentence2": [r[1] for r in rows], "sentence1": [r[0] for r in rows]}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", table.to_pylist())
    (tmp_path / "a.csv").write_text('score,sentence2,sentence1\n1.5,dog,cat\n0,"a ""stone""",river\n')
    (tmp_path / "a.tsv").write_text('score\tsentence2\tsentence1\n1.5\tdog\tcat\n0\ta "stone"\triver\n')
    for suffix in ("parquet", "jsonl", "csv", "tsv"):
        (data,) = read_tasks(sts=[tmp_path / f"a.{suffix}"])
        assert list(zip(data.first, data.second, data.scores, strict=True)) == rows, suffix


def test_a_task_file_names_columns_and_is_beside_its_data(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.csv").write_text("id,question,other,gold\n7,cat,dog,1\n8,tree,house,0\n")
    table = 'type = "sts"\npath = "x.csv"\nname = "mine"\nsentence1 = "question"\nsentence2 = "other"\nscore = "gold"\n'
    file = write_task(tmp_path / "sub", table)
    as_json = write_task(tmp_path / "sub", json.dumps(tomllib.loads(table) | {"name": "json"}), "task.json")
    first, second = read_tasks(task_files=[file, as_json])
    assert (first.name, second.name) == ("mine", "json")
    assert first.first == second.first == ["cat", "tree"]
    assert first.scores == [1.0, 0.0]
    assert first.sha256 == second.sha256


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ('type = "stss"\npath = "x"\n', "task.toml, line 1: there is no task type 'stss'", "did you mean 'sts'"),
        ('path = "x"\n', 'there is no "type"', "sts, pair-classification"),
        ('type = "sts"\n', 'there is no "path"', "path ="),
        ('type = ["sts"]\npath = "x"\n', r"line 1: there is no task type \['sts'\]", "known: sts"),
        ('type = "sts"\n\nsentance1 = "a"\n', "line 3: a task of the type sts has no 'sentance1'", "mean 'sentence1'"),
        ('type = "sts"\npath = "x"\nlabel = "a"\n', "line 3: a task of the type sts has no 'label'", "known: type"),
        ('type = "sts"\npath = 5\n', "line 2: path is 5, not a path", None),
        ('type = "zero-shot"\npath = "x"\nlimit = 0\n', "line 3: limit is 0, not a whole number above 0", None),
        ('type = "zero-shot"\npath = "x"\n[labels]\na = 1\n', "line 3: labels is {'a': 1}, not a table", None),
        ('type = "sts"\npath = "x"\nname = "a/b"\n', "line 3: the name 'a/b' can't be one", "no /"),
        ('type = "sts"\npath = \n', r"is not valid TOML: .*line 2", None),
    ],
)
def test_a_wrong_task_file_is_refused_with_the_nearest_name(
    content: str, message: str, hint: str | None, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as error:
        read_tasks(task_files=[write_task(tmp_path, content)])
    assert hint is None or hint in str(error.value.hint)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("task.json", '{"type": "sts",\n "path": "a", "path": "b"}', "line 2: 'path' is there twice"),
        ("task.json", '{"type": "sts",\n}', "task.json is not valid JSON: .* line 2"),
        ("task.json", "[]", "holds no JSON object"),
        ("task.yaml", "type: sts", "is neither .toml nor .json"),
    ],
)
def test_a_task_file_is_toml_or_a_json_object(name: str, content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_tasks(task_files=[write_task(tmp_path, content, name)])


PAIRS = 'type = "pair-classification"\npath = "x.csv"\n'
BITEXT = 'type = "bitext"\npath = "x.csv"\n'


@pytest.mark.parametrize(
    ("task", "files", "message"),
    [
        (PAIRS, {"x.csv": "cat,dog,1\ntree,house,2\n"}, "x.csv, line 2: the label '2' is neither 0 nor 1"),
        (PAIRS, {"x.csv": "cat,dog,1\ntree,house,true\n"}, "every pair has the label 1"),
        (PAIRS + 'label = "same"\n', {"x.csv": "sentence1,sentence2,sam\n"}, "line 1: there is no column 'same'"),
        (BITEXT, {"x.csv": "cat,chat\n"}, "one pair leaves nothing to confuse"),
        (BITEXT, {"x.csv": "cat,chat\ndog, \n"}, "line 2: the translation is empty"),
        (
            BITEXT + 'translations = "y"\n',
            {"x.csv": "a\nb\n", "y": "a\nb\nc\n"},
            "x.csv ends after 2 lines, .*y goes on",
        ),
        (BITEXT + 'translations = "y"\n', {"x.csv": "a\nb\n", "y": "a\n\n"}, "y, line 2: the line is empty"),
        ('type = "clustering"\npath = "x.txt"\n', {"x.txt": "a\tcat\na\tdog\n"}, "every text has the label 'a'"),
        ('type = "clustering"\npath = "x.txt"\n', {"x.txt": "a\tcat\nb\tdog\n"}, "every text has a label of its own"),
        (
            'type = "classification"\npath = "x.txt"\ntrain = "y.txt"\n',
            {"x.txt": "c\tcat\n", "y.txt": "a\tcat\nb\tdog\n"},
            "x.txt: the label 'c' is not in .*y.txt",
        ),
        ('type = "sts"\npath = "x.jsonl"\n', {"x.jsonl": '{"sentence1": "a", "score": 1}'}, "no column 'sentence2'"),
        (
            'type = "sts"\npath = "x.jsonl"\n',
            {"x.jsonl": '{"sentence1": 3, "sentence2": "b", "score": 1}'},
            "line 1: the first sentence is 3, not a text",
        ),
        ('type = "sts"\npath = "x.parquet"\n', {"x.parquet": "cat,dog,1"}, "can't be read as Parquet"),
        (
            'type = "retrieval"\npath = "."\nsplit = "dev"\n',
            {"corpus.jsonl": "", "queries.jsonl": ""},
            "no file .*dev.tsv",
        ),
    ],
)
def test_bad_data_of_a_task_file_is_named(task: str, files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        read_tasks(task_files=[write_task(tmp_path, task)])


def test_a_task_file_chooses_the_split_of_beir(tmp_path: Path) -> None:
    folder = write_retrieval(tmp_path / "pages", [{"_id": f"q{i}", "text": "cat"} for i in range(3)])
    (folder / "qrels").mkdir()
    for split, query in (("train", "q0"), ("dev", "q2")):
        (folder / "qrels" / f"{split}.tsv").write_text(f"query-id\tcorpus-id\tscore\n{query}\td1\t1\n")
    (data,) = read_tasks(task_files=[write_task(tmp_path, 'type = "retrieval"\npath = "pages"\nsplit = "dev"\n')])
    assert (data.name, list(data.queries)) == ("task", ["q2"])
    with pytest.raises(InputError, match=r"has no \"relevant\" ids, and there is no .*test.tsv") as error:
        read_tasks(retrieval=[folder])
    assert error.value.hint == 'qrels has dev, train: write split = "…" into a task file'


def test_two_tasks_can_not_have_one_given_name(tmp_path: Path) -> None:
    write_pairs(tmp_path / "mine.csv", [("cat", "dog", 1.0), ("tree", "house", 2.0)])
    file = write_task(tmp_path, 'type = "sts"\npath = "mine.csv"\nname = "mine"\n')
    with pytest.raises(InputError, match="two tasks are called 'mine'"):
        read_tasks(task_files=[file, file])
    assert [task.name for task in read_tasks(sts=[tmp_path / "mine.csv"], task_files=[file])] == ["mine-2", "mine"]


def test_the_same_file_has_another_hash_for_another_kind(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("a\tcat\na\tdog\nb\ttree\nb\triver\n")
    files = [
        write_task(tmp_path, f'type = "{kind}"\npath = "x.tsv"\n', f"{kind}.toml")
        for kind in ("classification", "clustering", "bitext")
    ]
    assert len({task.sha256 for task in read_tasks(task_files=files)}) == 3
