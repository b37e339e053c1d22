"""Reading texts: what counts as one, and what an error names."""

import gzip
import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ternarize_cli.data.texts import Document, read_lines, read_texts
from ternarize_cli.errors import DataError


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _error(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(read_texts(path))
    return str(caught.value)


def test_plain_lines_are_named_by_their_line_and_blank_ones_are_skipped(tmp_path):
    path = _file(tmp_path, "a.txt", "\ufeffone\r\n\n  \n two words \n")
    assert list(read_texts(path)) == [Document("1", "one"), Document("4", "two words")]


def test_only_newlines_end_a_text(tmp_path):
    assert [d.text for d in read_texts(_file(tmp_path, "a.txt", "a\u2028b\x0bc\nd"))] == ["a\u2028b\x0bc", "d"]


def test_jsonl_joins_title_and_text_and_takes_either_id(tmp_path):
    lines = [
        '{"_id": "x", "title": "Cats", "text": "purr"}',
        '{"id": 7, "title": "", "text": "b"}',
        '{"text": "c", "title": null}',
    ]
    path = _file(tmp_path, "a.jsonl", "\n".join(lines))
    assert list(read_texts(path)) == [Document("x", "Cats purr"), Document("7", "b"), Document("3", "c")]


def test_a_brace_decides_where_the_suffix_does_not(tmp_path):
    assert [d.text for d in read_texts(_file(tmp_path, "a", '{"text": "t"}'))] == ["t"]
    assert [d.text for d in read_texts(_file(tmp_path, "b", "t {"))] == ["t {"]
    assert [d.text for d in read_texts(_file(tmp_path, "c.txt", '{"text": "t"}'))] == ['{"text": "t"}']


def test_a_dash_is_stdin(monkeypatch):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"one\ntwo\n")))
    assert [d.text for d in read_texts("-")] == ["one", "two"]


def test_several_files_become_one_list(tmp_path):
    paths = [_file(tmp_path, "a.txt", "one\n"), _file(tmp_path, "b.jsonl", '{"text": "two"}')]
    assert read_lines(paths) == ["one", "two"]


def test_a_missing_file_is_an_error_before_anything_is_read(tmp_path):
    with pytest.raises(DataError, match=r"nothing\.txt can't be read: there is no such file"):
        read_texts(tmp_path / "nothing.txt")


def test_a_folder_is_no_file_of_texts(tmp_path):
    with pytest.raises(DataError, match="is a folder"):
        read_texts(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt holds no text"),
        ("a.txt", b"\n  \n", "a.txt holds no text"),
        ("a.jsonl", b"\n", "a.jsonl holds no text"),
        ("a.txt", b"fine\nna\xefve\n", "a.txt line 2: not UTF-8 text (byte 3 is 0xef)"),
        ("a.jsonl", b'{"text": "a"}\nnot json\n', "a.jsonl line 2 is not valid JSON"),
        ("a.jsonl", b'{"text": "a"}\n\n["b"]\n', "a.jsonl line 3: no `text` field"),
        ("a.jsonl", b'{"body": "a"}\n', "a.jsonl line 1: no `text` field"),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl line 1: `text` is 5, not a string"),
        ("a.jsonl", b'{"text": "a", "title": ["t"]}\n', 'a.jsonl line 1: `title` is ["t"]'),
        ("a.jsonl", b'{"text": "a", "_id": {}}\n', "a.jsonl line 1: the id is {}"),
        ("a.jsonl", b'{"text": "a\\ud800"}\n', "a.jsonl line 1: half of a surrogate pair"),
    ],
)
def test_an_unusable_line_is_named(tmp_path, name, content, message):
    assert message in _error(_file(tmp_path, name, content))


def test_compressed_files_are_read_and_a_damaged_one_is_named(tmp_path):
    packed = gzip.compress(b'{"text": "a"}\n{"text": "b"}\n')
    assert read_lines([_file(tmp_path, "a.jsonl.gz", packed)]) == ["a", "b"]
    assert "cut.txt.gz can't be unpacked" in _error(_file(tmp_path, "cut.txt.gz", packed[:-9]))
    assert "plain.txt.gz can't be unpacked" in _error(_file(tmp_path, "plain.txt.gz", "text"))
