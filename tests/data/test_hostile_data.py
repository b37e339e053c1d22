"""Texts, tables, images and ids that mean harm: each ends in an error that names it, within little memory and time."""

import gzip
import io
import json
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from support.models import WORDS
from ternarize_cli.data.corpora import open_corpus
from ternarize_cli.data.images import is_images, read_images, read_parts
from ternarize_cli.data.text_sources import texts_of
from ternarize_cli.data.texts import drawn, read_lines, read_texts, text_files
from ternarize_cli.errors import DataError
from ternarize_cli.evaluation.reading import read_tasks
from ternarize_cli.index.documents import Documents, read_documents, read_ids
from ternarize_cli.index.truth import read_truth
from ternarize_cli.storage import bounds
from ternarize_cli.tokenizers.tokenization import corpus_files

LONG = bounds.MAX_LINE + 1


def fails(run: Callable[..., object], *arguments: object, **options: object) -> str:
    """What a command says on stderr that ends with 2."""
    result = run(*arguments, **options)
    assert result.exit_code == 2, result.stderr  # type: ignore[attr-defined]
    assert "unexpected" not in result.stderr.lower()  # type: ignore[attr-defined]
    return result.stderr  # type: ignore[attr-defined]


def one_line(path: Path) -> Path:
    """A file of one line that is too long, which takes no room on the disk."""
    with path.open("wb") as stream:
        stream.write(b"a")
        stream.truncate(LONG + 1)
    return path


# --- lines ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a"])
def test_a_line_without_an_end_is_refused(tmp_path: Path, name: str) -> None:
    path = one_line(tmp_path / name)
    for read in (
        lambda: list(read_texts(path)),
        lambda: list(open_corpus(str(path)).items),
        lambda: read_lines([path]),
    ):
        with pytest.raises(DataError, match=r"line 1 is longer than the 16,777,216 bytes"):
            read()


def test_a_line_without_an_end_is_refused_in_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "bomb.txt.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(40):
            stream.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"bomb\.txt\.gz line 1 is longer"):
        list(read_texts(path))


@pytest.mark.slow
def test_a_device_without_an_end_is_a_line_that_is_too_long(run, tiny_bert: Path) -> None:
    assert "line 1 is longer" in fails(run, "encode", tiny_bert, "/dev/zero")
    assert "/dev/zero line 1 is longer" in fails(run, "distill", tiny_bert, "--data", "/dev/zero", "-o", "out")


def test_long_lines_are_refused_by_every_reader_of_an_evaluation(tmp_path: Path) -> None:
    for option, name in (("sts", "a.csv"), ("sts", "a.jsonl"), ("classification", "a.tsv"), ("task_files", "t.json")):
        with pytest.raises(DataError, match=r"is longer|is larger"):
            read_tasks(**{option: [one_line(tmp_path / name)]})  # type: ignore[arg-type]
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "t", "relevant": ["d"]}\n')
    one_line(tmp_path / "corpus.jsonl")
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 1 is longer"):
        read_tasks(retrieval=[tmp_path])


def test_ids_are_read_line_by_line(tmp_path: Path, run) -> None:
    with pytest.raises(DataError, match="line 1 is longer"):
        read_ids([str(one_line(tmp_path / "ids"))])
    with pytest.raises(DataError, match="/dev/zero line 1 is longer"):
        read_ids(["/dev/zero"])
    (tmp_path / "ids").write_bytes(b"a\n\xff\n")
    with pytest.raises(DataError, match="line 2 is not UTF-8"):
        read_ids([str(tmp_path / "ids")])
    (tmp_path / "ids").write_bytes(b" a \r\n\nb")
    assert read_ids([str(tmp_path / "ids")]) == [" a ", "b"]
    for source in (str(tmp_path), "a" * 5000, "a\0b"):
        with pytest.raises(DataError, match="can't be read"):
            read_ids([source])


def test_a_csv_field_that_never_ends_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b,1\n"' + "text\n" * 100_000)
    with pytest.raises(DataError, match=r"line 2: not valid CSV: unexpected end of data"):
        read_tasks(sts=[tmp_path / "a.csv"])


# --- memory ---------------------------------------------------------------------------------------------------------


