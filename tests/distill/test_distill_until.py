"""Training that ends when held-out data says so, and the learning rate by the student's width."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from support.models import WORDS
from support.two_processes import in_two_processes
from ternarize_cli.compress.convert import convert
from ternarize_cli.distill import Sources, Training, distill, loop
from ternarize_cli.distill.options import DistillOptions
from ternarize_cli.errors import InputError

Run = Callable[..., Any]
STEPS, RATE = 40, 2e-3


@pytest.fixture(scope="module")
def work(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ternary checkpoint `latent`, texts, and `whole`, trained for all of its steps."""
    folder = tmp_path_factory.mktemp("until")
    convert(tiny_bert, folder / "latent")
    rng = random.Random(0)
    (folder / "texts.txt").write_text("\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(300)))
    train(folder, tiny_bert, folder / "whole")
    return folder


def train(work: Path, teacher: Path, out: Path, **changes: Any) -> Any:
    resume = changes.pop("resume", False)
    training = Training(**{"steps": STEPS, "batch_size": 16, "learning_rate": RATE, **changes})
    options = DistillOptions(threads=1, resume=resume)
    return distill(work / "latent", teacher, Sources([work / "texts.txt"]), out, training, options)


def cosines(folder: Path) -> list[float]:
    """The readings of held-out data, in order."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(line["cosine"] for line in lines if line["cosine"] is not None))


def wanted(work: Path) -> float:
    """A cosine that the whole training passes in its middle."""
    found = cosines(work / "whole")
    assert found[0] < found[len(found) // 2]
    return found[len(found) // 2]


def train_until_killed(monkeypatch: pytest.MonkeyPatch, *arguments: Path, **changes: Any) -> None:
    """Trains as `train` does, until the result would be written."""

    def killed(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            train(*arguments, **changes)


@pytest.mark.slow
def test_training_ends_at_the_reading_that_reaches_the_cosine(work: Path, tiny_bert: Path, tmp_path: Path) -> None:
    until = wanted(work)
    report = train(work, tiny_bert, tmp_path / "out", until=until)
    assert report.steps < STEPS
    assert report.steps % (STEPS // 20) == 0
    assert report.ended_by == "until"
    found = cosines(tmp_path / "out")
    assert found[-1] >= until > max(found[:-1])
    assert report.cosine_after == pytest.approx(found[-1], abs=1e-6)  # no step came after the reading
    record = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert (record["ended_by"], record["until"], record["budget"]) == ("until", until, "40 steps")


@pytest.mark.slow
def test_a_student_that_is_near_enough_is_not_trained(work: Path, tiny_bert: Path, tmp_path: Path) -> None:
    before = train(work, tiny_bert, tmp_path / "one", steps=1).cosine_before
    report = train(work, tiny_bert, tmp_path / "out", until=before - 1e-4)
    assert (report.steps, report.ended_by) == (0, "until")
    assert report.cosine_after == report.cosine_before == before


@pytest.mark.slow
def test_a_run_that_was_killed_after_the_reading_does_not_train_on(
    work: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    until = wanted(work)
    report = train(work, tiny_bert, tmp_path / "out", until=until)
    train_until_killed(monkeypatch, work, tiny_bert, tmp_path / "again", until=until)
    again = train(work, tiny_bert, tmp_path / "again", until=until, resume=True)
    assert (again.steps, again.ended_by, again.resumed_at) == (report.steps, "until", report.steps)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("out", "again"))
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.slow
def test_a_resumed_run_with_a_higher_cosine_goes_on(
    work: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until_killed(monkeypatch, work, tiny_bert, tmp_path / "out", until=wanted(work))
    report = train(work, tiny_bert, tmp_path / "out", until=1.0, resume=True)
    assert (report.steps, report.ended_by) == (STEPS, "budget")
    a, b = (load_file(folder / "model.safetensors") for folder in (work / "whole", tmp_path / "out"))
    assert all(a[name].equal(b[name]) for name in a)


@pytest.mark.slow
def test_a_run_that_goes_on_with_a_longer_budget_is_read_again_at_once(
    work: Path, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_until_killed(monkeypatch, work, tiny_bert, tmp_path / "out", steps=20)
    report = train(work, tiny_bert, tmp_path / "out", steps=40, until=1e-9, resume=True)
    assert (report.steps, report.ended_by) == (22, "until")


@pytest.mark.slow
def test_the_command_says_what_ended_it_and_warns_if_the_budget_came_first(
    run: Run, work: Path, tiny_bert: Path, tmp_path: Path
) -> None:
    data = ("--teacher", tiny_bert, "--data", work / "texts.txt", "--steps", STEPS, "--batch-size", 16)
    common = ("distill", work / "latent", *data, "--threads", 1, "--json")
    near = run(*common, "--learning-rate", RATE, "--until", wanted(work), "-o", tmp_path / "near")
    assert near.exit_code == 0, near.stderr
    assert "training ended before its 40 steps: a reading reached --until" in near.stderr
    far = run(*common, "--until", 0.9999, "-o", tmp_path / "far")
    assert far.exit_code == 0, far.stderr
    found = json.loads(far.stdout)
    assert (found["ended_by"], found["steps"]) == ("budget", STEPS)
    said = f"--until 0.9999 was not reached within 40 steps: the held-out cosine is {found['cosine_after']:.4f}"
    assert said in far.stderr
    assert "learning rate 5e-4 for width 32, batches of 16" in far.stderr
    assert (found["learning_rate"], found["width"]) == (5e-4, 32)


_SELDOM = """
import os, runpy, time, types
from ternarize_cli.distill import trainer
from ternarize_cli.distill.held_out import HeldOut

slower = types.SimpleNamespace(monotonic=lambda: time.monotonic() * (0.6 if os.environ["RANK"] == "1" else 1.0))
trainer.time = slower
trainer._seconds_between_readings = lambda device: 0.05
look = HeldOut.look
HeldOut.look = lambda self: (look(self)[0] - (0.5 if os.environ["RANK"] == "1" else 0.0), 1.0)
runpy.run_module("ternarize_cli", run_name="__main__")
"""
"""Losses are read now and then, as on a GPU; clocks disagree, and so do the processes' own cosines."""


@pytest.mark.slow
@pytest.mark.parametrize("budget", [("--steps", STEPS), ("--minutes", 5)], ids=["steps", "minutes"])
def test_two_processes_end_at_the_same_reading(
    work: Path, tiny_bert: Path, tmp_path: Path, budget: tuple[object, ...]
) -> None:
    settings = (*budget, "--until", 0.05, "--batch-size", 8, "--learning-rate", RATE, "--device", "cpu", "--json")
    data = ("--teacher", tiny_bert, "--data", work / "texts.txt", "-o", tmp_path / "out")
    report = in_two_processes(tmp_path, _SELDOM, "distill", work / "latent", *data, *settings)
    assert report["ended_by"] == "until"
    assert report["cosine_after"] >= 0.05


def test_images_come_in_batches_of_64_on_every_device() -> None:
    sizes = [Training(steps=1).on(*where).batch for where in (("cpu",), ("cuda:0",), ("cuda:0", "image"))]
    assert sizes == [64, 256, 64]


def test_a_cosine_that_no_training_reaches_is_refused() -> None:
    with pytest.raises(InputError, match=r"until is 97; it must be a number, 0 or more, at most 1"):
        Training(minutes=10, until=97)
