"""Packed models, and servers of them in processes of their own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest

from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.runtime import Encoder


@dataclass
class Running:
    """A server that runs in a process of its own."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, body: object, **options: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)  # type: ignore[arg-type]

    def get(self, path: str, **options: object) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)  # type: ignore[arg-type]

    def end(self, number: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Ends the server; returns its exit code, and what it wrote to stderr."""
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=60)
        return self.process.returncode, said


Start = Callable[..., Running]


def start_server(*arguments: object, **environment: str) -> Running:
    """Starts a server on a free port, and waits until it takes requests."""
    command = [sys.executable, "-P", "-m", "ternarize_cli", "serve", *map(str, arguments), "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.fullmatch(r"listening on (https?://\S+)\n", line)
    assert found, (line, process.communicate(timeout=60))
    return Running(process, found[1])


def save_packed(source: Path, folder: Path) -> Path:
    """Converts a model and packs it into a folder that does not exist; returns the folder."""
    ternary = folder.with_name(f"{folder.name}-ternary")
    convert(source, ternary)
    pack(ternary, folder)
    return folder


@pytest.fixture(scope="session")
def packed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed tiny BERT of 32 dimensions; tests must not write into it."""
    return save_packed(tiny_bert, tmp_path_factory.mktemp("packed") / "tiny")


@pytest.fixture(scope="session")
def encoder(packed: Path) -> Encoder:
    """The packed tiny BERT in this process."""
    return Encoder(packed)


@pytest.fixture(scope="session")
def server(packed: Path) -> Iterator[Running]:
    """A server of the packed tiny BERT by the name `tiny`, with the usual options."""
    running = start_server(packed)
    yield running
    assert running.end() == (0, "tiny: text encoder, 32 dimensions\n")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts servers, which are killed after the test if it has not ended them."""
    started: list[Running] = []

    def call(*arguments: object, **environment: str) -> Running:
        started.append(start_server(*arguments, **environment))
        return started[-1]

    yield call
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate(timeout=60)


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits until something holds; fails after a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
