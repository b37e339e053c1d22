"""Partial outputs and caches: what is ours is used and cleared away, what is not is refused and left as it was."""

import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from support.scores import make_score
from ternarize_cli.errors import InputError, OutputError, OutputExistsError
from ternarize_cli.evaluation.score_cache import ScoreCache
from ternarize_cli.kernels.bitblas import kernel_cache, toolchain
from ternarize_cli.storage import cache_folder, files
from ternarize_cli.storage.whole_files import put_file, sweep
from ternarize_cli.storage.workplace import MARKER, discard, held, holder_path, partial_path

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def tree(folder: Path) -> dict[str, object]:
    """What lies in a folder: paths, and the content of files or the target of links."""
    return {
        str(path.relative_to(folder)): os.readlink(path)
        if path.is_symlink()
        else (path.read_bytes() if path.is_file() else "folder")
        for path in sorted(folder.rglob("*"))
    }


def write_file(output: Path) -> None:
    with files.atomic_file(output) as partial:
        partial.write_text("whole")


def write_folder(output: Path) -> None:
    with files.atomic_folder(output) as partial:
        (partial / "a").write_text("whole")


def write_in_partial_folder(output: Path, *, marker: bool = True, **content: str) -> Path:
    """The partial folder of a run that was killed."""
    holder = holder_path(output)
    holder.mkdir()
    if marker:
        (holder / MARKER).write_text("")
    for name, text in content.items():
        (holder / name).write_text(text)
    return holder


# ---- what is in the place of the partial folder


def _link_to_folder(place: Path, mine: Path) -> None:
    place.symlink_to(mine)


def _link_to_marked_folder(place: Path, mine: Path) -> None:
    (mine / MARKER).write_text("")
    place.symlink_to(mine)


def _link_to_file(place: Path, mine: Path) -> None:
    place.symlink_to(mine / "thesis")


def _dangling_link(place: Path, mine: Path) -> None:
    place.symlink_to(mine / "nowhere")


def _regular_file(place: Path, mine: Path) -> None:
    place.write_text("mine")


def _hard_link(place: Path, mine: Path) -> None:
    place.hardlink_to(mine / "thesis")


def _pipe(place: Path, mine: Path) -> None:
    os.mkfifo(place)


def _folder_without_marker(place: Path, mine: Path) -> None:
    shutil.copytree(mine, place)


def _marker_is_a_link(place: Path, mine: Path) -> None:
    place.mkdir()
    (place / MARKER).symlink_to(mine / "thesis")


def _marker_is_a_hard_link(place: Path, mine: Path) -> None:
    place.mkdir()
    (place / MARKER).hardlink_to(mine / "thesis")


def _marker_is_a_folder(place: Path, mine: Path) -> None:
    (place / MARKER).mkdir(parents=True)


@pytest.mark.parametrize("write", [write_file, write_folder], ids=["file", "folder"])
@pytest.mark.parametrize(
    "put",
    [
        _link_to_folder,
        _link_to_marked_folder,
        _link_to_file,
        _dangling_link,
        _regular_file,
        _hard_link,
        _pipe,
        _folder_without_marker,
        _marker_is_a_link,
        _marker_is_a_hard_link,
        _marker_is_a_folder,
    ],
)
def test_what_is_not_ours_is_refused_and_left_alone(
    tmp_path: Path, put: Callable[[Path, Path], None], write: Callable[[Path], None]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("ten years")
    out = tmp_path / "out"
    put(holder_path(out), tmp_path / "mine")
    before = tree(tmp_path)
    for attempt in (lambda: write(out), lambda: files.check_output(out, force=True), lambda: held(out).__enter__()):
        with pytest.raises(InputError, match=r"\.out\.partial is nothing that ternarize made") as caught:
            attempt()
        assert "remove it, or name another output" in str(caught.value.hint)
    assert tree(tmp_path) == before


@as_root
def test_a_partial_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = write_in_partial_folder(out)
    os.chown(holder, 12345, 12345)
    with pytest.raises(InputError, match="nothing that ternarize made"):
        write_file(out)
    os.chown(holder, 0, 0)
    os.chown(holder / MARKER, 12345, 12345)
    with pytest.raises(InputError, match="nothing that ternarize made"):
        write_file(out)


@pytest.mark.parametrize("command", ["convert", "encode"])
def test_commands_name_what_is_in_the_way(
    run: Callable[..., object], tiny_bert: Path, tmp_path: Path, command: str
) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "x.txt").write_text("the cat\n")
    (tmp_path / ".v.npy.partial").symlink_to("victim")
    inputs = [tiny_bert] if command == "convert" else [tiny_bert, tmp_path / "x.txt"]
    result = run(command, *inputs, "-o", tmp_path / "v.npy")
    assert result.exit_code == 2  # type: ignore[attr-defined]
    assert ".v.npy.partial is nothing that ternarize made" in result.stderr  # type: ignore[attr-defined]
    assert (tmp_path / "victim").read_text() == "mine"


