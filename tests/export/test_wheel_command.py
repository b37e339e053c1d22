"""The command of a wheel: lines of JSON, --check, and failures in a line."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.c_model import LIBRARY
from support.wheels import MAIN, alone
from ternarize_cli.errors import FormatError, InputError, UnavailableError
from ternarize_cli.export.carried.check import check
from ternarize_cli.runtime.encoder import Encoder

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the compiled library is not built")
TEXTS = ["the cat", "a dog house by the river"]
AGAIN = "  try: install the package again: pip install --force-reinstall WHEEL\n"


def test_the_command_takes_arguments_or_lines_and_gives_a_line_of_json_each(site: Path, packed: Path) -> None:
    wanted = Encoder(packed).encode(TEXTS, dimensions=5)
    by_arguments = alone(site, MAIN, *TEXTS, "--dimensions", "5")
    by_lines = alone(site, MAIN, "--dimensions", "5", text="\n".join(TEXTS))
    assert by_arguments.stdout == by_lines.stdout, by_lines.stderr
    rows = [json.loads(line) for line in by_arguments.stdout.splitlines()]
    assert [row["id"] for row in rows] == ["1", "2"]
    assert (np.array([row["vector"] for row in rows], np.float32) == wanted).all()


def test_the_command_says_what_is_wrong(site: Path) -> None:
    for arguments, why in (
        (("--prompt-name", "other"), "the model has no prompt named 'other'"),
        (("--dimensions", "33"), "33 dimensions are asked for, and vectors have 32"),
    ):
        made = alone(site, MAIN, "a text", *arguments)
        assert made.returncode == InputError.exit_code
        assert made.stderr.startswith(f"error: {why}")
        assert made.stdout == ""
    made = alone(site, MAIN, text="a text\n\udcff\n")
    assert made.returncode == InputError.exit_code
    assert "line 2 of stdin is not UTF-8" in made.stderr


def test_check_compares_results_with_those_of_the_export(site: Path) -> None:
    made = alone(site, MAIN, "--check")
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("3 results: equal bit for bit\n")
    scalar = alone(site, MAIN, "--check", environment={"TERNARIZE_NATIVE_ISA": "scalar"})
    assert scalar.returncode == 0, scalar.stderr
    assert "scalar here" in scalar.stdout


@pytest.mark.parametrize(
    ("change", "here", "is_well"),
    [(1e-3, "avx2", True), (0.1, "avx2", False), (0.1, "amx", True), (0.2, "amx", False)],
)
def test_vectors_that_are_too_far_apart_are_told(change: float, here: str, is_well: bool) -> None:
    wanted = np.eye(3, 8, dtype=np.float32)
    made = wanted.copy()
    made[1, 0] += change
    stored = {"kind": "encoder", "instruction_set": "avx2", "results": wanted.tolist()}
    found, said = check(stored, made, here)
    assert found == is_well
    assert f"up to {change:.2g} apart; the least cosine is " in said


@pytest.mark.parametrize(
    ("change", "here", "is_well"),
    [(0.039, "avx2", True), (0.041, "avx2", False), (0.39, "amx", True), (0.41, "amx", False)],
)
def test_scores_that_are_too_far_apart_are_told(change: float, here: str, is_well: bool) -> None:
    stored = {"kind": "reranker", "instruction_set": "avx2", "results": [[2.0], [-4.0], [0.0]]}
    assert check(stored, np.array([[2.0], [-4 + change], [0.0]], np.float32), here)[0] == is_well


@pytest.fixture
def damaged(site: Path, tmp_path: Path) -> Path:
    """A copy of the installed wheel in which 50 rows of the table of words were overwritten."""
    copy = tmp_path / "site"
    shutil.copytree(site, copy, symlinks=True)
    path = copy / "my_minilm" / "model" / "model.safetensors"
    content = bytearray(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    tensors = json.loads(content[8 : 8 + size])
    (name,) = (name for name in tensors if name.endswith("word_embeddings.weight"))
    begin = 8 + size + tensors[name]["data_offsets"][0] + 32 * 5
    for place in range(begin, begin + 50 * 32):
        content[place] ^= 0x55
    path.write_bytes(content)
    return copy


@pytest.mark.parametrize("environment", [{}, {"TERNARIZE_VERIFY": "0"}], ids=["usual", "unverified"])
def test_check_finds_damage_in_any_byte(damaged: Path, environment: dict[str, str]) -> None:
    made = alone(damaged, MAIN, "--check", environment=environment)
    assert (made.returncode, made.stdout) == (FormatError.exit_code, "")
    assert made.stderr.startswith("error: ")
    assert made.stderr.endswith(f"model.safetensors is not what was packed: its sha256 differs\n{AGAIN}")


def test_damage_is_to_be_mended_by_installing_again(damaged: Path) -> None:
    ask = "from my_minilm import encode\ntry: encode(['a'])\nexcept Exception as e: print(e.hint)"
    assert alone(damaged, ask).stdout.strip() == AGAIN.strip().removeprefix("try: ")
    (damaged / "my_minilm" / "model" / "config.json").write_text("{}")
    assert alone(damaged, MAIN, "a").stderr.endswith(AGAIN)
    shutil.rmtree(damaged / "my_minilm" / "model")
    assert alone(damaged, MAIN, "a").stderr.endswith(AGAIN)


def test_a_missing_library_is_to_be_mended_by_installing_again(site: Path, tmp_path: Path) -> None:
    shutil.copytree(site, tmp_path / "site", symlinks=True)
    (tmp_path / "site" / "my_minilm" / "_runtime" / "runtime" / "native" / "libternarize_alone.so.1").unlink()
    made = alone(tmp_path / "site", MAIN, "a")
    assert made.returncode == UnavailableError.exit_code
    assert made.stderr.endswith(AGAIN)
    made = alone(site, MAIN, "a", environment={"TERNARIZE_NATIVE_ISA": "sse9"})
    assert made.returncode == UnavailableError.exit_code
    assert made.stderr.endswith("  try: unset it\n")


def test_the_help_names_the_key_of_the_server(site: Path) -> None:
    assert "TERNARIZE_API_KEY" in alone(site, MAIN, "--help").stdout


def started(site: Path) -> subprocess.Popen[str]:
    """The command, reading lines from a pipe."""
    command = [sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {MAIN}"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, **pipes, text=True, cwd="/")  # type: ignore[call-overload,no-any-return]


def feed(command: subprocess.Popen[str]) -> None:
    """Gives the command a chunk of lines, and waits for the first result."""
    assert command.stdin is not None
    assert command.stdout is not None
    command.stdin.write("the cat\n" * 256)
    command.stdin.flush()
    assert command.stdout.readline().startswith('{"id": "1", ')


def test_an_interrupt_ends_it_quietly(site: Path) -> None:
    with started(site) as command:
        feed(command)
        command.send_signal(signal.SIGINT)
        command.wait(timeout=60)  # `communicate` closes stdin, at whose end the command may end before the signal comes
        _, said = command.communicate(timeout=60)
        assert (command.returncode, said) == (130, "")


def test_a_reader_that_ends_is_no_failure(site: Path) -> None:
    with started(site) as command:
        feed(command)
        assert command.stdin is not None
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        command.stdin.write("the cat\n" * 1024)
        command.stdin.close()
        assert (command.wait(timeout=60), command.stderr.read()) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("argument", ["a cat", "--check"])
def test_a_full_device_is_told_in_a_line(argument: str, site: Path) -> None:
    begin = f"import sys; sys.path.insert(0, {str(site)!r}); {MAIN}"
    with Path("/dev/full").open("w") as full:
        made = subprocess.run(
            [sys.executable, "-S", "-I", "-c", begin, argument],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (made.returncode, made.stderr) == (1, "error: No space left on device\n")
