"""Which texts are read of JSON files, of tables, and of compressed files."""

import bz2
import codecs
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ternarize_cli.data.corpora import open_corpus
from ternarize_cli.data.images import read_images
from ternarize_cli.data.text_sources import texts_of
from ternarize_cli.data.texts import Document, read_lines, read_texts
from ternarize_cli.errors import DataError
from ternarize_cli.evaluation.reading import read_tasks
from ternarize_cli.storage.bounds import MAX_LINE

RECORDS = [{"text": "hello, world", "label": 1}, {"text": "the cat\nsat", "label": 0}]
TEXTS = [record["text"] for record in RECORDS]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refused(path: str | Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_texts(path))
    return caught.value


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=1),
        "\ufeff" + json.dumps(RECORDS),
        json.dumps(TEXTS),
        json.dumps({"data": RECORDS}),
        json.dumps({"version": "1", "data": TEXTS, "more": []}, indent=2),
        "\n".join(map(json.dumps, RECORDS)),
        "\n".join(json.dumps(record, indent=2) for record in RECORDS),
    ],
)
def test_a_json_file_is_a_list_an_object_with_a_list_or_several_objects(tmp_path, monkeypatch, content):
    for block in (1 << 18, 7):  # values that end within what is read, and others
        monkeypatch.setattr("ternarize_cli.data.json_values._BLOCK", block)
        assert read_lines([write(tmp_path / "a.json", content)]) == TEXTS


def test_a_json_object_alone_is_one_text_and_ids_and_titles_are_those_of_jsonl(tmp_path):
    assert read_lines([write(tmp_path / "a.json", '{"text": "one"}')]) == ["one"]
    records = [{"id": 7, "title": "Cats", "text": "purr"}, {"text": "b"}]
    assert list(read_texts(write(tmp_path / "b.json", json.dumps(records)))) == [
        Document("7", "Cats purr"),
        Document("2", "b"),
    ]


@pytest.mark.parametrize("content", [json.dumps(RECORDS), json.dumps(RECORDS, indent=1), json.dumps(TEXTS, indent=1)])
def test_json_is_known_without_a_suffix(tmp_path, content):
    assert read_lines([write(tmp_path / "a", content)]) == TEXTS
    assert read_lines([write(tmp_path / "b", "[laughs] hello\n[] is empty")]) == ["[laughs] hello", "[] is empty"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "b"\n', "a.json line 1 is not valid JSON: Expecting ',' delimiter"),
        ('[{"text": "a"} {"text": "b"}]', "a comma or the end of the list is missing"),
        ('["a", "b"] more', "more follows after the list"),
        ('[{"text": "a"}, {"body": "b"}]', "a.json item 2: no `text` field"),
        ('[{"text": null}]', "a.json item 1: `text` is null"),
        ('[{"text": ["a"]}]', '`text` is ["a"], not a string'),
        ("[1, 2]", "a.json item 1: no `text` field: 1"),
        ("[]", "holds no text"),
        ("", "holds no text"),
        ("[" * 100_000, "nested more than 64 levels deep"),
        ('[{"text": ' + "[" * 70 + "]" * 70 + "}]", "nested more than 64 levels deep"),
        ('["a\xff"]'.encode("latin-1"), "not UTF-8 text"),
    ],
)
def test_a_json_file_without_usable_texts_is_refused(tmp_path, content, message):
    assert message in str(refused(write(tmp_path / "a.json", content)))


def test_a_json_value_without_an_end_is_refused_before_it_fills_the_memory(tmp_path):
    packed = gzip.compress(b'["' + b"a" * (MAX_LINE + (1 << 20)))
    assert "longer than the" in str(refused(write(tmp_path / "a.json.gz", packed)))


def test_a_csv_file_has_a_header_and_quoted_fields(tmp_path):
    rows = 'label,text\n1,"hello, world"\n0,"the cat\nsat"\n'
    for name, content in (
        ("a.csv", rows),
        ("b.CSV", rows.encode("utf-8-sig").replace(b"\n", b"\r\n")),
        ("c.csv", rows.replace(",text", ";text").replace("1,", "1;").replace("0,", "0;")),
        ("d.csv.gz", gzip.compress(rows.encode())),
    ):
        assert [text.replace("\r", "") for text in read_lines([write(tmp_path / name, content)])] == TEXTS
    path = write(tmp_path / "e.csv", "_id,title,text\nx,Cats,purr\ny,,b\n")
    assert list(read_texts(path)) == [Document("x", "Cats purr"), Document("y", "b")]
    assert list(read_texts(write(tmp_path / "f.tsv", 'text\tlabel\na "b"\t1\n'))) == [Document("1", 'a "b"')]
    long = "a" * 200_000
    assert read_lines([write(tmp_path / "g.csv", f"text\n{long}\n")]) == [long]


