"""Ids of a corpus: `encode` warns about those that occur twice, and refuses rows without one in a table of ids."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ternarize_cli.data.texts import read_lines

TEXTS = ["the cat", "a dog", "the dog", "a cat"]


def _table(path: Path, ids: list[object]) -> Path:
    pq.write_table(pa.table({"id": pa.array(ids, from_pandas=False), "text": TEXTS[: len(ids)]}), path)
    return path


def test_ids_that_occur_twice_are_warned_of_with_an_example_and_their_number(run, tiny_bert, tmp_path: Path) -> None:
    table = _table(tmp_path / "t.parquet", ["a", "b", "b", "b"])
    result = run("encode", tiny_bert, table, "-o", tmp_path / "v.jsonl")
    assert result.exit_code == 0
    assert f"warning: {table}: texts 2 and 3 have the same id 'b'; 1 more text with an id of another" in result.stderr
    lines = '{"id": "a", "text": "the cat"}\n' * 2
    result = run("encode", tiny_bert, "-", "-o", tmp_path / "w.jsonl", input=lines)
    assert "warning: stdin: texts 1 and 2 have the same id\n" in result.stderr
    result = run("encode", tiny_bert, _table(tmp_path / "u.parquet", ["a", "b"]), "-o", tmp_path / "x.jsonl")
    assert "the same id" not in result.stderr


@pytest.mark.parametrize(
    ("ids", "what"), [(["a", None, None], "null"), ([1.0, float("nan")], "NaN"), (["a", ""], "empty")]
)
@pytest.mark.parametrize("command", ["encode", "index"])
def test_a_row_without_an_id_is_refused_by_its_number(
    run, tiny_bert, ids: list[object], what: str, command: str, tmp_path: Path
) -> None:
    table = _table(tmp_path / "t.parquet", ids)
    start = ["encode", tiny_bert, table] if command == "encode" else ["index", "build", table, "--model", tiny_bert]
    result = run(*start, "-o", tmp_path / "out.jsonl")
    assert result.exit_code == 2
    assert f"{table}, row 2: the id is {what}" in result.stderr
    assert read_lines([table]) == TEXTS[: len(ids)]  # texts for training need no ids
