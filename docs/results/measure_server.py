"""Measures `ternarize serve` beside `ternarize encode`, and beside sentence-transformers behind an app of Starlette.

    python measure_server.py PACKED SOURCE TEXTS > server.json

PACKED is a packed model, SOURCE the model that it was made of, and TEXTS a file with a text a line. Everything runs on
this machine, the clients too, whose share of the processors is reported. Each number is the median of three rounds, in
which all candidates take turns. It needs uvloop, starlette and uvicorn, and a machine that does nothing else.
"""

import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import uvloop

ROUNDS, CLIENTS, NAME = 3, 32, "minilm"
APP = """
import os
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse
from starlette.routing import Route
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(os.environ["SOURCE"], device="cpu")

async def embeddings(request):
    asked = (await request.json())["input"]
    texts = [asked] if isinstance(asked, str) else asked
    vectors = await run_in_threadpool(model.encode, texts)
    rows = [{"object": "embedding", "index": i, "embedding": v.tolist()} for i, v in enumerate(vectors)]
    usage = {"prompt_tokens": 0, "total_tokens": 0}
    return JSONResponse({"object": "list", "data": rows, "model": "m", "usage": usage})

async def health(request):
    return JSONResponse({})

app = Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"]), Route("/health", health)])
"""


class Client(asyncio.Protocol):
    """A connection on which one request follows the other.

    `take` gives the next request and the time at which it should have been sent; None ends the connection.
    """

    def __init__(self, take: Any, seconds: list[float]) -> None:
        self.take, self.seconds = take, seconds
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.asking = asyncio.ensure_future(self.ask())

    async def ask(self) -> None:
        given = await self.take()
        if given is None:
            self.transport.close()
            self.done.set_result(None)
            return
        request, self.began = given
        self.left: int | None = None
        self.head = b""
        self.transport.write(request)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server ended a connection"))

    def data_received(self, data: bytes) -> None:
        if self.left is None:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self.head[:end].lower()
            if b" 200 " not in head:
                self.done.set_exception(RuntimeError(self.head.decode()))
                return
            length = int(head[head.index(b"content-length:") + 15 :].split(b"\r\n")[0])
            self.left, data = length, self.head[end + 4 :]
        self.left -= len(data)
        if self.left <= 0:
            self.seconds.append(time.perf_counter() - self.began)
            self.asking = asyncio.ensure_future(self.ask())


def requests_of(texts: list[str], size: int) -> list[bytes]:
    made = []
    for start in range(0, len(texts) - size + 1, size):
        some: Any = texts[start] if size == 1 else texts[start : start + size]
        body = json.dumps({"model": NAME, "input": some}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        made.append(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return made


async def closed_loop(port: int, texts: list[str], size: int) -> dict[str, float]:
    """32 clients that each wait for an answer before they ask again."""
    left, seconds = iter(requests_of(texts, size)), list[float]()

    async def take() -> tuple[bytes, float] | None:
        request = next(left, None)
        return None if request is None else (request, time.perf_counter())

    own, began = time.process_time(), time.perf_counter()
    await run_clients(port, CLIENTS, take, seconds)
    wall = time.perf_counter() - began
    return {
        "texts_per_second": len(seconds) * size / wall,
        "client_cpu_share": (time.process_time() - own) / wall / (os.cpu_count() or 1),
        **quantiles(seconds),
    }


async def open_loop(port: int, texts: list[str], rate: float, length: float) -> dict[str, float]:
    """Requests that arrive by chance, `rate` a second, whether or not others have been answered."""
    draw, all_requests, seconds = random.Random(0), requests_of(texts, 1), list[float]()
    start, place, at = time.perf_counter(), 0, 0.0

    async def take() -> tuple[bytes, float] | None:
        nonlocal place, at
        at += draw.expovariate(rate)
        place += 1
        due, request = start + at, all_requests[place % len(all_requests)]
        if at > length:
            return None
        await asyncio.sleep(due - time.perf_counter())
        return request, due

    await run_clients(port, 2 * CLIENTS, take, seconds)
    return {"rate": len(seconds) / length, **quantiles(seconds)}


async def run_clients(port: int, count: int, take: Any, seconds: list[float]) -> None:
    loop = asyncio.get_running_loop()
    clients = [Client(take, seconds) for _ in range(count)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.gather(*(client.done for client in clients))


def quantiles(seconds: list[float]) -> dict[str, float]:
    seconds.sort()
    return {f"p{part}_ms": 1000 * seconds[len(seconds) * part // 100] for part in (50, 90, 99)}


@contextmanager
def serving(command: list[str], **environment: str) -> Iterator[int]:
    """A server in a process of its own, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [*command, "--port", str(port)], env={**os.environ, **environment}, stdout=quiet, stderr=quiet
    )
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def encode_rate(packed: str, texts: Path, count: int) -> float:
    """Texts a second of `ternarize encode`, from the opened model to the last vector."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ternarize_cli", "encode", packed, texts, "-o", f"{folder}/v.npy", "--json"]
        done = subprocess.run([*map(str, command)], capture_output=True, check=True)
    return count / float(json.loads(done.stdout)["seconds"])


def main(packed: str, source: str, path: str) -> None:
    texts = [line for line in Path(path).read_text().splitlines() if line]
    random.Random(1).shuffle(texts)  # neighbours in a file are often of one length
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "app.py").write_text(APP)
        ours = [sys.executable, "-m", "ternarize_cli", "serve", f"{NAME}={packed}"]
        rival = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", folder, "--log-level", "error"]
        rounds: list[dict[str, Any]] = []
        with serving(ours) as port, serving(rival, SOURCE=source) as other:
            for server in (port, other):
                uvloop.run(closed_loop(server, texts[:512], 1))  # the first calls lay out weights and start threads
            for _ in range(ROUNDS):
                made: dict[str, Any] = {"encode": {"texts_per_second": encode_rate(packed, Path(path), len(texts))}}
                for name, server in (("ternarize", port), ("sentence-transformers", other)):
                    some = texts if name == "ternarize" else texts[:1024]
                    for size in (1, 8):
                        made[f"{name}, {CLIENTS} clients × {size}"] = uvloop.run(closed_loop(server, some, size))
                    half = made[f"{name}, {CLIENTS} clients × 1"]["texts_per_second"] / 2
                    made[f"{name}, half load"] = uvloop.run(open_loop(server, texts, half, 8))
                rounds.append(made)
                print(made, file=sys.stderr)
    result = {
        name: {key: round(statistics.median(made[name][key] for made in rounds), 3) for key in rounds[0][name]}
        for name in rounds[0]
    }
    load = psutil.getloadavg()[0]
    print(json.dumps({"texts": len(texts), "load": load, "medians": result, "rounds": rounds}, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