def test_where_the_column_of_texts_can_not_be_told_the_columns_are_named_and_one_can_be_chosen(tmp_path):
    path = write(tmp_path / "a.csv", "review,stars,reply\ngood,5,thanks\n")
    error = refused(path)
    assert "review, stars, reply" in str(error)
    assert "a.csv:review" in str(error.hint)
    assert read_lines([f"{path}:review", f"{path}:reply"]) == ["good", "thanks"]
    assert "no column called 'replies'" in str(refused(f"{path}:replies"))
    path = write(tmp_path / "a.jsonl", '{"body": "cat", "url": "u"}\n')
    assert "body, url" in str(refused(path).hint)
    assert read_lines([f"{path}:body"]) == ["cat"]
    assert "holds no text" in str(refused(write(tmp_path / "empty.csv", "")))
    assert "two columns are called 'a'" in str(refused(write(tmp_path / "twice.csv", "a,a\n1,2\n")))
    path = write(tmp_path / "wide.csv", "text,label\na,1\nb,c,2\n")
    assert "line 3: 3 columns where the header has 2" in str(refused(path))
    bad: list[str] = []
    assert [d.text for d in read_texts(path, on_bad=lambda error: bad.append(str(error)))] == ["a"]
    assert len(bad) == 1


def table(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_the_column_of_a_parquet_file_is_chosen_by_name_and_type_not_by_its_first_rows(tmp_path):
    nulls = pa.array([None] * 150 + ["hello world"])
    path = table(tmp_path / "a.parquet", text=nulls, url=[f"http://x/{i}" for i in range(151)])
    assert "a.parquet, row 1: `text` is null" in str(refused(path))
    assert list(texts_of(path, 10, 0)) == ["hello world"]
    corpus = open_corpus(str(path), skip_bad=True)
    assert list(corpus.items) == [("151", "hello world")]
    assert corpus.skipped.count == 150
    path = table(tmp_path / "b.parquet", body=nulls, n=pa.array(range(151)), title=["t"] * 151, id=["x"] * 151)
    assert list(texts_of(path, 10, 0)) == ["t hello world"]
    url, review = ["http://x/" + "y" * 99], ["fine"]
    error = refused(table(tmp_path / "c.parquet", url=url, review=review))
    assert "url, review" in str(error)
    assert read_lines([f"{tmp_path / 'c.parquet'}:review"]) == ["fine"]
    path = table(tmp_path / "d.parquet", url=url, sentence=["a cat"])
    assert read_lines([path]) == ["a cat"]


@pytest.mark.parametrize("values", [pa.array([1, 2]), pa.nulls(2), pa.array([["a"], ["b"]])])
def test_a_column_text_that_holds_no_texts_is_refused_whatever_else_there_is(tmp_path, values):
    path = table(tmp_path / "a.parquet", text=values, url=["u", "v"])
    assert "the column 'text' does not hold texts" in str(refused(path))
    assert read_lines([f"{path}:url"]) == ["u", "v"]


@pytest.mark.parametrize("line", ['{"text": null, "url": "u"}', '{"url": "u"}', '{"text": 5}', '{"text": ["a"]}'])
def test_lines_without_a_text_are_refused_or_counted(tmp_path, line):
    path = write(tmp_path / "a.jsonl", f"{line}\n" * 150 + '{"text": "cat", "url": "u"}\n')
    assert "a.jsonl line 1" in str(refused(path))
    corpus = open_corpus(str(path), skip_bad=True)
    assert list(corpus.items) == [("151", "cat")]
    assert corpus.skipped.count == 150


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


@pytest.mark.parametrize(
    ("suffix", "pack"), [("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd), ("gz", gzip.compress)]
)
def test_compressed_texts_are_read_by_any_name(tmp_path, suffix, pack: Callable[[bytes], bytes]):
    packed = pack(b'{"text": "a"}\n{"text": "b"}\n' * 1000)
    for name in (f"a.jsonl.{suffix}", f"A.JSONL.{suffix.upper()}", "c", "d.jsonl"):
        assert read_lines([write(tmp_path / name, packed)]) == ["a", "b"] * 1000
    assert read_lines([write(tmp_path / f"two.jsonl.{suffix}", packed + packed)]) == ["a", "b"] * 2000
    assert read_lines([write(tmp_path / f"c.json.{suffix}", pack(b'["a", "b"]'))]) == ["a", "b"]
    assert read_lines([write(tmp_path / f"t.csv.{suffix}", pack(b"text,n\na,1\n"))]) == ["a"]
    assert "can't be unpacked" in str(refused(write(tmp_path / f"cut.txt.{suffix}", packed[:-12])))
    assert "can't be unpacked" in str(refused(write(tmp_path / f"plain.txt.{suffix}", b"text\n")))
    endless = pack(b"a" * (MAX_LINE + 2))
    assert "is longer than the" in str(refused(write(tmp_path / f"bomb.txt.{suffix}", endless)))
    pairs = write(tmp_path / f"p.csv.{suffix}", pack(b"cat,dog,1\ncat,tree,2\n"))
    assert read_tasks(sts=[pairs])[0].first == ["cat", "cat"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_other_unicode_with_a_byte_order_mark_is_read_and_without_one_named(tmp_path, encoding):
    mark = getattr(codecs, "BOM_" + encoding.upper().replace("-", "", 1).replace("-", "_"))
    content = "größer\r\n日本 🙂\n".encode(encoding)
    assert read_lines([write(tmp_path / "a.txt", mark + content)]) == ["größer", "日本 🙂"]
    assert read_lines([write(tmp_path / "a.txt.xz", lzma.compress(mark + content))]) == ["größer", "日本 🙂"]
    pairs = write(tmp_path / "p.csv", mark + "cat,dog,1\ncat,tree,2\n".encode(encoding))
    assert read_tasks(sts=[pairs])[0].second == ["dog", "tree"]
    assert "is not valid UTF" in str(refused(write(tmp_path / "odd.txt", mark + content[:-1])))
    bare = refused(write(tmp_path / "b.txt", "hello world\n".encode(encoding)))
    assert "NUL" in str(bare)
    if "16" in encoding:
        assert f"iconv -f {encoding.replace('-le', 'le').replace('-be', 'be')} " in str(bare.hint)
    assert "latin1" not in str(bare.hint)


def test_archives_and_binary_files_are_refused_with_what_they_are(tmp_path):
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.txt", "hello")
    array = BytesIO()
    np.save(array, np.zeros(3))
    for content, message in (
        (archive.getvalue(), "ZIP archive"),
        (table(tmp_path / "p.parquet", text=["a"]).read_bytes(), "Parquet"),
        (array.getvalue(), "NumPy"),
        (b"%PDF-1.7\n\xe2\xe3", "PDF"),
        (gzip.compress(archive.getvalue()), "ZIP archive"),
    ):
        error = refused(write(tmp_path / "a.txt", content))
        assert message in str(error)
        assert "iconv" not in str(error.hint)
    error = refused(write(tmp_path / "a.txt", bytes(range(1, 256)) * 10))
    assert "no file of text" in str(error.hint)
    assert "iconv -f latin1" in str(refused(write(tmp_path / "a.txt", "café\n".encode("latin-1"))).hint)


def test_a_saved_dataset_is_a_table(tmp_path):
    saved = datasets.Dataset.from_dict({"id": ["x", "y"], "n": [1, 2], "text": ["hello", "cat"]})
    saved.save_to_disk(tmp_path / "x")
    assert list(read_texts(tmp_path / "x")) == [Document("x", "hello"), Document("y", "cat")]
    corpus = open_corpus(str(tmp_path / "x"))
    assert (corpus.kind, corpus.count, list(corpus.items)) == ("text", 2, [("x", "hello"), ("y", "cat")])
    assert list(texts_of(tmp_path / "x", 10, 0)) == ["hello", "cat"]
    datasets.DatasetDict(train=saved, test=saved.select([1])).save_to_disk(tmp_path / "d")
    assert [d.text for d in read_texts(tmp_path / "d")] == ["hello", "cat"]
    assert [d.text for d in read_texts(tmp_path / "d" / "test")] == ["cat"]
    datasets.DatasetDict(a=saved, b=saved).save_to_disk(tmp_path / "e")
    assert "has the splits a, b" in str(refused(tmp_path / "e"))
    datasets.Dataset.from_dict({"url": ["u"], "review": ["good"]}).save_to_disk(tmp_path / "f")
    assert "url, review" in str(refused(tmp_path / "f"))
    assert read_lines([f"{tmp_path / 'f'}:review"]) == ["good"]
    next((tmp_path / "x").glob("*.arrow")).write_bytes(b"no Arrow")
    assert "can't be read as a saved dataset" in str(refused(tmp_path / "x"))


def test_a_saved_dataset_without_rows_says_so(tmp_path):
    features = datasets.Features({"text": datasets.Value("string")})
    empty = datasets.Dataset.from_dict({"text": []}, features=features)
    full = datasets.Dataset.from_dict({"text": ["hello"]})
    empty.save_to_disk(tmp_path / "empty")
    full.filter(lambda row: False).save_to_disk(tmp_path / "filtered")
    datasets.DatasetDict(train=empty).save_to_disk(tmp_path / "split")
    for folder, named in (("empty", "empty"), ("filtered", "filtered"), ("split", "split/train")):
        assert str(refused(tmp_path / folder)) == f"{tmp_path / named} holds no rows"
    datasets.DatasetDict(train=full, test=empty).save_to_disk(tmp_path / "half")
    assert [d.text for d in read_texts(tmp_path / "half")] == ["hello"]
    kinds = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": []}, features=kinds).save_to_disk(tmp_path / "images")
    with pytest.raises(DataError, match="images holds no rows"):
        read_images(tmp_path / "images")


def test_a_folder_of_csv_files_is_read_where_there_is_nothing_else(tmp_path):
    write(tmp_path / "a.csv", "text,n\na,1\n")
    write(tmp_path / "b.json", '["b"]')
    assert list(open_corpus(str(tmp_path)).items) == [("a.csv:1", "a"), ("b.json:1", "b")]
    write(tmp_path / "c.jsonl", '{"text": "c"}')
    assert list(open_corpus(str(tmp_path)).items) == [("c.jsonl:1", "c")]
