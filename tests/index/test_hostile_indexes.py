"""An index folder from a stranger, whose digests fit because he wrote them: nothing in it reaches FAISS unchecked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from support.fuzz_worker import sign
from support.models import WORDS, save_tiny_bert
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.index import faiss_file
from ternarize_cli.index.build import IndexOptions, build_index
from ternarize_cli.index.search import Searcher, check_index


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("model") / "bert")


@pytest.fixture
def build(model: Path, tmp_path: Path) -> Callable[..., Path]:
    """Builds an index of 60 texts."""

    def make(factory: str = "Flat", **options: Any) -> Path:
        (tmp_path / "corpus.txt").write_text("\n".join(f"{a} {b}" for a in WORDS[:10] for b in WORDS[20:26]))
        build_index(
            str(tmp_path / "corpus.txt"),
            tmp_path / "ix",
            model=str(model),
            options=IndexOptions(factory=factory, **options),
        )
        return tmp_path / "ix"

    return make


def edit(index: Path, **values: Any) -> None:
    record = json.loads((index / "index.json").read_text())
    (index / "index.json").write_text(json.dumps(record | values))
    sign(index)


def rewrite(index: Path, change: Callable[[Any], None]) -> None:
    """Changes the FAISS index and signs the folder."""
    inner = faiss.read_index(str(index / "index.faiss"))
    change(inner)
    faiss.write_index(inner, str(index / "index.faiss"))
    sign(index)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("dim", "32"), ("dim", 0), ("dim", -1), ("dim", 1 << 40), ("dim", True), ("count", -1), ("count", 1.5)),
        *(("count", 61), ("deleted", 61), ("deleted", -1), ("metric", "cosine"), ("metric", None), ("kind", "video")),
        *(("search", {"nprobe": "x"}), ("search", {"nprobe": -1}), ("search", []), ("files", []), ("files", {"a": 1})),
        *(("files", {"../../x": {"bytes": 1, "sha256": ""}}), ("normalized", "yes"), ("model", 3), ("more", 1)),
        *(("factory", None), ("seed", "x"), ("format_version", 99), ("format_version", None)),
    ],
)
def test_a_signed_record_says_only_what_an_index_can(build: Callable[..., Path], field: str, value: object) -> None:
    index = build()
    edit(index, **{field: value})
    for use in (Searcher, check_index):
        with pytest.raises(DataError, match=r"index\.json|deleted-|is missing"):
            use(index)


def test_a_missing_field_is_named(build: Callable[..., Path]) -> None:
    index = build()
    record = json.loads((index / "index.json").read_text())
    del record["factory"]
    (index / "index.json").write_text(json.dumps(record))
    sign(index)
    with pytest.raises(DataError, match=r"index\.json lacks the field factory"):
        Searcher(index)


@pytest.mark.parametrize("name", ["index.faiss", "documents.jsonl", "offsets.bin", "truth.npz", "index.json"])
def test_a_pipe_is_not_waited_for(build: Callable[..., Path], name: str) -> None:
    index = build()
    (index / name).unlink()
    os.mkfifo(index / name)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        Searcher(index)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["index.faiss", "documents.jsonl", "offsets.bin"])
def test_a_flipped_bit_is_found_before_anything_is_read(build: Callable[..., Path], name: str) -> None:
    index = build()
    content = bytearray((index / name).read_bytes())
    content[-2] ^= 1
    (index / name).write_bytes(content)
    with pytest.raises(DataError, match="its sha256 has changed"):
        Searcher(index)


@pytest.mark.slow
def test_verification_can_be_left_out_and_says_so(
    build: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    index = build()
    monkeypatch.setenv("TERNARIZE_VERIFY", "0")
    assert Searcher(index).search(["the cat"], 1)
    assert "without verifying its digests" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("end", [0, 8, 80, 200])
def test_a_cut_file_is_read_apart(build: Callable[..., Path], end: int) -> None:
    index = build("IVF4,Flat")
    (index / "index.faiss").write_bytes((index / "index.faiss").read_bytes()[:end])
    sign(index)
    with pytest.raises(DataError, match=r"index\.faiss is damaged"):
        Searcher(index)


@pytest.mark.slow
def test_what_crashes_faiss_crashes_a_process_of_its_own(tmp_path: Path) -> None:
    """FAISS 1.15 reads freed memory where a RaBitQ index is cut off; any other way to end is as good."""
    vectors = np.random.default_rng(0).standard_normal((200, 32)).astype(np.float32)
    index = faiss.index_factory(32, "IVF4,RaBitQ")
    index.train(vectors)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "whole.faiss"))
    (tmp_path / "cut.faiss").write_bytes((tmp_path / "whole.faiss").read_bytes()[:80])
    faiss_file.read_faiss(tmp_path / "whole.faiss", ("a" * 64,), None)
    with pytest.raises(DataError, match=r"cut\.faiss is damaged"):
        faiss_file.read_faiss(tmp_path / "cut.faiss", ("b" * 64,), None)


@pytest.mark.slow
def test_a_graph_that_leads_out_of_the_index_is_refused(build: Callable[..., Path]) -> None:
    index = build("HNSW8")

    def lead_out(inner: Any) -> None:
        neighbours = faiss.downcast_index(inner).hnsw.neighbors
        faiss.rev_swig_ptr(neighbours.data(), neighbours.size())[3] = 1_000_000

    rewrite(index, lead_out)
    with pytest.raises(DataError, match="damaged"):
        Searcher(index)


@pytest.mark.slow
def test_lists_that_name_rows_out_of_the_index_are_refused(build: Callable[..., Path]) -> None:
    index = build("IVF4,SQ8,RFlat")

    def lead_out(inner: Any) -> None:
        lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(inner).invlists)
        number = next(i for i in range(4) if lists.list_size(i))
        faiss.rev_swig_ptr(lists.get_ids(number), 1)[0] = 1 << 40

    rewrite(index, lead_out)
    with pytest.raises(DataError, match="damaged"):
        Searcher(index)


def test_a_metric_that_the_record_does_not_name_is_refused(build: Callable[..., Path]) -> None:
    index = build()
    edit(index, metric="l2")
    with pytest.raises(DataError, match="another metric than l2"):
        Searcher(index)


@pytest.mark.slow
def test_lists_on_disk_are_those_beside_the_index(build: Callable[..., Path]) -> None:
    index = build("IVF4,Flat", on_disk=True)
    assert Searcher(index).search(["the cat"], 1)
    record = json.loads((index / "index.json").read_text())
    lists = record["files"].pop("index.ivfdata")
    (index / "index.json").write_text(json.dumps(record))
    sign(index)
    with pytest.raises(DataError, match=r"index\.faiss"):
        Searcher(index)
    edit(index, files=record["files"] | {"index.ivfdata": lists})
    with (index / "index.ivfdata").open("r+b") as stream:
        stream.truncate(100)
    sign(index)
    with pytest.raises(DataError, match="damaged"):
        Searcher(index)


def test_deleted_rows_are_rows_of_the_index(build: Callable[..., Path]) -> None:
    index = build()
    for rows in ([60], [-1], [3, 3], [5, 2]):
        name = f"deleted-{len(rows)}.bin"
        np.array(rows, "<i8").tofile(index / name)
        files = json.loads((index / "index.json").read_text())["files"]
        edit(index, deleted=len(rows), files=files | {name: {"bytes": 0, "sha256": ""}})
        with pytest.raises(DataError, match=f"{name} is damaged"):
            Searcher(index)
        edit(index, deleted=0, files=files)
        (index / name).unlink()


def test_a_stranger_s_index_shows_the_model_that_it_names(
    build: Callable[..., Path], model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    index = build()
    assert Searcher(index).search(["the cat"], 1)  # this user's ternarize recorded the path
    edit(index, path_seal="0" * 64)
    with pytest.raises(InputError, match=f"by this user, and says that its model is .* in '{model}'") as raised:
        Searcher(index)
    assert raised.value.hint is not None
    assert f"--model {model}" in raised.value.hint
    assert Searcher(index, model=str(model)).search(["the cat"], 1)
    monkeypatch.chdir(model.parent)
    assert Searcher(index).search(["the cat"], 1)  # it lies in the working folder
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for path in ("/", "no-such", str(tmp_path / "no-such"), "loop/x", "a\0b", "\ud800", "", str(tmp_path.parent)):
        edit(index, model_path=path, model=str(model))
        with pytest.raises(InputError, match="was not built by this user"):
            Searcher(index)
    edit(index, path_seal="é", model_path="/")
    with pytest.raises(InputError, match="was not built by this user"):
        Searcher(index)


def test_a_stranger_s_words_steer_no_terminal(build: Callable[..., Path], run: Callable[..., Any]) -> None:
    index = build()
    steering = "/x\x1b[2J\x1b]0;hi\x07y\nhint: --model good" + "a" * 5000
    edit(index, model_path=steering, model="m\x1b[31m", corpus="c\x1b[31m")
    for command in (("search", index, "the cat"), ("info", index)):
        said = run("index", *command)
        assert not {"\x1b", "\x07"} & set(said.stderr + said.stdout)
        assert "\nhint: --model good" not in said.stderr
        assert len(said.stderr) < 1500


def test_a_student_s_record_is_read_within_bounds(build: Callable[..., Path], tmp_path: Path) -> None:
    index, other = build(), save_tiny_bert(tmp_path / "other", seed=3)
    for content in ("[" * 200_000, "[1]", "", None):
        (other / "distillation.json").unlink(missing_ok=True)
        if content is None:
            os.mkfifo(other / "distillation.json")
        else:
            (other / "distillation.json").write_text(content)
        with pytest.raises(InputError, match="is not the model that made this index"):
            Searcher(index, model=str(other))


def test_a_copied_index_needs_no_model_named_again(build: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(build(), tmp_path / "elsewhere")
    assert Searcher(tmp_path / "elsewhere").search(["the cat"], 1)


def test_a_name_that_faiss_can_t_be_told_is_said_before_the_work(model: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("the cat\n")
    with pytest.raises(InputError, match="FAISS takes only paths in UTF-8"):
        build_index(str(tmp_path / "corpus.txt"), tmp_path / "\udcff", model=str(model))
