"""Commands whose streams are closed, full, plain or without a reader, or whose machine has little of something."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ternarize_cli.cli.failures import explained
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.errors import CheckpointError, OutputError

pytestmark = pytest.mark.slow

Run = Callable[..., Any]


def shell(line: str, *, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Runs a line of bash, in which `ternarize` is this one."""
    ours = f'ternarize() {{ "{sys.executable}" -P -m ternarize_cli "$@"; }}\n'
    variables = dict(os.environ, OMP_NUM_THREADS="1", **environment)
    return subprocess.run(["bash", "-c", ours + line], cwd=cwd, capture_output=True, env=variables, timeout=120)


@pytest.fixture(scope="module")
def packed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed model: commands open it without PyTorch, in a tenth of the time."""
    folder = tmp_path_factory.mktemp("streams")
    convert(tiny_bert, folder / "latent")
    pack(folder / "latent", folder / "packed")
    return folder / "packed"


@pytest.fixture
def here(tiny_bert: Path, packed: Path, tmp_path: Path) -> Path:
    (tmp_path / "m").symlink_to(tiny_bert)
    (tmp_path / "p").symlink_to(packed)
    (tmp_path / "x.txt").write_text("the cat\na dog\n")
    return tmp_path


def test_a_closed_stdout_loses_only_what_is_said_there(here: Path) -> None:
    done = shell("ternarize encode p x.txt -o v.npy --json >&-", cwd=here)
    assert done.returncode == 0, done.stderr
    assert np.load(here / "v.npy").shape == (2, 32)
    done = shell("ternarize encode p x.txt >&-", cwd=here)
    assert (done.returncode, done.stderr) == (1, b"error: stdout is closed\n")


def test_files_do_not_take_the_place_of_closed_streams(here: Path) -> None:
    done = shell("ternarize encode p x.txt -o v.npy <&- >&- 2>&-", cwd=here)
    assert done.returncode == 0
    assert np.load(here / "v.npy").shape == (2, 32)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_plain_stdout_gets_plain_characters(here: Path, encoding: str) -> None:
    done = shell("ternarize inspect p", cwd=here, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert ("32 x 32" if encoding == "ascii" else "32 × 32") in done.stdout.decode(encoding)


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=["UTF-8", "C"])
def test_a_name_that_is_not_utf8_is_printed_and_is_valid_json(here: Path, locale: dict[str, str]) -> None:
    name = "$(printf 'caf\\351').npy"
    done = shell(f"ternarize encode p x.txt -o {name}", cwd=here, **locale)
    assert done.returncode == 0, done.stderr
    assert b"caf\\udce9.npy" in done.stdout + done.stderr
    done = shell(f"ternarize encode p x.txt -o {name} --force --json", cwd=here, **locale)
    assert json.loads(done.stdout)["output"] == "caf\udce9.npy"


def test_a_library_that_can_not_work_with_a_name_is_no_unexpected_error(here: Path) -> None:
    done = shell("ternarize index build x.txt -m p --factory flat -o $(printf 'caf\\351') --json", cwd=here)
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"FAISS takes only paths in UTF-8" in done.stderr
    assert b"unexpected" not in done.stderr
    assert sorted(path.name for path in here.iterdir()) == ["m", "p", "x.txt"]


@pytest.mark.parametrize(
    "command", ["--help", "inspect p", "inspect p --json", "doctor", "encode p x.txt", "convert m -o out"]
)
def test_a_reader_that_goes_ends_a_command_quietly(here: Path, command: str) -> None:
    done = shell(f"ternarize {command} | true; echo ${{PIPESTATUS[0]}}", cwd=here)
    assert done.stdout == b"0\n"
    assert b"rror" not in done.stderr


def test_work_goes_on_when_nobody_reads_stderr(here: Path) -> None:
    done = shell("{ ternarize encode p x.txt -o v.npy 2>&1 >/dev/null; echo $? >code; } | true", cwd=here)
    assert done.returncode == 0
    assert (here / "code").read_text() == "0\n"
    assert (here / "v.npy").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", ["--help", "inspect p", "encode p x.txt"])
def test_a_stdout_that_is_full_is_an_error(here: Path, command: str) -> None:
    done = shell(f"ternarize {command} >/dev/full", cwd=here)
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: No space left on device")


@pytest.mark.parametrize(
    ("most", "command"), [*((most, "encode p x.txt -o out.npy") for most in (5, 6, 8, 12)), (8, "convert m -o out")]
)
def test_few_descriptors_are_enough_or_said_to_be_too_few(here: Path, most: int, command: str) -> None:
    done = shell(f"ulimit -n {most}; ternarize {command} --json", cwd=here)
    assert b"Traceback" not in done.stderr
    if done.returncode:
        assert (done.returncode in (1, 2), done.stdout) == (True, b"")  # 2 where it is a file of the user's
        assert b"too many open files" in done.stderr.lower()
    else:
        assert json.loads(done.stdout)["output"] == command.split()[-1]


# the limit comes after all imports: OpenBLAS, for one, tries for ever to start where there is no memory for it
SMALL = """
import resource, sys
from pathlib import Path
from ternarize_cli.__main__ import main
model, more = sys.argv[1:]
sys.argv[1:] = ["convert", "m", "-o", "out"]
try:
    main()
