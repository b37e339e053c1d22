"""Batches made ahead by threads and by processes."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.util import register_after_fork
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from ternarize_cli.distill.batches import Batches
from ternarize_cli.distill.data import Sources, read_corpus
from ternarize_cli.distill.options import Training
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import DataError

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="processes make batches only where a fork is safe"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),  # on one CPU
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Forty images, each of its own colour."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(40):
        Image.new("RGB", (16, 16), (i * 6, 255 - i * 6, 128)).save(folder / f"{i:02}.png")
    return folder


def batches(model: Path, images: Path, processes: int) -> Batches:
    encoder = load_encoder(model, device="cpu")
    sources = Sources([images], held_out=0)
    corpus, _ = read_corpus(encoder, model, sources, max_length=None, seed=0)
    training = Training(steps=1, batch_size=8, accumulate=2)
    return Batches(corpus, sources, training, Accelerator(cpu=True), processes=processes)


def seen(made: Batches, steps: int) -> Iterator[tuple[int, int, Any]]:
    """Of each batch of some steps its pixels, and the epoch and position after it."""
    for group in islice(made, steps):
        for batch in group:
            yield made.epoch, made.position, batch["pixel_values"]


@pytest.fixture
def ended() -> Callable[[], bool]:
    """Whether no process is left of those that a test started, but multiprocessing's own tracker."""
    before = psutil.Process().children()

    def ended() -> bool:
        left = [child for child in psutil.Process().children() if child not in before]
        return [child for child in left if "resource_tracker" not in " ".join(child.cmdline())] == []

    return ended


@pytest.mark.slow
def test_processes_make_the_batches_that_threads_make(tiny_vit: Path, images: Path, ended: Callable[[], bool]) -> None:
    before = torch.get_rng_state()
    by_threads = list(seen(batches(tiny_vit, images, 0), 8))
    made = batches(tiny_vit, images, 2)
    by_processes = list(seen(made, 8))
    assert [place[:2] for place in by_processes] == [place[:2] for place in by_threads]
    assert by_processes[-1][:2] == (3, 1)  # of batches of 8 there are 5 to an epoch
    assert {place[2].dtype for place in by_processes + by_threads} == {torch.uint8}
    differ = [i for i, (a, b) in enumerate(zip(by_processes, by_threads, strict=True)) if not torch.equal(a[2], b[2])]
    assert differ == []
    assert not torch.equal(by_processes[0][2], by_processes[5][2])
    assert torch.equal(torch.get_rng_state(), before)
    made.go_to(1, 3)
    again = list(seen(made, 3))
    assert [place[:2] for place in again] == [place[:2] for place in by_threads[8:14]]
    assert all(torch.equal(a[2], b[2]) for a, b in zip(again, by_threads[8:14], strict=True))
    assert ended()


class Session:
    """Something in a cycle that must end in the process that began it."""

    def __init__(self, log: Path) -> None:
        self.me, self.log = self, log

    def __del__(self) -> None:
        with self.log.open("a") as stream:
            stream.write(f"{os.getpid()}\n")


@pytest.mark.slow
def test_processes_leave_the_garbage_of_the_one_that_trains_alone(tiny_vit: Path, images: Path, tmp_path: Path) -> None:
    made, threshold = batches(tiny_vit, images, 2), gc.get_threshold()
    register_after_fork(made, lambda _: gc.enable())
    gc.disable()
    gc.set_threshold(1, 1, 1)  # in the processes everything is looked at soon
    try:
        for _ in range(3):
            Session(tmp_path / "ended")
        steps = iter(made)
        next(steps)
        steps.close()
    finally:
        gc.set_threshold(*threshold)
        gc.enable()
    gc.collect()
    assert (tmp_path / "ended").read_text() == 3 * f"{os.getpid()}\n"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 2])
def test_a_damaged_image_is_named(tiny_vit: Path, images: Path, processes: int, ended: Callable[[], bool]) -> None:
    (images / "07.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    with pytest.raises(DataError, match=r"^\S*07\.png can't be read: [^\n]*$") as caught:
        list(seen(batches(tiny_vit, images, processes), 3))
    assert caught.value.hint == "repair or remove the file"
    del caught
    assert ended()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_processes_end_with_the_one_that_trains(tiny_vit: Path, images: Path, number: int) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from test_distill_batches import batches\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs of a shell's background ignore it\n"
        "for step, _ in enumerate(batches(Path(sys.argv[1]), Path(sys.argv[2]), 2)):\n"
        "    step == 3 and print(step, flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path])}
    command = [sys.executable, "-c", program, str(tiny_vit), str(images)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True, start_new_session=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "3\n"
            workers = psutil.Process(process.pid).children()
            assert len(workers) == 2
            if number == signal.SIGINT:  # as a terminal sends it, to all of them
                os.killpg(process.pid, number)
            else:
                process.kill()
            assert process.wait(20) != 0
            deadline = time.monotonic() + 5
            while any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            assert process.stderr is not None
            said = process.stderr.read()
        finally:
            process.kill()
    assert ("KeyboardInterrupt" in said) == (number == signal.SIGINT)
    assert "DataLoader worker" not in said
