"""Damaged data, thousands of times: whatever a file holds, reading it ends in a result or in a designed error.

Valid files are mutated by a seed: bytes flipped, cut, doubled and swapped, values replaced by odd ones. TERNARIZE_FUZZ
is the number of cases of each reader, TERNARIZE_FUZZ_FIRST the first; a failing case is named by its number.
"""

import dataclasses
import gzip
import io
import json
import os
import random
import re
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ternarize_cli.bench.report_comparison import compare, comparison_table
from ternarize_cli.data.corpora import open_corpus
from ternarize_cli.data.images import read_images, read_parts
from ternarize_cli.data.text_sources import texts_of
from ternarize_cli.data.texts import read_texts
from ternarize_cli.errors import DataError, TernarizeError
from ternarize_cli.evaluation.reading import read_tasks
from ternarize_cli.index.documents import Documents, read_documents, read_ids, write_documents
from ternarize_cli.index.truth import Truth, read_truth
from ternarize_cli.storage.arrays import read_npy
from ternarize_cli.storage.checksummed import with_checksum
from ternarize_cli.storage.digests import sha256
from ternarize_cli.vectors.finished_work import RECORDS
from ternarize_cli.vectors.vector_folder import VectorFolder, VectorRecord, chained

CASES = int(os.environ.get("TERNARIZE_FUZZ", "120"))
FIRST = int(os.environ.get("TERNARIZE_FUZZ_FIRST", "0"))

