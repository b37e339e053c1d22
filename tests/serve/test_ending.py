"""A server ends gracefully, starts only where it can, and answers whoever it took a request from."""

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest

from serve.conftest import Running, Start, make_certificate
from ternarize_cli.runtime import Encoder

pytestmark = pytest.mark.slow

TEXTS = [f"{'cat ' * (i % 9)}dog {'tree ' * (i % 4)}" for i in range(64)]


async def hammer(server: Running, expected: np.ndarray, clients: int) -> list[str]:
    """Sends requests from several clients until the server refuses connections; returns what became of each request.

    After 500 answers the server is asked to end. It may not leave a request alone whose connection was there.
    """
    found: list[str] = []

    async def client(number: int) -> None:
        count = number
        async with httpx.AsyncClient(timeout=60, verify=False) as session:
            while True:
                count += 1
                rows = [(count + i) % len(TEXTS) for i in range(1 + count % 5)]
                try:
                    answer = await session.post(f"{server.url}/embed", json={"inputs": [TEXTS[i] for i in rows]})
                except httpx.ConnectError:
                    found.append("refused")
                    return
                except httpx.HTTPError as e:
                    found.append(f"lost: {e!r}")
                    return
                same = np.array_equal(np.array(answer.json(), dtype=np.float32), expected[rows])
                found.append("right" if answer.status_code == 200 and same else f"wrong: {answer.status_code}")
                if len(found) == 500:
                    server.process.send_signal(signal.SIGTERM)

    await asyncio.gather(*(client(i) for i in range(clients)))
    return found


def test_sigterm_under_load_answers_all_and_refuses_new_connections(
    packed: Path, encoder: Encoder, start: Start
) -> None:
    server = start(packed)
    found = asyncio.run(hammer(server, encoder.encode(TEXTS), 16))
    assert set(found) == {"right", "refused"}
    assert found.count("refused") == 16
    assert found.count("right") >= 500
    assert server.process.wait(60) == 0
    assert server.process.stderr is not None
    assert server.process.stderr.read() == "tiny: text encoder, 32 dimensions\n"


def test_a_long_request_is_answered_after_sigterm(packed: Path, start: Start) -> None:
    server = start(packed, "--max-batch-tokens", 20)
    answers: list[httpx.Response] = []
    body = {"inputs": ["the cat in a tree by the river"] * 2000}
    thread = threading.Thread(target=lambda: answers.append(server.post("/embed", body)))
    thread.start()
    while "te_queue_size 2000" not in server.get("/metrics").text:
        time.sleep(0.005)
    assert server.end() == (0, "tiny: text encoder, 32 dimensions\n")
    thread.join(60)
    assert answers[0].status_code == 200
    assert answers[0].headers["connection"] == "close"
    assert len(answers[0].json()) == 2000


def test_an_idle_connection_is_closed_and_does_not_hold_the_end_up(packed: Path, start: Start) -> None:
    server = start(packed)
    with httpx.Client() as client, closing(socket.create_connection(("127.0.0.1", server.port))) as silent:
        assert client.get(f"{server.url}/health").status_code == 200
        assert server.end() == (0, "tiny: text encoder, 32 dimensions\n")
        assert silent.recv(1) == b""


def test_ctrl_c_ends_gracefully_and_a_second_signal_at_once(packed: Path, start: Start) -> None:
    assert start(packed).end(signal.SIGINT)[0] == 0
    server = start(packed, "--max-batch-tokens", 1)
    with closing(socket.create_connection(("127.0.0.1", server.port))) as halfway:
        halfway.sendall(b"POST /embed HTTP/1.1\r\nContent-Length: 99\r\n\r\n{")  # the rest never comes
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            server.process.wait(2)
        code, said = server.end()
    assert code == 130
    assert said.endswith("error: ended by a second signal; some requests were not answered\n")


def test_what_clients_left_behind_is_not_computed(packed: Path, start: Start) -> None:
    server = start(packed, "--max-batch-tokens", 20)
    body = b'{"inputs": [' + b", ".join([b'"the cat in a tree by the river"'] * 2000) + b"]}"
    request = b"POST /embed HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    for _ in range(4):
        with closing(socket.create_connection(("127.0.0.1", server.port))) as leaving:
            leaving.sendall(request)
            while "te_queue_size 0" in server.get("/metrics").text:
                time.sleep(0.005)
    while "te_queue_size 0" not in (text := server.get("/metrics").text):
        time.sleep(0.01)
    assert 'te_request_failure{err="dropped"} 4' in text
    assert "te_embed_count 8000\n" in text
    assert "te_embed_success 0\n" in text


