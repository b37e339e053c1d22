"""stdin, stdout and stderr as a command finds them: closed, full, without a reader, or of an encoding that lacks signs.

A character that the encoding lacks becomes a plainer one or its escape. What can't be said on stderr is dropped: work
goes on. A result that can't be written to stdout ends the command, quietly if its reader has gone (`… | head`).
"""

import codecs
import errno
import io
import os
import re
import select
import sys
from contextlib import suppress
from typing import Any

__all__ = ["flush", "is_unread", "prepare", "silence", "tell", "visible"]

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_PLAIN = {"×": "x", "→": "->", "–": "-", "−": "-", "─": "-", "…": "...", "·": "-", "±": "+-", "≤": "<=", "≥": ">="}


def prepare() -> None:
    """Opens /dev/null for streams that are closed, and makes every character writable to the others.

    A file that is opened later would get the number of a closed stream, and what a library says would go into it. A
    closed stdin stays None for Python, so that a command that reads it can say so (`texts.open_stdin`).
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
    if sys.stdout is None:
        sys.stdout = _Closed(open(os.devnull, "wb"), encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


class _Closed(io.TextIOWrapper):
    """A stdout that was closed: it takes what is said, and refuses data."""

    @property
    def buffer(self) -> Any:
        raise OSError(errno.EBADF, "stdout is closed")


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = "".join(_PLAIN.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in signs)
    return plain, error.end


def visible(text: str) -> str:
    """A text for a terminal: signs that would move its cursor, change its colours or turn the direction are escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def tell(text: str) -> None:
    """A line on stderr; if it can't be written there, stderr is silent from then on."""
    try:
        print(visible(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def silence(stream: Any) -> None:
    """Lets what is written to a stream go nowhere."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def is_unread(stream: Any) -> bool:
    """Whether a stream is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def flush() -> None:
    """Writes out what stdout holds back, so that a failure is noticed here, not while Python shuts down.

    Raises:
        OSError: it can't be written.
    """
    try:
        sys.stdout.flush()
    except OSError as e:
        unread = is_unread(sys.stdout)
        silence(sys.stdout)
        if not (unread and e.errno == errno.EPIPE):
            raise