_ODD: list[bytes] = [
    *(b'""', b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"-1", b"0", b"1.5", b"4294967296", b"9" * 5000),
    *(b"[" * 3000, b'{"a":' * 3000, b"[]", b"{}", b'["a", 1]', b'"\\ud800"', b'"\\u0000"', b'"~nobody/x"', b"\xff"),
    *(b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\t", b",", b'"', b"\r\n", b"\n\n", b"a" * 70_000, b"/dev/zero", b".."),
]
_VALUE = re.compile(rb'"[^"\n]*"|-?\d+(?:\.\d+)?|true|false|null|[a-z]+')


def mutated(content: bytes, rng: random.Random) -> bytes:
    """`content` after one to three changes."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice([1, 2, 4, 16, 200]))
        change = rng.randrange(9)
        if change == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at:end] = rng.randbytes(end - at)
        elif change == 2:
            del data[at:end]
        elif change == 3:
            del data[at:]
        elif change == 4:
            data[at:at] = data[at:end] * rng.choice([1, 2, 50])
        elif change == 5:
            data[at:end] = rng.choice([b"\xff", b"\x00", b"\x7f", b"\x80"]) * (end - at)
        elif change == 6:
            data[at:at] = rng.choice(_ODD)
        elif found := list(_VALUE.finditer(data)):
            value = rng.choice(found)
            data[value.start() : value.end()] = rng.choice(_ODD)
    return bytes(data)


def _jsonl(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _table(**columns: object) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def _picture(kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


_TEXTS = _jsonl({"_id": "a", "text": "cat", "title": "t"}, {"id": 3, "text": "dog"})
_PAIRS = _jsonl({"query": "q", "answer": ["b", "c"]}, {"text": "dog"})
_ROWS = ["the cat", "a dog", "by the house", "a tree"]
_PARQUET = _table(_id=["a", "b", "c", "d"], text=_ROWS, title=["t", None, "", "u"], score=[1.0, 2.0, 3.0, 0.5])
_IDX = struct.pack(">IIII", 0x803, 3, 4, 5) + bytes(60)
_IDX_LABELS = struct.pack(">II", 0x801, 3) + bytes([0, 1, 0])
_IMAGES = {
    **{f"{kind}.{kind}": _picture(kind) for kind in ("png", "gif", "bmp", "webp", "tiff", "ppm", "jpeg")},
    "lzw.tiff": _picture("tiff", compression="tiff_lzw"),
    "moving.gif": _picture("gif", save_all=True, append_images=[Image.new("RGB", (9, 12))] * 3),
    "moving.png": _picture("png", save_all=True, append_images=[Image.new("RGB", (9, 12))] * 3),
    "turned.jpeg": _picture("jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"),
}
_STRUCTS = pa.array(
    [{"bytes": _IMAGES["png.png"], "path": None}, {"bytes": None, "path": "png.png"}],
    pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
)
_REPORT = {
    "model": "m",
    "machine": {"cpu": "x", "threads": 2, "gpus": [{"name": "g"}]},
    "rows": [{"name": "native", "batch": 1, "tokens": 16, "median_ms": 1.5, "p10_ms": 1, "p90_ms": 2, "lengths": "x"}],
}


def _all_images(folder: Path) -> None:
    for images in read_parts(folder).values():
        for row in range(len(images)):
            if len(images) < 1000:
                images[row]


def _one_by_one(folder: Path) -> None:
    for name in _IMAGES:
        try:
            list(read_images(folder / name))
        except DataError:
            continue


def _corpus(name: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for identity, text in open_corpus(str(folder / name)).items:
            (identity + text).encode()
        for _ in texts_of(folder / name, 10, 0, paired=True):
            pass

    return read


def _tasks(**names: str) -> Callable[[Path], None]:
    def read(folder: Path) -> None:
        for task in read_tasks(**{kind: [folder / name] for kind, name in names.items()}):  # type: ignore[arg-type]
            json.dumps([task.name, task.sha256], ensure_ascii=False).encode()

    return read


def _truth_file() -> bytes:
    stream = io.BytesIO()
    rng = np.random.default_rng(0)
    truth = Truth(
        rng.normal(size=(4, 3)).astype(np.float32),
        np.array([0, 1, -1, 2]),
        rng.integers(0, 9, (4, 2)),
        rng.normal(size=(4, 2)).astype(np.float32),
    )
    np.savez(stream, **dataclasses.asdict(truth))
    return stream.getvalue()


def _npy_file() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.arange(12, dtype=np.float32).reshape(4, 3))
    return stream.getvalue()


def _documents(folder: Path) -> None:
    read = list(read_documents(folder))
    assert len(Documents(folder).of_rows(range(len(read)))) == len(read)


def _document_files() -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        list(write_documents([("a", "cat"), ("b", 'do"g\n'), ("ü", "")], Path(folder)))
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


_CSV = b'sentence1,sentence2,score\n"a, ""b""",c,1\nd,"e\nf",2.5\n'
_QRELS = b"query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td2\t1\n"
_TOML = b'type = "classification"\npath = "a.tsv"\nname = "n"\nlabel = "label"\ntext = "text"\n'
_JSON = b'{"type": "sts", "path": "a.csv", "name": "n", "score": "score"}\n'
_TSV = b"label\ttext\na\tcat\na\tdog\nb\ttree\nb\triver\n"

_READERS: dict[str, tuple[dict[str, bytes], Callable[[Path], object]]] = {
    "texts": ({"a.txt": "caf\u00e9\n\ntwo\r\nthree".encode()}, lambda d: list(read_texts(d / "a.txt"))),
    "jsonl": ({"a.jsonl": _TEXTS + _PAIRS}, lambda d: list(read_texts(d / "a.jsonl", also=("query", "answer")))),
    "gz": ({"a.jsonl.gz": gzip.compress(_TEXTS, mtime=0)}, lambda d: list(read_texts(d / "a.jsonl.gz"))),
    "ids": ({"a.ids": b"a\nb\r\n\nc"}, lambda d: read_ids([str(d / "a.ids")])),
    "corpus of jsonl": ({"a.jsonl": _TEXTS}, _corpus("a.jsonl")),
    "corpus of Parquet": ({"a.parquet": _PARQUET}, _corpus("a.parquet")),
    "sts csv": ({"a.csv": _CSV}, _tasks(sts="a.csv")),
    "sts jsonl": (
        {"a.jsonl": _jsonl(*({"sentence1": "a", "sentence2": "b", "score": i} for i in range(3)))},
        _tasks(sts="a.jsonl"),
    ),
    "sts Parquet": (
        {"a.parquet": _table(sentence1=_ROWS, sentence2=_ROWS, score=[1, 2, 3, 4])},
        _tasks(sts="a.parquet"),
    ),
    "labels": ({"a.tsv": _TSV}, _tasks(classification="a.tsv")),
    "retrieval": (
        {
            "corpus.jsonl": _jsonl({"_id": "d1", "text": "cat", "title": "t"}, {"_id": "d2", "text": "dog"}),
            "queries.jsonl": _jsonl({"_id": "q1", "text": "c", "relevant": ["d1"]}, {"_id": "q2", "text": "d"}),
            "qrels/test.tsv": _QRELS,
        },
        _tasks(retrieval="."),
    ),
    "task toml": ({"t.toml": _TOML, "a.tsv": _TSV}, _tasks(task_files="t.toml")),
    "task json": ({"t.json": _JSON, "a.csv": _CSV}, _tasks(task_files="t.json")),
    "images": (_IMAGES, _one_by_one),
    "IDX": ({"train-images-idx3-ubyte": _IDX, "train-labels-idx1-ubyte": _IDX_LABELS}, _all_images),
    "IDX gz": ({"train-images-idx3-ubyte.gz": gzip.compress(_IDX, mtime=0)}, _all_images),
    "CIFAR": ({"train.bin": bytes(2 * 3074), "fine_label_names.txt": b"apple\nbear\n"}, _all_images),
    "Parquet images": (
        {"a.parquet": _table(image=_STRUCTS, label=[0, 1]), "png.png": _IMAGES["png.png"]},
        lambda d: _all_images(d / "a.parquet"),
    ),
    "truth": ({"truth.npz": _truth_file()}, lambda d: read_truth(d / "truth.npz", count=9, dim=3)),
    "npy": ({"a.npy": _npy_file()}, lambda d: read_npy(d / "a.npy", DataError)),
    "documents": (_document_files(), _documents),
    "bench reports": (
        {"a.json": json.dumps(_REPORT).encode(), "b.json": json.dumps(_REPORT).encode()},
        lambda d: comparison_table(compare([d / "a.json", d / "b.json"])),
    ),
}


def _run(name: str, files: dict[str, bytes], read: Callable[[Path], object], folder: Path, change: object) -> None:
    """One case after the other; `change` makes a new content of a file."""
    for file, content in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)
    read(folder)  # what is whole is read
    for case in range(FIRST, FIRST + CASES):
        rng = random.Random(f"{name} {case}")
        file = rng.choice(sorted(files))
        (folder / file).write_bytes(change(files[file], rng))  # type: ignore[operator]
        try:
            with warnings.catch_warnings(action="ignore"):
                read(folder)
        except TernarizeError as e:
            if len(str(e)) > 2000:
                raise AssertionError(f"{name}, case {case}: a message of {len(str(e))} characters") from e
        except Exception as e:
            raise AssertionError(f"{name}, case {case} ({file}): {type(e).__name__}: {str(e)[:200]}") from e
        (folder / file).write_bytes(files[file])


