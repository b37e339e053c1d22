"""A connection of a client: uvicorn's, with bounds on what it may send and hold before its request is looked at.

    the head of a request    up to 64 kB and 100 headers, or 431; whole within 30 s of the connection, or of the 75 s
                             that a connection may be idle after an answer, or the connection is closed
    between parts of a body  up to 64 kB, such as the extension of a chunk
    requests ahead           up to 100 that wait for the answer to the one before them
    an answer                the client reads some of it every 60 s, or the connection is closed
    connections              fewer than uvicorn's `limit_concurrency`; others get 503 at once

`request` bounds the body, since it knows how much a request may have.

A client that closes its side of the connection has left: TCP does not tell whether it would still read an answer, and
what nobody reads is not computed.
"""

import asyncio
import logging
import time
from http import HTTPStatus
from itertools import chain

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ternarize_cli.serve.answers import Fault, Refusal

__all__ = ["Connection", "SeldomLog", "most_connections"]

_log = logging.getLogger(__name__)
_HEAD, _HEADERS, _AHEAD = 1 << 16, 100, 100
_HEAD_SECONDS, _UNREAD_SECONDS = 30, 60
_CONNECTIONS, _OTHER_FILES = 1024, 64
"""The most connections, and the files that a process may need beside them."""
_SELDOM = 60


class SeldomLog:
    """Logs a warning at most once a minute, since whoever causes one may do so a thousand times a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def warn(self, text: str, *values: object) -> None:
        """Logs a warning, if there was none in the last minute."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _SELDOM
            _log.warning(text, *values)


_full = SeldomLog()


def most_connections() -> int:
    """Returns how many connections may be open: 1,024, or fewer where the process may not open so many files."""
    try:
        import resource
    except ImportError:  # Windows
        return _CONNECTIONS
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return _CONNECTIONS
    return min(_CONNECTIONS, max(files - _OTHER_FILES, files // 2))


class Connection(HttpToolsProtocol):
    """A connection as uvicorn's, within the bounds that the module's documentation lists."""

    _unparsed = 0
    """Bytes that came since the parser last had a whole head, or a part of a body."""
    _is_overlong = False
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        if self.limit_concurrency is None or len(self.connections) < self.limit_concurrency:
            self._end_after(_HEAD_SECONDS)
            return
        self.connections.discard(self)
        most = f"{self.limit_concurrency - 1:,}"
        _full.warn("warning: %s connections are open, as many as this server takes; others get 503", most)
        what = f"{most} connections are open, as many as this server takes"
        self._refuse(Refusal(Fault.FULL, what, headers=[(b"retry-after", b"1")]))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._forget_unread()

    def data_received(self, data: bytes) -> None:
        timer, self.timeout_keep_alive_task = self.timeout_keep_alive_task, None  # uvicorn would end it at any byte
        last = self.cycle
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > _HEAD or (self.headers is not None and len(self.headers) > _HEADERS):
            self._is_overlong = True
            if not self.transport.is_closing():
                self.send_400_response("")
        if timer is None:
            return
        if self.cycle is last:
            self.timeout_keep_alive_task = timer
        else:
            timer.cancel()

    def on_headers_complete(self) -> None:
        if len(self.headers) > _HEADERS or (self._unparsed > _HEAD and self._head_size() > _HEAD):
            self._is_overlong = True
        if self._is_overlong or len(self.pipeline) >= _AHEAD:
            raise ValueError("too long a head, or too many requests ahead")  # which ends the parser
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unparsed = 0
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._end_after(_UNREAD_SECONDS)

    def send_400_response(self, msg: str) -> None:
        """Answers what is no request, or has too long a head, and closes the connection."""
        if self.pipeline or (self.cycle is not None and self.cycle.response_started != self.cycle.response_complete):
            self.transport.close()  # an answer is being written, and nothing may come into it
        elif self._is_overlong:
            what = f"the head of a request has more than {_HEAD:,} bytes, or more than {_HEADERS} headers"
            self._refuse(Refusal(Fault.LONG_HEAD, what))
        else:
            super().send_400_response(msg)

    def timeout_keep_alive_handler(self) -> None:
        """Closes the connection; unsent parts of an answer are dropped."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        self._forget_unread()
        super().resume_writing()

    def _head_size(self) -> int:
        return len(self.url) + sum(map(len, chain.from_iterable(self.headers)))

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _end_after(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _refuse(self, refusal: Refusal) -> None:
        """Answers a client of which there is no request, and closes the connection."""
        answer = refusal.answer(openai=False)  # whose API the client speaks is not known
        status, body = HTTPStatus(answer.status), b"".join(answer.pieces)
        headers = [*answer.headers, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
        lines = [b"HTTP/1.1 %d %b" % (status, status.phrase.encode()), *(b"%b: %b" % header for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()
