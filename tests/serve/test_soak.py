"""A hundred thousand requests of mixed kinds: none is lost, none gets another's vector, and memory stays flat."""

import asyncio
import json
import random
from pathlib import Path

import numpy as np
import psutil
import pytest

from serve.conftest import Running, Start
from support.models import WORDS
from ternarize_cli.runtime import Encoder

pytestmark = pytest.mark.nightly

REQUESTS, CLIENTS = 100_000, 32
BAD = (b"{", b"[]", b'{"inputs": []}', b'{"inputs": 5}', b'{"inputs": "a", "model": "gpt"}', b'{"inputs": "\\ud800"}')


def texts() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=rng.choice((1, 2, 3, 5, 8, 13, 40, 90)))) for _ in range(500)]


class Client:
    """A client that sends requests over one connection, and opens a new one where it closed the last."""

    def __init__(self, server: Running, expected: np.ndarray, rng: random.Random) -> None:
        self.server, self.expected, self.rng = server, expected, rng
        self.texts = texts()
        self.writer: asyncio.StreamWriter | None = None

    async def request(self) -> str:
        kind = self.rng.random()
        if kind < 0.1:
            status, _ = await self.ask("/embed", self.rng.choice(BAD))
            return "refused" if 400 <= status < 500 else f"wrong status {status}"
        rows = [self.rng.randrange(len(self.texts)) for _ in range(self.rng.choice((1, 1, 1, 2, 5, 20)))]
        body = {"inputs": [self.texts[i] for i in rows], "input": [self.texts[i] for i in rows]}
        if kind < 0.15:
            await self.leave(json.dumps(body).encode())
            return "left"
        path = self.rng.choice(("/embed", "/v1/embeddings"))
        status, answer = await self.ask(path, json.dumps(body).encode())
        vectors = json.loads(answer)
        if path == "/v1/embeddings":
            vectors = [item["embedding"] for item in vectors["data"]]
        same = np.array_equal(np.array(vectors, dtype=np.float32), self.expected[rows])
        return "right" if status == 200 and same else f"wrong answer {status}"

    async def ask(self, path: str, body: bytes) -> tuple[int, bytes]:
        reader = await self.send(path, body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head.split()[1]), await reader.readexactly(length)

    async def leave(self, body: bytes) -> None:
        await self.send("/embed", body)
        await asyncio.sleep(self.rng.choice((0, 0, 0.001, 0.1)))
        assert self.writer is not None
        self.writer.transport.abort()
        self.writer = None

    async def send(self, path: str, body: bytes) -> asyncio.StreamReader:
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.server.port, limit=1 << 22)
        self.writer.write(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body
        )
        await self.writer.drain()
        return self.reader

    def close(self) -> None:
        if self.writer is not None:
            self.writer.transport.abort()


async def soak(server: Running, expected: np.ndarray, requests: int) -> dict[str, int]:
    found: dict[str, int] = {}
    left = requests

    async def run(number: int) -> None:
        nonlocal left
        client = Client(server, expected, random.Random(f"{number} {requests}"))
        while left > 0:
            left -= 1
            what = await client.request()
            found[what] = found.get(what, 0) + 1
        client.close()

    await asyncio.gather(*(run(number) for number in range(CLIENTS)))
    return found


def test_a_hundred_thousand_requests(packed: Path, encoder: Encoder, start: Start) -> None:
    server = start(packed)
    expected = encoder.encode(texts())
    memory = psutil.Process(server.process.pid).memory_info
    asyncio.run(soak(server, expected, REQUESTS // 5))
    warm = memory().rss
    found = asyncio.run(soak(server, expected, REQUESTS))
    assert set(found) == {"right", "refused", "left"}
    assert sum(found.values()) == REQUESTS
    assert memory().rss < 1.05 * warm
    assert server.end() == (0, "tiny: text encoder, 32 dimensions\n")
