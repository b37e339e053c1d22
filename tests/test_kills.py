"""kill -9 at any moment: nothing under the final name but a whole output, and the old one survives."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import WORDS, save_tiny_bert

from ternarize_cli import checkpoint, files
from ternarize_cli.convert import convert


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ternarize_cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))


def kill_when(process: subprocess.Popen[bytes], folder: Path, timeout: float = 90) -> bool:
    """Kills the process as soon as something is written below `folder`; False if it ended before."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if folder.is_dir() and any(folder.iterdir()):
            break
        time.sleep(0.001)
    alive = process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return alive


@pytest.fixture(scope="module")
def big_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that writing it takes a while: 8 layers of width 512."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 2048}
    return save_tiny_bert(tmp_path_factory.mktemp("kills") / "big", **sizes)


@pytest.fixture(scope="module")
def big_ternary(big_bert: Path) -> Path:
    convert(big_bert, big_bert.parent / "big-ternary")
    return big_bert.parent / "big-ternary"


@pytest.mark.parametrize("work", ["convert", "calibrate", "pack"])
def test_a_killed_command_leaves_no_half_output(big_bert: Path, big_ternary: Path, tmp_path: Path, work: str) -> None:
    texts, out = big_bert.parent / "texts.txt", tmp_path / "out"
    texts.write_text("\n".join(f"{a} {b}" for a in WORDS[:20] for b in WORDS[:20]))
    skip = ("encoder.layer.[1-7].*", "*.dense", "*.key", "*.value")
    few = ("--calibration-tokens", 1000, *(part for pattern in skip for part in ("--skip", pattern)))
    command = {
        "convert": ("convert", big_bert),
        "calibrate": ("convert", big_bert, "--calibrate", texts, *few),
        "pack": ("pack", big_ternary),
    }[work]
    assert kill_when(start(*command, "-o", out), files.partial_path(out)), "it ended before it was killed"
    assert not out.exists()
    assert start(*command, "-o", out).wait() == 0
    assert checkpoint.validate(out) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_killed_replacement_keeps_the_old_output(big_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(big_bert, out)
    before = files.content_hash(out)
    process = start("convert", big_bert, "-o", out, "--rule", "absmean", "--force")
    assert kill_when(process, files.partial_path(out)), "it ended before it was killed"
    assert files.content_hash(out) == before


def test_a_killed_distillation_leaves_no_half_output(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    (tmp_path / "texts.txt").write_text("\n".join(f"{a} {b}" for a in WORDS[:20] for b in WORDS[:20]))
    out = tmp_path / "out"
    arguments = ("--teacher", tiny_bert, "--data", tmp_path / "texts.txt", "--minutes", 5, "-o", out)
    process = start("distill", tmp_path / "latent", *arguments)
    deadline = time.monotonic() + 90
    while not files.partial_path(out).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    assert process.poll() is None, "it ended before it was killed"
    process.kill()
    process.wait()
    assert not out.exists()