# ---- what is ours


@pytest.mark.parametrize("write", [write_file, write_folder], ids=["file", "folder"])
@pytest.mark.parametrize("marker", [True, False], ids=["marked", "empty"])
def test_what_a_killed_run_left_is_used_and_removed(
    tmp_path: Path, write: Callable[[Path], None], marker: bool
) -> None:
    out = tmp_path / "out"
    write_in_partial_folder(out, marker=marker, **({"out": "half"} if marker else {}))
    write(out)
    assert sorted(tree(tmp_path)) in (["out"], ["out", "out/a"])


def test_the_folder_is_private_and_its_outputs_are_not(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with files.atomic_folder(tmp_path / "folder") as partial:
            (partial / "a").write_text("")
            assert stat.S_IMODE(holder_path(tmp_path / "folder").stat().st_mode) == 0o700
            assert "ternarize" in (partial.parent / MARKER).read_text()
        write_file(tmp_path / "file")
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    assert modes == {"folder": 0o755, "a": 0o644, "file": 0o644}


def test_an_output_named_as_the_marker_is_an_output(tmp_path: Path) -> None:
    write_file(tmp_path / MARKER)
    write_folder(tmp_path / f"{MARKER}-of")
    assert sorted(tree(tmp_path)) == [MARKER, f"{MARKER}-of", f"{MARKER}-of/a"]


@pytest.mark.parametrize("link", ["symbolic", "hard", "folder"])
def test_links_in_what_is_resumed_are_refused(tmp_path: Path, link: str) -> None:
    out = tmp_path / "out"
    write_in_partial_folder(out)
    partial_path(out).mkdir()
    victim = tmp_path / "victim"
    if link == "folder":
        victim.mkdir()
    else:
        victim.write_text("mine")
    place = partial_path(out) / "metrics.jsonl"
    if link == "hard":
        place.hardlink_to(victim)
    else:
        place.symlink_to(victim)
    before = tree(tmp_path)
    with (
        pytest.raises(InputError, match=r"metrics\.jsonl is nothing that ternarize made"),
        files.atomic_folder(out, resume=True) as partial,
    ):
        (partial / "metrics.jsonl").write_text("ours")
    assert tree(tmp_path) == before
    write_folder(out)  # without resuming they are removed, and what they lead to is not
    assert tree(victim.parent).keys() - before.keys() == {"out", "out/a"}
    assert victim.is_dir() or victim.read_text() == "mine"


def test_a_resumed_folder_keeps_what_was_there(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fail(partial: Path) -> None:
        (partial / "first").write_text("1")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), files.atomic_folder(out, resume=True) as partial:
        fail(partial)
    with files.atomic_folder(out, resume=True) as partial:
        assert (partial / "first").read_text() == "1"
    assert sorted(tree(tmp_path)) == ["out", "out/first"]


def test_a_refused_run_removes_what_a_finished_one_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_file(out)
    write_in_partial_folder(out)  # killed after the last rename
    with pytest.raises(OutputExistsError):
        write_file(out)
    assert sorted(tree(tmp_path)) == ["out"]


def test_a_refused_run_keeps_work_that_could_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_file(out)
    write_in_partial_folder(out, out="half")
    with pytest.raises(OutputExistsError):
        write_file(out)
    assert partial_path(out).read_text() == "half"
    discard(out)
    assert sorted(tree(tmp_path)) == ["out"]


_DIE = """
import os, sys
from pathlib import Path
from ternarize_cli.storage import files
point, exchange, out = sys.argv[1], sys.argv[2] == "exchange", Path(sys.argv[3])
if not exchange:
    files._exchange = lambda *_: False
calls, inside = [], [False]
def die(event, arguments):
    if event in ("os.rename", "shutil.rmtree", "os.remove", "os.rmdir", "os.mkdir") and inside[0]:
        calls.append(event)
        if len(calls) == int(point):
            os._exit(9)
sys.addaudithook(die)
inside[0] = True
with files.atomic_folder(out, force=True) as partial:
    (partial / "config.json").write_text("new")
    (partial / "inner").mkdir()
print(len(calls))
"""


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["exchange", "two renames"])
def test_a_replacement_that_ends_before_any_step_loses_neither_output(tmp_path: Path, exchange: str) -> None:
    def die_at(point: int) -> int:
        out = tmp_path / str(point) / "out"
        out.mkdir(parents=True)
        (out / "config.json").write_text("old")
        (out / "old").write_text("old")
        command = [sys.executable, "-c", _DIE, str(point), exchange, str(out)]
        return subprocess.run(command, stdout=subprocess.DEVNULL).returncode

    for point in range(1, 60):
        died = die_at(point)
        out = tmp_path / str(point) / "out"
        if exchange == "exchange" or died == 0:
            assert out.is_dir(), point
        with pytest.raises(OutputExistsError):  # a run that is refused puts the old one back where it is away
            files.check_output(out, force=False)
        there = tree(out)
        assert there in ({"config.json": b"old", "old": b"old"}, {"config.json": b"new", "inner": "folder"}), point
        with files.atomic_folder(out, force=True) as partial:
            (partial / "config.json").write_text("third")
        assert sorted(tree(tmp_path / str(point))) == ["out", "out/config.json"], point
        if died == 0:
            break
    assert died == 0
    assert point > 6


