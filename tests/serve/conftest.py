"""Packed models, and servers of them in processes of their own."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
HURRIED = """
from ternarize_cli.serve import connection, request, server
connection._HEAD_SECONDS = connection._UNREAD_SECONDS = server._IDLE = request._BODY_SECONDS = {seconds}
request._BODY_BYTES = 1000
"""
"""Lets a server wait for clients as long as a test can."""


def start_server(*arguments: object, first: str = "", files: int | None = None, **environment: str) -> Running:
    """Starts a server on a free port, and waits until it takes requests.

    Args:
        arguments: the arguments of `ternarize serve`.
        first: Python that its process runs first, such as `HURRIED` with the seconds that the server is to wait.
        files: the most files that the process may open.
        environment: variables of the environment.
    """
    main = ["-c", f"{first}\nfrom ternarize_cli.__main__ import main\nmain()"] if first else ["-m", "ternarize_cli"]
    command = [sys.executable, "-P", *main, "serve", *map(str, arguments), "--port", "0"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command,
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=os.environ | environment,
        preexec_fn=None if files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
    )
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

    def call(*arguments: object, **settings: Any) -> Running:
        started.append(start_server(*arguments, **settings))
        return started[-1]

    yield call
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate(timeout=60)


def connected(server: Running) -> socket.socket:
    """Opens a connection to a server."""
    return socket.create_connection(("127.0.0.1", server.port), timeout=60)


def all_of(connection: socket.socket) -> bytes:
    """Reads all that a server sends until it closes the connection."""
    parts = []
    while part := connection.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema of the OpenAPI document describes, of strings, whole numbers and lists."""
    if "oneOf" in schema:
        return [fits(value, one) for one in schema["oneOf"]].count(True) == 1
    if schema["type"] == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems", 1 << 30)
        return (
            isinstance(value, list) and least <= len(value) <= most and all(fits(one, schema["items"]) for one in value)
        )
    kind = {"string": str, "integer": int}[schema["type"]]
    return type(value) is kind and value >= schema.get("minimum", value)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Makes a certificate for 127.0.0.1, and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    made = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", cert)
    subprocess.run(["openssl", *made, *map(str, names)], check=True, capture_output=True)
    return cert, key


def wait_until(holds: Callable[[], bool]) -> None:
    """Waits until something holds; fails after a minute."""
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