except SystemExit as done:
    assert not done.code, done.code
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (int(more) << 20),) * 2)
sys.argv[1:] = ["convert", model, "-o", "large"]
main()
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc")
@pytest.mark.parametrize("more", [16, 128])
def test_too_little_memory_is_said_to_be_so(here: Path, minilm: Path, more: int) -> None:
    command = [sys.executable, "-P", "-c", SMALL, str(minilm), str(more)]
    done = subprocess.run(command, cwd=here, capture_output=True, timeout=120)
    assert done.returncode == 1
    assert "error: there is not enough memory\n  try: " in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert not (here / "large").exists()


def no_array() -> object:
    return np.empty(2**60, np.uint8)


def no_tensor() -> object:
    return torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("fail", [no_array, no_tensor])
def test_whatever_library_has_no_memory_it_is_the_same_failure(fail: Callable[[], object]) -> None:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        fail()
    assert explained(caught.value)[::2] == ("there is not enough memory", 1)


def test_a_cause_counts_and_an_error_of_ours_says_what_it_says() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    error = ImportError("a part is missing")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert explained(error).message == f"too many open files: a process may have {soft} here"
    blamed = CheckpointError("model.safetensors is damaged or cut off", hint="fetch the file again")
    blamed.__cause__ = RuntimeError("unable to mmap 9 bytes from file: Cannot allocate memory (12)")
    assert explained(blamed)[::2] == ("there is not enough memory", 1)
    blamed.__cause__ = MemoryError("a header that asks for 2**60 bytes")
    assert explained(blamed) == ("model.safetensors is damaged or cut off", "fetch the file again", 2)
    assert explained(OutputError("it is full", hint="make room")) == ("it is full", "make room", 1)
    assert explained(ValueError("odd")).message == "unexpected ValueError: odd"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc")
def test_a_home_that_can_not_be_written_says_what_to_set(here: Path) -> None:
    (here / "sts.csv").write_text("the cat,a dog,3\nthe tree,a river,1\na house,the house,5\n")
    done = shell("ternarize eval m --sts sts.csv --no-cache", cwd=here, HOME="/proc/nope")
    assert done.returncode == 1
    assert b"MTEB_CACHE" in done.stderr
    done = shell("ternarize eval m --sts sts.csv --no-cache", cwd=here, HOME="/proc/nope", MTEB_CACHE=str(here / "c"))
    assert done.returncode == 0, done.stderr


# ---- settings


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("allow_pickle = true\n", "allow_pickle"),
        ("[encode]\nallow-pickle = true\n", "allow-pickle"),
        ('[encode]\nray_address = "evil:10001"\n', "ray_address"),
    ],
)
def test_a_file_that_lies_in_the_working_folder_does_not_loosen_safety(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ternarize.toml").write_text(text)
    result = run("doctor")
    assert result.exit_code == 2
    assert f"sets {key}, which is not taken from a file that merely lies in the working folder" in result.stderr
    assert "--config ternarize.toml" in result.stderr
    assert run("--config", "ternarize.toml", "doctor").exit_code == 0
    monkeypatch.setenv("TERNARIZE_CONFIG", "ternarize.toml")
    assert run("doctor").exit_code == 0


def test_a_file_that_is_named_may_allow_pickles(
    run: Run, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file

    from support.models import save_tiny_bert

    monkeypatch.chdir(tmp_path)
    source = save_tiny_bert(tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    (tmp_path / "mine.toml").write_text("[convert]\nallow_pickle = true\n")
    assert "--allow-pickle" in run("convert", source, "-o", "out").stderr
    assert run("--config", "mine.toml", "convert", source, "-o", "out").exit_code == 0