def test_a_failure_between_two_renames_puts_the_old_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    monkeypatch.setattr(files, "_exchange", lambda *_: False)
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if target == out and path == partial_path(out):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), files.atomic_folder(out, force=True) as partial:
        (partial / "config.json").write_text("new")
    assert tree(tmp_path) == {"out": "folder", "out/config.json": b"old"}


def test_a_device_or_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputExistsError, match="a device or a pipe"):
        files.check_output(tmp_path / "pipe", force=True, folder=False)


def test_a_name_that_is_too_long_is_an_error_of_the_output(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long"):
        write_file(tmp_path / ("x" * 250))


# ---- folders to which many processes write


def _write_and(spoil: Callable[[Path], None], output: Path) -> None:
    with files.atomic_file(output) as partial:
        spoil(partial)
        partial.read_bytes()


def test_a_missing_parent_is_named_and_never_the_hidden_folder(tmp_path: Path) -> None:
    output = tmp_path / "dir" / "x.npy"
    with pytest.raises(OutputError, match=r"x\.npy: there is no folder .*dir$") as missing:
        files.check_output(output, force=False)
    assert missing.value.hint == f"mkdir -p {output.parent}"
    for spoil, message in (
        (lambda partial: shutil.rmtree(output.parent), r"x\.npy: there is no folder .*dir$"),
        (lambda partial: partial.unlink(), r"can't write .*dir/x\.npy: No such file"),
    ):
        output.parent.mkdir(exist_ok=True)
        with pytest.raises(OutputError, match=message):
            _write_and(spoil, output)
    shutil.rmtree(output.parent)
    output.parent.write_text("")
    with pytest.raises(OutputError, match="dir is a file"):
        files.check_output(output, force=False)


def test_jobs_remove_what_killed_ones_left_and_nothing_else(tmp_path: Path) -> None:
    dead = tmp_path / f"000001.npy.{'0' * 32}.partial"
    dead.write_text("half")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / f"000002.npy.{'1' * 32}.partial"
    link.symlink_to(victim)
    os.mkfifo(tmp_path / f"000003.npy.{'2' * 32}.partial")
    (tmp_path / "letter.partial").write_text("mine")
    began, go_on = threading.Event(), threading.Event()

    def slow(stream: object) -> None:
        began.set()
        go_on.wait(60)
        stream.write(b"whole")  # type: ignore[attr-defined]

    job = threading.Thread(target=put_file, args=(tmp_path / "000004.npy", slow))
    job.start()
    began.wait(60)
    sweep(tmp_path)
    assert not dead.exists()
    assert link.is_symlink()
    assert len(list(tmp_path.glob("000004.npy.*.partial"))) == 1
    go_on.set()
    job.join()
    assert (tmp_path / "000004.npy").read_bytes() == b"whole"
    assert victim.read_text() == (tmp_path / "letter.partial").read_text() == "mine"
    assert len(list(tmp_path.glob("000003*"))) == 1
    assert not list(tmp_path.glob("000004.npy.*"))


@pytest.mark.slow
def test_encoding_shards_removes_what_killed_jobs_left(
    run: Callable[..., object], tiny_bert: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.txt").write_text("the cat\na dog\n")
    arguments = ("encode", tiny_bert, tmp_path / "x.txt", "--shards", "-o", tmp_path / "v")
    assert run(*arguments).exit_code == 0  # type: ignore[attr-defined]
    before = tree(tmp_path / "v")
    for name in ("000000.parquet", "000000.json", "vectors.json"):
        (tmp_path / "v" / f"{name}.{'a' * 32}.partial").write_text("half")
    assert run(*arguments).exit_code == 0  # type: ignore[attr-defined]
    assert tree(tmp_path / "v") == before


# ---- caches


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the cache, which is not there yet."""
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(toolchain, "card", lambda: "card")
    monkeypatch.setattr(toolchain, "versions", lambda: "versions")
    (tmp_path / "built.so").write_bytes(b"a library")
    return tmp_path / "cache"


def test_folders_and_files_of_the_cache_are_for_this_user_alone(cache: Path, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        library = kernel_cache.keep("int8-16x16", tmp_path / "built.so")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (cache, library.parent, library.parent.parent)} == {0o700}
    assert stat.S_IMODE(library.stat().st_mode) == 0o600
    assert kernel_cache.find("int8-16x16") == library


@pytest.mark.parametrize("which", ["cache", "cache/bitblas", "folder", "library", "record"])
@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_kernel_that_others_could_have_written_is_refused(cache: Path, tmp_path: Path, which: str, mode: int) -> None:
    library = kernel_cache.keep("int8-16x16", tmp_path / "built.so")
    loose = {"folder": library.parent, "library": library, "record": library.with_suffix(".json")}.get(
        which, tmp_path / which
    )
    loose.chmod(mode)
    with pytest.raises(InputError, match="can be written by other users") as caught:
        kernel_cache.find("int8-16x16")
    assert caught.value.hint == f"chmod -R go-w {loose}"
    subprocess.run(["chmod", "-R", "go-w", str(loose)], check=True)
    assert kernel_cache.find("int8-16x16") == library


@as_root
def test_a_kernel_of_another_user_is_refused_even_through_a_link(cache: Path, tmp_path: Path) -> None:
    library = kernel_cache.keep("int8-16x16", tmp_path / "built.so")
    os.chown(library, 12345, 12345)
    with pytest.raises(InputError, match="of another user"):
        kernel_cache.find("int8-16x16")
    theirs = library.rename(tmp_path / "theirs.so")
    library.symlink_to(theirs)
    with pytest.raises(InputError, match="of another user"):
        kernel_cache.find("int8-16x16")
    kernel_cache.keep("int8-16x16", tmp_path / "built.so")
    assert not library.is_symlink()
    assert theirs.stat().st_uid == 12345


def test_doctor_says_what_is_wrong_with_the_cache(cache: Path) -> None:
    assert kernel_cache.unwritable() is None
    cache_folder.made_folder(cache).chmod(0o777)
    assert "chmod -R go-w" in str(kernel_cache.unwritable())


def test_scores_that_others_could_have_written_are_refused(cache: Path) -> None:
    assert ScoreCache().put("k", make_score())
    assert ScoreCache().get("k") is not None
    (cache / "scores" / "k.npz").chmod(0o666)
    with pytest.raises(InputError, match=r"k\.npz can be written by other users"):
        ScoreCache().get("k")
    (cache / "scores").chmod(0o777)
    with pytest.raises(InputError, match="scores can be written by other users"):
        ScoreCache()


def test_scores_that_can_not_be_kept_are_said_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    cache = ScoreCache(tmp_path / "file" / "scores")
    assert not cache.put("k", make_score())
    assert not cache.put("l", make_score())
    assert len(caplog.messages) == 1
    assert "scores can't be stored" in caplog.messages[0]


# ---- a disk that takes no more


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_array_for_which_the_disk_has_no_room_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"the disk is full: .*out was not written"),
        files.atomic_folder(tmp_path / "out"),
        Path("/dev/full").open("wb") as full,
    ):
        np.zeros(1 << 17).tofile(full)  # an OSError without a number
    with (
        pytest.raises(OutputError, match=r"the disk is full: .*out was not written"),
        files.atomic_folder(tmp_path / "out"),
        Path("/dev/full").open("wb") as full,
    ):
        np.zeros((2, 1 << 17))[:, ::2].tofile(full)  # with other words, since it is written number by number
    assert tree(tmp_path) == {}


def test_a_file_beyond_the_limit_of_the_process_is_said(tmp_path: Path) -> None:
    code = """
import resource, sys
from pathlib import Path
from ternarize_cli.errors import OutputError
from ternarize_cli.storage import files
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    with files.atomic_file(Path(sys.argv[1])) as partial:
        partial.write_bytes(bytes(1 << 20))
except OutputError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"can't write {tmp_path / 'out'}: File too large\n", "")
    assert tree(tmp_path) == {}
