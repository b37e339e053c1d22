"""A run that was killed or stopped goes on as if nothing had happened."""

import hashlib
import io
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.models import WORDS
from support.two_processes import in_two_processes
from support.warm import Program, shared
from ternarize_cli.compress.convert import convert
from ternarize_cli.distill import Sources, Training, distill, training_checkpoint
from ternarize_cli.distill.options import DistillOptions
from ternarize_cli.errors import CheckpointError, OutputExistsError
from ternarize_cli.storage import files

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
STEPS = 30


@pytest.fixture(scope="module")
def work(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ternary checkpoint `latent`, texts, and `whole`, trained without interruption."""
    folder = tmp_path_factory.mktemp("resume")
    convert(tiny_bert, folder / "latent")
    (folder / "texts.txt").write_text("\n".join(f"{a} {b}" for a in WORDS[:30] for b in WORDS))
    distill(
        folder / "latent",
        tiny_bert,
        Sources([folder / "texts.txt"]),
        folder / "whole",
        training(),
        DistillOptions(threads=1),
    )
    return folder


CHANGES: tuple[dict[str, Any], ...] = (
    {"step": -1},
    {"count": "x"},
    {"seconds": float("nan")},
    {"position": 3},
    {"position": (0, -1)},
    {"losses": None},
    {"held": (0.0, "x", None)},
    {"random": "x"},
    {"sums": 3},
    {"broken": torch.tensor([-1.0, 0.0])},
    {"parameters": []},
    {"optimizer": {}},
    {"queue": None},
)
"""Values of a checkpoint's state that no run has written."""


def write_changed(path: Path, content: bytes, change: dict[str, Any] | None) -> None:
    """Writes a checkpoint with other values, or without half of its bytes, and the digest of what it holds then."""
    changed = content[: len(content) // 2]
    if change is not None:
        made = io.BytesIO()
        torch.save({**torch.load(io.BytesIO(content), weights_only=True), **change}, made)
        changed = made.getvalue()
    path.write_bytes(hashlib.sha256(changed).digest() + changed)


def training(**changes: Any) -> Training:
    return Training(**{"steps": STEPS, "batch_size": 16, "learning_rate": 1e-3, "save_every": 0.0, **changes})


def start(work: Path, tiny_bert: Path, out: Path, *options: object) -> Program:
    settings = ("--steps", STEPS, "--batch-size", 16, "--learning-rate", 1e-3, "--save-every", 0, "--threads", 1)
    command = ("distill", work / "latent", "--teacher", tiny_bert, "--data", work / "texts.txt", "-o", out, *settings)
    return shared().start(*command, *options)


def wait_for_checkpoint(process: Program, out: Path) -> None:
    state, deadline = files.partial_path(out) / "state.pt", time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be stopped"


def test_a_run_that_was_stopped_and_killed_resumes_to_the_same_bytes(
    work: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    stopped = start(work, tiny_bert, out)
    wait_for_checkpoint(stopped, out)
    stopped.send_signal(signal.SIGINT)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    assert "--resume" in errors
    state = files.partial_path(out) / "state.pt"
    before = state.stat().st_mtime_ns
    killed = start(work, tiny_bert, out, "--resume")
    deadline = time.monotonic() + 120
    while state.stat().st_mtime_ns == before and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert killed.poll() is None, "it ended before it could be killed"
    killed.kill()
    killed.communicate()
    assert not out.exists()
    again = start(work, tiny_bert, out, "--resume")
    shown, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    a, b = (load_file(folder / "model.safetensors") for folder in (work / "whole", out))
    assert a.keys() == b.keys()
    assert all(a[name].equal(b[name]) for name in a)
    readings = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (work / "whole", out)]
    assert len(readings[0]) == len(readings[1]) == STEPS
    assert "went on from step" in shown + errors


def test_only_the_same_run_is_resumed(
    work: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, data = tmp_path / "out", Sources([work / "texts.txt"])
    with pytest.raises(CheckpointError, match="nothing to resume"):
        distill(work / "latent", tiny_bert, data, out, training(), DistillOptions(resume=True))
    process = start(work, tiny_bert, out)
    wait_for_checkpoint(process, out)
    process.kill()
    process.communicate()
    with pytest.raises(CheckpointError, match="other models, data or settings"):
        distill(work / "latent", tiny_bert, data, out, training(batch_size=8), DistillOptions(resume=True))
    state = files.partial_path(out) / "state.pt"
    other = tmp_path / "other.txt"
    other.write_text("\n".join(reversed((work / "texts.txt").read_text().splitlines())))
    for sources in (Sources([other]), Sources(data.paths, (2.0,))):
        with pytest.raises(CheckpointError, match="other models, data or settings"):
            distill(work / "latent", tiny_bert, sources, out, training(), DistillOptions(resume=True))
    with pytest.raises(OutputExistsError, match="left a checkpoint"):
        distill(work / "latent", tiny_bert, data, out, training())
    with monkeypatch.context() as patch:
        patch.setattr(training_checkpoint, "REVISION", 0)
        with pytest.raises(CheckpointError, match="another version of ternarize") as caught:
            distill(work / "latent", tiny_bert, data, out, training(), DistillOptions(resume=True))
        assert caught.value.hint == "--force without --resume starts anew"
    whole = state.read_bytes()
    content = bytearray(whole)
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        distill(work / "latent", tiny_bert, data, out, training(), DistillOptions(resume=True))
    for change in (None, *CHANGES):
        write_changed(state, whole[32:], change)
        with pytest.raises(CheckpointError, match=r"is damaged: \w+") as caught:
            distill(work / "latent", tiny_bert, data, out, training(), DistillOptions(resume=True))
        assert caught.value.hint == "--force without --resume starts anew"
    other.unlink()
    distill(work / "latent", tiny_bert, data, out, training(steps=1), force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


_SELDOM = """
import os, runpy, time, types
from ternarize_cli.distill import trainer

slower = types.SimpleNamespace(monotonic=lambda: time.monotonic() * (0.6 if os.environ["RANK"] == "1" else 1.0))
trainer.time = slower
trainer._seconds_between_readings = lambda device: 0.05
runpy.run_module("ternarize_cli", run_name="__main__")
"""
"""Losses are read now and then, as on a GPU, and the processes' clocks disagree."""


@pytest.mark.parametrize("script", [None, _SELDOM], ids=["every step", "seldom"])
def test_two_processes_train_together(work: Path, tiny_bert: Path, tmp_path: Path, script: str | None) -> None:
    out = tmp_path / "out"
    settings = ("--steps", STEPS, "--batch-size", 8, "--learning-rate", 1e-3, "--device", "cpu", "--json")
    command = ("distill", work / "latent", "--teacher", tiny_bert, "--data", work / "texts.txt", "-o", out, *settings)
    report = in_two_processes(tmp_path, script, *command)
    alone = json.loads((work / "whole" / "distillation.json").read_text())
    assert report["texts"] == pytest.approx(alone["texts"], rel=0.1)
    assert report["cosine_after"] == pytest.approx(alone["cosine_after"], abs=0.01)