@pytest.mark.parametrize("name", _READERS)
def test_damaged_files_end_in_a_result_or_a_designed_error(name: str, tmp_path: Path) -> None:
    _run(name, *_READERS[name], tmp_path, mutated)


def _vector_files(kind: str) -> dict[str, bytes]:
    record = VectorRecord(
        model="m",
        model_path="/m",
        model_sha256="0",
        kind="text",
        normalized=True,
        document_prompt=None,
        query_prompt="q",
        dim=3,
        similarity="cosine",
        dtype="fp32",
        format=kind,
        shard_size=4,
    )
    vectors = np.arange(12, dtype=np.float32).reshape(4, 3)
    if kind == "npy":
        parts = {".npy": _npy_file(), ".ids": json.dumps(["a", "b", "c", "d"]).encode()}
    else:
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 3)
        parts = {".parquet": _table(id=["a", "b", "c", "d"], vector=column)}
    shard = {"files": dict.fromkeys(parts, ""), "rows": 4, "of": "x", "chain": chained("", "x"), "last": True}
    return {
        "vectors.json": json.dumps(dataclasses.asdict(record)).encode(),
        "000000.json": json.dumps(shard).encode(),
        **{f"000000{suffix}": content for suffix, content in parts.items()},
    }


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_signed_shards_of_damaged_vectors_end_in_a_designed_error(kind: str, tmp_path: Path) -> None:
    """The records are signed again after a change, and hold the digests of the changed files."""
    shards = tmp_path / "with_checksum"
    (shards / RECORDS).mkdir(parents=True)

    def read(folder: Path) -> None:
        for path in folder.glob("*.*"):
            content = path.read_bytes()
            if path.suffix == ".json":
                try:
                    record = json.loads(content)
                    if isinstance(record.get("files"), dict):
                        record["files"] = {s: sha256(folder / f"000000{s}") for s in record["files"]}
                    content = with_checksum(record).encode()
                except (ValueError, OSError, AttributeError, RecursionError):
                    pass
            (shards / (RECORDS if path.suffix == ".json" else "") / path.name).write_bytes(content)
        opened = VectorFolder(shards)
        assert len(list(opened.ids())) == opened.count
        opened.load(0)
        opened.rows(np.array([0]))

    _run(f"vectors {kind}", _vector_files(kind), read, tmp_path, mutated)
