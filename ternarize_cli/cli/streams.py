"""Copes with stdin, stdout and stderr that are closed, full, without a reader, or lack characters in their encoding.

A character that the encoding lacks is replaced by a plainer one or by its escape. Text that can't be written to stderr
is dropped, and work goes on. A result that can't be written to stdout ends the command, quietly if the reader of the
pipe has ended (`… | head`).
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
    """Opens /dev/null for standard streams that are closed, and lets the others escape characters that they lack.

    A file that is opened later would otherwise get the descriptor of a closed stream, and the output of libraries would
    go into that file. `sys.stdin` stays None if stdin is closed, so that a command that reads it can report an error
    (`texts.open_stdin`).
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)  # gets the lowest free descriptor
    if sys.stdout is None:
        sys.stdout = _Closed(open(os.devnull, "wb"), encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    codecs.register_error("plain", _plain)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")


class _Closed(io.TextIOWrapper):
    """Replaces a stdout that was closed: drops text, and raises OSError for binary data."""

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
    """Escapes characters that would move a terminal's cursor, change its colours or reverse the writing direction."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def tell(text: str) -> None:
    """Prints a line on stderr; if that fails, drops this and all later output to stderr."""
    try:
        print(visible(text), file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def silence(stream: Any) -> None:
    """Redirects a stream to /dev/null."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def is_unread(stream: Any) -> bool:
    """Returns whether a stream is a pipe whose reader has closed it."""
    try:
        poll = select.poll()
        poll.register(stream.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False


def flush() -> None:
    """Flushes stdout, so that a failure is noticed here and not while Python shuts down.

    Raises:
        OSError: stdout can't be written, for another reason than that the reader of the pipe has closed it.
    """
    try:
        sys.stdout.flush()
    except OSError as e:
        unread = is_unread(sys.stdout)
        silence(sys.stdout)
        if not (unread and e.errno == errno.EPIPE):
            raise