def test_texts_that_do_not_fit_in_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "many.txt.gz"
    path.write_bytes(gzip.compress(b"a line of text\n" * 100_000))
    assert len(read_lines([path])) == 100_000
    (tmp_path / "ids").write_bytes(gzip.decompress(path.read_bytes()))
    monkeypatch.setattr(bounds, "MAX_HELD", 1 << 20)
    with pytest.raises(DataError, match=r"many\.txt\.gz holds more than 1,048,576 bytes of text"):
        read_lines([path])
    with pytest.raises(DataError, match="ids holds more than"):
        read_ids([str(tmp_path / "ids")])
    assert len(drawn((text.text for text in read_texts(path)), 100, 0, "x")) == 100  # what is dropped is not counted
    with pytest.raises(DataError, match="x holds more than"):
        drawn((text.text for text in read_texts(path)), 100_000, 0, "x")


def test_half_of_the_memory_is_what_texts_may_take() -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < bounds.MAX_HELD <= memory // 2


# --- JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[" * 200_000, "not valid JSON"),
        ('{"text": ' * 70 + "1" + "}" * 70, "nested more than 64 levels"),
        ('{"text": "a", "id": ' + "1" * 5000 + "}", "not valid JSON"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ('{"text": "a", "id": "\\ud800"}', "half of a surrogate pair"),
        ('{"text": NaN}', "`text` is NaN"),
    ],
)
def test_hostile_json_is_named_with_its_line(run, tiny_bert: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    error = fails(run, "encode", tiny_bert, tmp_path / "a.jsonl", "-o", tmp_path / "v.npy")
    assert "a.jsonl line 2" in error
    assert message in error
    assert len(error) < 1000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 1' + "0" * 400 + "}", "not a number"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": NaN}', "not a finite number"),
        ("a.jsonl", '{"sentence1": "\\udfff", "sentence2": "b", "score": 1}', "half of a surrogate pair"),
        ("a.jsonl", "[" * 100_000, "not valid JSON"),
        ("a.csv", "a,b," + "9" * 5000, "not a finite number"),
        ("a.csv", "a,b," + "x" * 5000, "is not a number"),
    ],
)
def test_hostile_scores_are_named_shortly(
    run, tiny_bert, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    error = fails(run, "eval", tiny_bert, "--sts", tmp_path / name)
    assert message in error
    assert f"{name}, line 1" in error
    assert len(error) < 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.json", "[" * 100_000, "not valid JSON"),
        ("t.toml", "a = " + "[" * 100_000, "not valid TOML"),
        ("t.toml", "a = " + "9" * 5000, "not valid TOML"),
        ("t.json", '{"type": "sts", "path": "~nobody-here/x\\u0000"}', "there is no file"),
        ("t.json", '{"type": "sts", "path": "\\ud800"}', "half of a surrogate pair"),
        ("t.json", '{"type": "sts", "path": "' + "a" * 5000 + '"}', "there is no file"),
        ("t.json", '{"type": "sts", "path": "/dev/zero"}', "is a device"),
        ("t.json", "{" + ", ".join(f'"k{i}": 1' for i in range(60_000)) + ', "k1": 2}', "'k1' is there twice"),
        ("t.json", " " * (1 << 20) + "{}", "is larger than"),
    ],
)
def test_hostile_task_files_are_refused(run, tiny_bert, tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    assert message in fails(run, "eval", tiny_bert, "--task-file", tmp_path / name)


def test_absurd_grades_are_refused(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "t"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "t"}\n')
    for grade, message in (
        ("9" * 1000, "is no grade"),
        ("9" * 5000, "is not a whole number"),
        ("-3000000", "no grade"),
    ):
        (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\nq\td\t{grade}\n")
        with pytest.raises(DataError, match=message):
            read_tasks(retrieval=[tmp_path])


@pytest.mark.parametrize("value", ["NaN", "-1", "1e400", "true", '"1"', "9" * 500, "null"])
def test_reports_with_hostile_numbers_are_no_reports(run, tmp_path: Path, value: str) -> None:
    row = f'{{"name": "x", "batch": 1, "tokens": 1, "median_ms": {value}, "p10_ms": 1, "p90_ms": 1}}'
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(f'{{"machine": {{}}, "rows": [{row}]}}')
    assert "row 0 has no median_ms" in fails(run, "bench", "--compare", tmp_path / "a.json", tmp_path / "b.json")


# --- files that are none --------------------------------------------------------------------------------------------


def test_pipes_are_refused_where_a_file_is_read_twice_or_mapped(run, tiny_bert, tiny_vit, tmp_path: Path) -> None:
    for name in ("a.parquet", "a.png", "train-images-idx3-ubyte", "a.csv", "t.json", "a.json"):
        os.mkfifo(tmp_path / name)
    for model in (tiny_bert, tiny_vit):
        assert "is a pipe" in fails(run, "encode", model, tmp_path / "a.parquet")
    for name in ("a.png", "train-images-idx3-ubyte", "a.parquet"):
        assert not is_images(tmp_path / name)
        with pytest.raises(DataError, match="holds no images"):
            read_parts(tmp_path / name)
    assert "is a pipe" in fails(run, "eval", tiny_bert, "--sts", tmp_path / "a.csv")
    assert "is a pipe" in fails(run, "eval", tiny_bert, "--task-file", tmp_path / "t.json")
    assert "is a pipe" in fails(run, "bench", "--compare", tmp_path / "a.json", tmp_path / "a.json")
    with pytest.raises(DataError, match="is a pipe"):
        list(texts_of(tmp_path / "a.parquet", 1, 0))
    with pytest.raises(DataError, match="is a pipe"):
        list(corpus_files([tmp_path / "a.csv"]))


def test_pipes_in_folders_are_left_out(tmp_path: Path) -> None:
    for folder, name in (("texts", "b.txt"), ("pictures", "b.png")):
        (tmp_path / folder).mkdir()
        os.mkfifo(tmp_path / folder / name)
    (tmp_path / "texts" / "a.txt").write_text("one\n")
    Image.new("RGB", (3, 3)).save(tmp_path / "pictures" / "a.png")
    assert [p.name for p in text_files(tmp_path / "texts")] == ["a.txt"]
    assert list(read_images(tmp_path / "pictures").ids) == ["a.png"]


def test_texts_may_come_through_a_pipe(run, tiny_bert: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")

    def write() -> None:
        (tmp_path / "a.txt").write_text("the cat\na dog\n")

    writer = threading.Thread(target=write)
    writer.start()
    result = run("encode", tiny_bert, tmp_path / "a.txt", "-o", tmp_path / "v.jsonl")
    writer.join()
    assert result.exit_code == 0, result.stderr
    assert len((tmp_path / "v.jsonl").read_text().splitlines()) == 2


def test_a_folder_with_a_link_to_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "around.txt").symlink_to("around.txt")
    (tmp_path / "nowhere.txt").symlink_to("missing")
    (tmp_path / "linked.txt").symlink_to("a.txt")
    assert [p.name for p in text_files(tmp_path)] == ["a.txt", "linked.txt"]


def test_folders_in_folders_without_end_are_refused(tmp_path: Path) -> None:
    folder = tmp_path
    for _ in range(70):
        folder = folder / "d"
        folder.mkdir()
    (folder / "a.txt").write_text("one\n")
    with pytest.raises(DataError, match="more than 64 levels deep"):
        text_files(tmp_path)


@pytest.mark.parametrize("name", ["a" * 5000, "~nobody-here/a.txt", "a/" * 3000])
def test_names_that_no_file_can_have_are_missing_files(run, tiny_bert: Path, name: str) -> None:
    assert "there is no such file" in fails(run, "encode", tiny_bert, name)
    assert "there is no such file" in fails(run, "distill", tiny_bert, "--data", name, "-o", "out")
    with pytest.raises(DataError, match="there is no file"):
        read_images(name)


# --- images ---------------------------------------------------------------------------------------------------------


def png_of(wide: int, high: int) -> bytes:
    """A PNG file whose header promises a size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", wide, high, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(("wide", "high"), [(9_500, 9_500), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_an_image_of_too_many_pixels_is_refused_by_name(
    run, tiny_vit: Path, tmp_path: Path, wide: int, high: int
) -> None:
    (tmp_path / "big.png").write_bytes(png_of(wide, high))
    error = fails(run, "encode", tiny_vit, tmp_path / "big.png", "-o", tmp_path / "v.npy")
    assert "big.png can't be read" in error
    assert "89,478,485" in error
    assert "pixels" in error


def test_formats_that_other_programs_read_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(DataError, match="no image that Pillow knows"):
        read_images(tmp_path / "a.jpg")[0]


def test_of_an_animation_one_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("P", (4, 4), i % 256) for i in range(2_000)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_images(tmp_path / "a.gif")[0].size == (4, 4)


@pytest.mark.parametrize("name", ["/etc/hostname", "../a.png", "b/../../a.png", "a\0.png"])
def test_rows_that_lead_out_of_the_folder_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": name}], kind)}), tmp_path / "in" / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 0: .* leads out of the Parquet file's folder"):
        read_images(tmp_path / "in" / "x.parquet")[0]


@pytest.mark.parametrize("kind", [("bytes", pa.string(), "x"), ("bytes", pa.int64(), 3), ("path", pa.int64(), 3)])
def test_rows_of_another_type_hold_no_image(tmp_path: Path, kind: tuple[str, pa.DataType, object]) -> None:
    other = {"bytes": "path", "path": "bytes"}[kind[0]]
    struct_of = pa.struct([(kind[0], kind[1]), (other, pa.null())])
    pq.write_table(pa.table({"image": pa.array([{kind[0]: kind[2], other: None}], struct_of)}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="there is no image in the column"):
        read_images(tmp_path / "x.parquet")[0]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("counts", [(2**32 - 1,) * 3, (1, 2**16, 2**16), (60_000, 28, 28)])
def test_an_idx_header_that_promises_too_much_is_refused(
    tmp_path: Path, suffix: str, counts: tuple[int, int, int]
) -> None:
    content = struct.pack(">IIII", 0x803, *counts) + bytes(1000)
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(DataError, match=r"the header says|unpacked into memory"):
        read_parts(path)


def test_no_more_of_a_compressed_idx_file_is_unpacked_than_its_header_says(tmp_path: Path) -> None:
    path = tmp_path / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(struct.pack(">IIII", 0x803, 1, 2, 2))
        for _ in range(64):
            stream.write(bytes(1 << 20))
    with pytest.raises(DataError, match="says 1 × 2 × 2 = 4 bytes, more follow"):
        read_parts(path)


# --- NumPy's files --------------------------------------------------------------------------------------------------


def truth_arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {
        "queries": np.ones((2, 3), np.float32),
        "own": np.array([0, -1]),
        "neighbours": np.array([[1, 2], [3, 4]]),
        "scores": np.ones((2, 2), np.float32),
    }
    return arrays | changes


def test_a_truth_file_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **truth_arrays())
    found = read_truth(tmp_path / "t.npz", count=5, dim=3)
    assert found.neighbours.tolist() == [[1, 2], [3, 4]]
    assert found.queries.shape == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbours": np.array([[1, 2], [3, 5]])}, "neighbours has rows from 1 to 5, and the index has 5 vectors"),
        ({"neighbours": np.array([[1, 2], [3, -1]])}, "neighbours has rows from -1"),
        ({"own": np.array([0, -2])}, "own has rows from -2"),
        ({"own": np.array([0, 1, 2])}, "own has 3 rows for 2 queries"),
        ({"queries": np.ones((2, 4), np.float32)}, "queries have 4 dimensions, not 3"),
        ({"queries": np.full((2, 3), np.nan, np.float32)}, "not finite"),
        ({"queries": np.ones((2, 3))}, "queries is float64 of 2 dimensions"),
        ({"scores": np.ones((2, 3), np.float32)}, "have .* scores"),
        ({"scores": np.array([["a", "b"]] * 2)}, "not numbers"),
        ({"more": np.ones(3)}, "it holds more.npy"),
    ],
)
def test_a_truth_file_of_another_index_is_refused(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "t.npz", **truth_arrays(**changes))
    with pytest.raises(DataError, match=rf"t\.npz is damaged: .*{message}"):
        read_truth(tmp_path / "t.npz", count=5, dim=3)


def npy(header: str, body: bytes) -> bytes:
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 1000000), }", "its header says"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, 3), }", "its header says"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }", "not numbers"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 300 + ", }", "damaged"),
    ],
)
def test_headers_of_arrays_take_no_memory(tmp_path: Path, header: str, message: str) -> None:
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as stored:
        for name, array in truth_arrays().items():
            stream = io.BytesIO()
            np.save(stream, array)
            stored.writestr(f"{name}.npy", npy(header, bytes(24)) if name == "queries" else stream.getvalue())
    with pytest.raises(DataError, match=rf"t\.npz is damaged.*{message}|{message}"):
        read_truth(tmp_path / "t.npz")


def test_a_compressed_truth_file_is_refused_packed(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "t.npz", **truth_arrays(queries=np.zeros((200_000, 100), np.float32)))
    assert (tmp_path / "t.npz").stat().st_size < 1_000_000
    with pytest.raises(DataError, match=r"queries\.npy is compressed"):
        read_truth(tmp_path / "t.npz")


def test_documents_and_their_offsets_are_checked(tmp_path: Path) -> None:
    (tmp_path / "documents.jsonl").write_bytes(b'{"id": "a", "text": "x"}\n{"id": 3, "text": "x"}\n')
    (tmp_path / "offsets.bin").write_bytes(np.array([0, 25, -9, 10_000], "<i8").tobytes())
    documents = Documents(tmp_path)
    assert documents.of_rows([0]) == {0: ("a", "x")}
    for row in (1, 2, 3, 4):
        with pytest.raises(DataError, match="is damaged"):
            documents.of_rows([row])
    with pytest.raises(DataError, match="is damaged"):
        list(read_documents(tmp_path))
    (tmp_path / "offsets.bin").write_bytes(bytes(9))
    with pytest.raises(DataError, match=r"offsets\.bin is damaged"):
        Documents(tmp_path)


# --- names that are not UTF-8 ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_names_that_are_not_utf_8_become_ids_that_are(run, tiny_bert: Path, tiny_vit: Path, tmp_path: Path) -> None:
    texts, pictures = tmp_path / "texts", tmp_path / "pictures"
    texts.mkdir()
    pictures.mkdir()
    (texts / os.fsdecode(b"caf\xe9.txt")).write_text("\n".join(WORDS[:30]))
    for i in range(2):
        Image.new("RGB", (8, 8)).save(pictures / os.fsdecode(b"p\xff%d.png" % i))
    for model, source, identity in ((tiny_bert, texts, r"caf\xe9.txt:1"), (tiny_vit, pictures, r"p\xff0.png")):
        out = tmp_path / f"{source.name}.jsonl"
        result = run("encode", model, source, "-o", out, "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(out.read_text().splitlines()[0])["id"] == identity
        index = tmp_path / f"{source.name}-index"
        result = run("index", "build", source, "-m", model, "-o", index, "--factory", "flat", "--json")
        assert result.exit_code == 0, result.stderr
        asked = ["the"] if model == tiny_bert else ["--image", next(pictures.iterdir())]
        result = run("index", "search", index, *asked, "--json", "-k", 1)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["schema_version"] == 1


def test_an_image_folder_with_such_labels_has_labels_in_utf_8(tmp_path: Path) -> None:
    for label in (b"a\xff", b"b"):
        folder = tmp_path / os.fsdecode(label)
        folder.mkdir()
        Image.new("RGB", (3, 3)).save(folder / "1.png")
    images = read_images(tmp_path)
    assert sorted(images.labels or ()) == [r"a\xff", "b"]
    assert rf"a\xff{os.sep}1.png" in images.ids


def test_an_empty_name_is_not_the_working_folder(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell variable that is not set gives an empty name."""
    (tmp_path / "texts.txt").write_text("the cat\na dog\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="an empty name can't be read"):
        open_corpus("")
    with pytest.raises(DataError, match="an empty name can't be read"):
        list(read_texts(""))
    result = run("index", "build", "", "--model", tmp_path / "none", "-o", tmp_path / "index")
    assert (result.exit_code, "an empty name can't be read" in result.stderr) == (2, True)
