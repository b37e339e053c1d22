"""A request: its headers, its body within bounds, and whether its client still waits for the answer."""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import parse_qs

from ternarize_cli.errors import shown
from ternarize_cli.serve.answers import Fault, Refusal
from ternarize_cli.serve.fields import Fields

__all__ = ["BodyBudget", "ClientGoneError", "Receive", "Request"]

T = TypeVar("T")
Receive = Callable[[], Awaitable[dict[str, Any]]]

_PATIENCE = 0.05
"""Seconds after which a request that is not answered yet looks whether its client still waits."""
_SMALL = 1 << 16
"""The most bytes of a body that needs no room in the budget of all bodies: about what a connection has buffered."""
_BODY_SECONDS, _BODY_BYTES = 10, 160_000
"""A body must bring so many bytes, or its end, every so many seconds."""
_RETRY, _CLOSE = [(b"retry-after", b"1")], [(b"connection", b"close")]


class ClientGoneError(Exception):
    """The client closed the connection before it had its answer."""


class BodyBudget:
    """Bounds the bytes of all large bodies that are held at one time.

    Args:
        most: the most bytes of one body.
        at_once: the most bytes of all bodies of more than 64 kB.
    """

    def __init__(self, most: int, at_once: int) -> None:
        self.most, self._left = most, at_once

    def take(self, count: int) -> None:
        """Takes a number of bytes.

        Raises:
            Refusal: so many are not left now.
        """
        if count > self._left:
            raise Refusal(Fault.OVERLOADED, "too many large requests at once", headers=_RETRY)
        self._left -= count

    def give_back(self, count: int) -> None:
        """Gives bytes back that were taken."""
        self._left += count


class Request:
    """A request of a client.

    Attributes:
        method: the HTTP method.
        path: the path.
        counted: "single" for one input or "batch" for a list, as the request is counted; "" until it is.
    """

    def __init__(self, scope: Mapping[str, Any], receive: Receive, budget: BodyBudget) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._query: bytes = scope["query_string"]
        self._headers: list[tuple[bytes, bytes]] = scope["headers"]
        self._receive, self._budget = receive, budget
        self._taken = 0
        self.counted = ""

    def query(self, name: str) -> str | None:
        """Returns a parameter behind the path; None if it is missing."""
        return parse_qs(self._query.decode("latin-1")).get(name, [None])[-1]

    def check_host(self, names: re.Pattern[bytes]) -> None:
        """Checks that the client calls the server by a name that only this machine has.

        Raises:
            Refusal: the Host header is another name. A request without one is no browser's, and is answered.
        """
        host = self._header(b"host")
        if host and not names.fullmatch(host):
            raise Refusal(
                Fault.WRONG_HOST,
                f"the Host header is {shown(host.decode('latin-1'))}, but a server on a loopback address that needs no "
                "API key is called localhost, 127.0.0.1 or [::1], so that no web page reaches it under a name of its "
                "own; set TERNARIZE_API_KEY, or let the proxy send Host: localhost",
            )

    def check_key(self, key: bytes) -> None:
        """Checks that the client sent the API key; how long that takes does not depend on what it sent.

        Raises:
            Refusal: it sent none, or another one.
        """
        scheme, _, given = self._header(b"authorization").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), key):
            return
        what = "the API key is wrong" if given else "an API key is needed: Authorization: Bearer KEY"
        raise Refusal(Fault.NO_KEY, what, headers=[(b"www-authenticate", b"Bearer")])

    async def fields(self) -> Fields:
        """Reads the body, a JSON object.

        Raises:
            Refusal: the body is compressed, too large or too slow, or no JSON object; or too many are held now.
            ClientGoneError: the client left before it had sent all.
        """
        return Fields(await self._body())

    async def while_wanted(self, result: "asyncio.Future[T]") -> T:
        """Waits for a result, and cancels it if the client closes the connection.

        Raises:
            ClientGoneError: the client closed the connection.
        """
        loop = asyncio.get_running_loop()
        watchers: list[asyncio.Task[None]] = []
        timer = loop.call_later(_PATIENCE, lambda: watchers.append(loop.create_task(self._cancel_if_gone(result))))
        try:
            return await result
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ClientGoneError from None
        finally:
            timer.cancel()
            for watcher in watchers:
                watcher.cancel()

    def close(self) -> None:
        """Gives the room for the body back."""
        self._budget.give_back(self._taken)
        self._taken = 0

    async def _body(self) -> bytes | bytearray:
        if self._header(b"content-encoding") not in (b"", b"identity"):
            raise Refusal(Fault.ENCODED, "a compressed body is not read")
        announced = self._header(b"content-length")
        if announced.isdigit():
            self._check(int(announced))
        try:
            async with asyncio.timeout(_BODY_SECONDS) as limit:
                message = await self._next()
                body: bytes | bytearray = message["body"]
                self._take(len(body))
                awaited = _BODY_BYTES
                while message["more_body"]:
                    message = await self._next()
                    body = bytearray(body) if isinstance(body, bytes) else body
                    body += message["body"]
                    self._take(len(body))
                    if len(body) >= awaited:
                        awaited = len(body) + _BODY_BYTES
                        limit.reschedule(asyncio.get_running_loop().time() + _BODY_SECONDS)
        except TimeoutError as e:
            what = f"neither {_BODY_BYTES:,} bytes of the body nor its end came within {_BODY_SECONDS} seconds"
            raise Refusal(Fault.TOO_SLOW, what, headers=_CLOSE) from e
        return body

    def _check(self, length: int) -> None:
        if length > self._budget.most:
            raise Refusal(Fault.TOO_LARGE, f"the body has more than the {self._budget.most:,} bytes that are read")

    def _take(self, length: int) -> None:
        """Takes room for a body of so many bytes, in addition to what it has already; a small body needs none."""
        self._check(length)
        if length > _SMALL:
            self._budget.take(length - self._taken)
            self._taken = length

    async def _next(self) -> dict[str, Any]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        return message

    async def _cancel_if_gone(self, result: "asyncio.Future[Any]") -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        result.cancel()

    def _header(self, name: bytes) -> bytes:
        for key, value in self._headers:  # a loop takes half the time of a generator
            if key == name:
                return value
        return b""
