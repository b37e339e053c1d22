"""What comes before a request is bounded: heads, connections, the time for them, and answers that nobody reads."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from itertools import chain, repeat
from pathlib import Path
from socket import SO_RCVBUF, SOL_SOCKET, socket
from typing import Any

import httpx2 as httpx
import orjson
import psutil
import pytest

from serve.conftest import HURRIED, Running, Start, all_of, connected, make_certificate, wait_until

LONG = 65_600
HEALTH = b"GET /health HTTP/1.1\r\n"
CHUNKED = b"POST /embed HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
OVERLONG = {
    "a URL": b"GET /" + b"a" * LONG,
    "a header without an end": HEALTH + b"X: " + b"a" * LONG,
    "headers without an end": HEALTH + b"".join(b"X-%d: %b\r\n" % (i, b"a" * 1000) for i in range(66)),
    "a whole head": HEALTH + b"X: " + b"a" * LONG + b"\r\n\r\n",
    "101 headers": HEALTH + b"a: b\r\n" * 101 + b"\r\n",
    "101 headers without an end": HEALTH + b"a: b\r\n" * 102,
    "the headers behind a body": CHUNKED + b"1\r\n{\r\n0\r\n" + b"a: b\r\n" * 102,
}


@pytest.mark.parametrize("what", OVERLONG)
def test_a_head_is_bounded(server: Running, what: str) -> None:
    with connected(server) as client:
        client.sendall(OVERLONG[what])
        head, _, body = all_of(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")
    assert b"\r\nconnection: close" in head
    told = "the head of a request has more than 65,536 bytes, or more than 100 headers"
    assert orjson.loads(body) == {"error": told, "error_type": "Validation"}
    assert server.get("/health").status_code == 200


def test_the_extension_of_a_chunk_is_bounded(server: Running) -> None:
    with connected(server) as client:
        client.sendall(CHUNKED.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        assert client.recv(12) == b"HTTP/1.1 100"  # the head has been read
        client.sendall(b"3;" + b"a" * LONG)
        assert b"\r\n\r\nHTTP/1.1 431 " in all_of(client)


def test_heads_within_the_bounds_are_answered(server: Running) -> None:
    for within in (b"a: b\r\n" * 98, b"X: " + b"a" * 65_000 + b"\r\n"):
        with connected(server) as client:
            client.sendall(HEALTH + b"Host: localhost\r\nConnection: close\r\n" + within + b"\r\n")
            assert all_of(client).startswith(b"HTTP/1.1 200 ")


def test_requests_that_are_sent_ahead_are_answered_in_order_up_to_a_hundred(server: Running) -> None:
    with connected(server) as client:
        client.sendall((HEALTH + b"\r\n") * 99 + HEALTH + b"Connection: close\r\n\r\n")
        assert all_of(client).count(b"HTTP/1.1 200 ") == 100
    with connected(server) as client:
        client.sendall((HEALTH + b"\r\n") * 2000)
        assert all_of(client).count(b"HTTP/1.1 200 ") < 2000


@pytest.mark.slow
@pytest.mark.parametrize("drips", [False, True])
def test_a_connection_that_brings_no_request_in_time_is_closed(packed: Path, start: Start, drips: bool) -> None:
    server = start(packed, first=HURRIED.format(seconds=1))
    refused = b"POST /nowhere HTTP/1.1\r\nContent-Length: 100000\r\n\r\n{"  # answered with 404 before its body is there
    for before, begin, answered in (
        (b"", b"GET /", 0),
        (b"POST /embed HTTP/1.1\r\nHo", b"", 0),
        (HEALTH + b"\r\n", b"GET /", 1),
        (refused, b"", 1),
    ):
        with connected(server) as client:
            client.sendall(before)
            if drips:
                threading.Thread(target=drip, args=(client, begin), daemon=True).start()
            assert read_until_closed(client).count(b"HTTP/1.1 ") == answered


def drip(client: socket, begin: bytes) -> None:
    """Sends a byte every tenth of a second, those of `begin` first, until the connection is closed."""
    with suppress(OSError):
        for byte in chain(begin, repeat(ord("a"))):
            time.sleep(0.1)
            client.sendall(bytes([byte]))


def read_until_closed(client: socket) -> bytes:
    """Reads until the server has closed a connection, by a reset if it had not read all of what was sent."""
    parts: list[bytes] = []
    while True:
        try:
            part = client.recv(1 << 16)
        except ConnectionResetError:
            part = b""
        if not part:
            return b"".join(parts)
        parts.append(part)


@pytest.mark.slow
def test_an_answer_that_nobody_reads_is_dropped(packed: Path, start: Start) -> None:
    server = start(packed, first=HURRIED.format(seconds=1))
    body = orjson.dumps({"inputs": ["cat " * 70] * 1000})  # 24 MB of vectors, which no buffer of the system holds
    with socket() as client:
        client.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"POST /embed_all HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(12) == b"HTTP/1.1 200"
        own = client.getsockname()[1]
        process = psutil.Process(server.process.pid)
        wait_until(lambda: all(not c.raddr or c.raddr.port != own for c in process.net_connections("tcp")))
    assert server.get("/health").status_code == 200


@pytest.mark.slow
def test_connections_beyond_the_most_get_503_and_a_line_in_the_log(packed: Path, start: Start) -> None:
    server = start(packed, files=128)
    with ExitStack() as stack:
        silent = [stack.enter_context(connected(server)) for _ in range(64)]
        wait_until(lambda: _status(server) == 503)
        for _ in range(100):
            with connected(server) as client:
                head, _, body = read_until_closed(client).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nretry-after: 1" in head
            told = "64 connections are open, as many as this server takes"
            assert orjson.loads(body) == {"error": told, "error_type": "Overloaded"}
        silent[0].sendall(HEALTH + b"\r\n")  # who was first is served
        assert silent[0].recv(12) == b"HTTP/1.1 200"
    wait_until(lambda: _status(server) == 200)
    code, said = server.end()
    assert code == 0
    assert said.count("warning: 64 connections are open, as many as this server takes; others get 503\n") == 1


def _status(server: Running) -> int:
    try:
        return httpx.get(f"{server.url}/health", verify=False, timeout=60).status_code
    except httpx.TransportError:  # the connection was closed before all of the request was sent, or at once
        return 0


@pytest.mark.slow
def test_a_process_that_can_open_no_more_files_says_so(packed: Path, start: Start, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    server = start(packed, "--tls-cert", cert, "--tls-key", key, files=128)
    lines: list[str] = []
    stderr: Any = server.process.stderr
    reader = threading.Thread(target=lambda: lines.extend(_lines(stderr)), daemon=True)
    reader.start()
    with ExitStack() as stack:
        for _ in range(150):  # which never begin with TLS, and so are no connections yet
            stack.enter_context(connected(server))
        told = "warning: new connections are dropped: Too many open files (ulimit -n)\n"
        wait_until(lambda: told in lines)
    wait_until(lambda: _status(server) == 200)
    server.process.terminate()
    reader.join(60)
    assert lines.count(told) == 1


def _lines(stream: Any) -> Iterator[str]:
    yield from iter(stream.readline, "")
