"""SIGTERM and SIGHUP clean up as Ctrl-C does, and a command then ends with 128 and the signal's number."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from support.models import WORDS
from support.warm import Program, shared
from ternarize_cli.compress.convert import convert
from ternarize_cli.storage import files, signals
from ternarize_cli.storage.workplace import holder_path

pytestmark = pytest.mark.slow

NAMES = {signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP", signal.SIGINT: "interrupted"}


def wait_for(there: Callable[[], bool], process: Program) -> None:
    deadline = time.monotonic() + 120
    while not there() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()


@pytest.mark.parametrize("number", list(NAMES), ids=lambda n: n.name)
def test_a_signal_removes_what_was_begun(tiny_bert: Path, tmp_path: Path, number: signal.Signals) -> None:
    out = tmp_path / "v.npy"
    process = shared().start("encode", tiny_bert, "-", "-o", out)
    wait_for(holder_path(out).exists, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (128 + number, f"error: {NAMES[number]}\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", list(NAMES), ids=lambda n: n.name)
def test_a_signal_is_told_where_a_library_s_own_clean_up_fails_on_it(number: signal.Signals) -> None:
    script = f"""
import os, sys
from ternarize_cli.__main__ import main
from ternarize_cli.cli.app import app

def work():
    try:
        os.kill(os.getpid(), {int(number)})
    finally:
        raise RuntimeError("release unlocked lock")

app.command("work")(work)
sys.argv = ["ternarize", "work"]
main()
"""
    done = shared().run(program=script)
    assert (done.returncode, done.stderr) == (128 + number, f"error: {NAMES[number]}\n")


def test_a_signal_that_is_ignored_at_the_start_stays_ignored(tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    process = shared().start("encode", tiny_bert, "-", "-o", out, ignoring=signal.SIGHUP)
    wait_for(holder_path(out).exists, process)
    process.send_signal(signal.SIGHUP)
    process.communicate("the cat\n", timeout=60)
    assert process.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["v.npy"]


def test_training_stops_after_a_step_and_goes_on(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    (tmp_path / "texts.txt").write_text("\n".join(f"{a} {b}" for a in WORDS[:30] for b in WORDS))
    out = tmp_path / "out"
    settings = ("--batch-size", 16, "--save-every", 0, "--threads", 1, "--steps", 15)
    data = ("--teacher", tiny_bert, "--data", tmp_path / "texts.txt", "-o", out)
    process = shared().start("distill", tmp_path / "latent", *data, *settings)
    wait_for((files.partial_path(out) / "state.pt").is_file, process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "repeat the command with --resume to go on from here" in said
    assert said.endswith("error: ended by SIGTERM\n")
    assert not out.exists()
    again = shared().start("distill", tmp_path / "latent", *data, *settings, "--resume")
    _, said = again.communicate(timeout=120)
    assert again.returncode == 0, said
    assert "went on from step" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latent", "out", "texts.txt"]


def test_signals_at_any_moment_leave_no_traceback_and_nothing_behind(tiny_bert: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    for i in range(int(os.environ.get("TERNARIZE_SIGNALS", "8"))):
        number = draw.choice(list(NAMES)[:2])
        process = shared().start("convert", tiny_bert, "-o", tmp_path / "out", "--force")
        time.sleep(draw.uniform(0, 1))
        process.send_signal(number)
        _, said = process.communicate()
        assert process.returncode in (128 + number, -number, 0), (i, said)
        assert "Traceback" not in said, (i, said)
        assert {path.name for path in tmp_path.iterdir()} <= {"out"}, i


@pytest.mark.parametrize("number", list(NAMES)[:2], ids=lambda n: n.name)
def test_a_signal_while_python_imports_leaves_no_traceback(
    tiny_bert: Path, tmp_path: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-P", "-m", "ternarize_cli", "convert", str(tiny_bert), "-o", str(tmp_path / "out")]
    # the tests may have been started by nohup, which leaves SIGHUP ignored
    default = partial(signal.signal, number, signal.SIG_DFL)
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=default) as process:
        time.sleep(1.5)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode in (128 + number, -number)
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_dies_of_the_signal() -> None:
    code = (
        "import os, signal, time\n"
        "from ternarize_cli.storage import signals\n"
        "with signals.listen():\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        time.sleep(60)\n"
        "    time.sleep(0.2)\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == (f"{-signal.SIGTERM}\n", "")


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Ctrl-C is heard, which jobs of a shell's background ignore."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_destructor_is_not_lost(
    number: signal.Signals, capfd: pytest.CaptureFixture[str], hears_ctrl_c: None
) -> None:
    class Ending:
        def __del__(self) -> None:
            signal.raise_signal(number)

    def work() -> None:
        Ending()
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt), signals.listen():
        work()
    assert capfd.readouterr().err == ""
    assert signals.received() is None