def test_many_clients_at_once_get_their_own_vectors(server: Running, encoder: Encoder) -> None:
    expected = encoder.encode(TEXTS)

    async def client(session: httpx.AsyncClient, number: int) -> list[bool]:
        right = []
        for i in range(25):
            rows = [(number * 7 + i * j) % len(TEXTS) for j in range(1 + (number + i) % 8)]
            kind = (number + i) % 10
            if kind == 0:
                answer = await session.post(f"{server.url}/v1/embeddings", content=b'{"input": [')
                right.append(answer.status_code == 400)
            elif kind == 1:
                leaving = session.post(f"{server.url}/embed", json={"inputs": TEXTS * 4})
                try:
                    await asyncio.wait_for(leaving, 0.002)
                except TimeoutError:
                    right.append(True)
            else:
                answer = await session.post(f"{server.url}/embed", json={"inputs": [TEXTS[i] for i in rows]})
                right.append(np.array_equal(np.array(answer.json(), dtype=np.float32), expected[rows]))
        return right

    async def main() -> list[list[bool]]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(timeout=60, limits=limits) as session:
            return await asyncio.gather(*(client(session, i) for i in range(32)))

    assert all(all(right) for right in asyncio.run(main()))


def test_vectors_do_not_depend_on_the_number_of_threads(packed: Path, encoder: Encoder, start: Start) -> None:
    made = start(packed, "--threads", 1).post("/embed", {"inputs": TEXTS}).json()
    np.testing.assert_array_equal(np.array(made, dtype=np.float32), encoder.encode(TEXTS))


def test_https_is_served_with_a_certificate(packed: Path, start: Start, tmp_path: Path) -> None:
    cert, key = make_certificate(tmp_path)
    server = start(packed, "--tls-cert", cert, "--tls-key", key)
    assert server.url.startswith("https://127.0.0.1:")
    answer = httpx.get(f"{server.url}/health", verify=ssl.create_default_context(cafile=cert))
    assert answer.status_code == 200
    assert server.end()[0] == 0


def refused(*arguments: object, **environment: str) -> str:
    """What a server says that refuses to start."""
    command = [sys.executable, "-P", "-m", "ternarize_cli", "serve", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    return done.stderr


def test_what_can_t_be_served_is_told_before_models_are_opened(packed: Path, tmp_path: Path) -> None:
    with closing(socket.socket()) as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        told = f"error: can't listen on 127.0.0.1, port {port}: Address already in use\n"
        assert refused(packed, "--port", port) == f"{told}  try: --port 0 takes a free port\n"
    assert "error: can't listen on 192.0.2.1, port 8080" in refused(packed, "--host", "192.0.2.1")
    assert "error: --host no.such.host.invalid:" in refused(packed, "--host", "no.such.host.invalid")
    (tmp_path / "cert.pem").write_text("hello")
    assert "cert.pem can't be used" in refused(packed, "--tls-cert", tmp_path / "cert.pem")
    assert "--tls-key needs the certificate" in refused(packed, "--tls-key", tmp_path / "cert.pem")
    assert "error: two models have one name" in refused(packed, packed)
    assert "is not packed" in refused(packed.with_name("tiny-ternary"))
    assert "error: TERNARIZE_API_KEY is empty" in refused(packed, TERNARIZE_API_KEY="")
    assert "the API key is empty, or has blanks" in refused(packed, TERNARIZE_API_KEY="two words")
    assert "--threads 9999 is far more than" in refused(packed, "--threads", 9999)
    assert "8,000 texts, and only 100 may wait" in refused(packed, "--max-queue", 100, "--max-client-batch-size", 8000)


def test_the_server_runs_where_torch_and_transformers_can_t_be_imported(packed: Path) -> None:
    script = f"""
import sys
sys.modules["torch"] = sys.modules["transformers"] = None
sys.argv = ["ternarize", "serve", {str(packed)!r}, "--port", "0", "--json"]
from ternarize_cli.__main__ import main
main()
"""
    command = [sys.executable, "-P", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert (told["schema_version"], told["models"]) == (1, ["tiny"])
        for path in ("/v1/embeddings", "/embed", "/embed_all", "/tokenize"):
            body = {"input": "the cat", "inputs": "the cat"}
            assert httpx.post(told["url"] + path, json=body).status_code == 200
        process.terminate()
        assert process.wait(60) == 0
