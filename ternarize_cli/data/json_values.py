"""Reads the records of a JSON file one by one, so that a file may be larger than memory.

[{…}, {…}]  ["…", "…"]    the elements of a list
{…} {…}                   several values, one after the other, as in JSONL
{"data": [{…}, {…}]}      the elements of the only list in a single object that has no text of its own
{…}                       any other single object
"""

import codecs
import json
from collections.abc import Iterator
from typing import IO, Any

from ternarize_cli.data.unpacked import decoded
from ternarize_cli.errors import DataError, reason
from ternarize_cli.storage.bounds import MAX_DEPTH, MAX_LINE, deeper_than

__all__ = ["json_values"]

_BLOCK = 1 << 18
_MAX_WHOLE = 256 << 20
"""The most characters of a single object that may hold a list of records."""
_SPACE = " \t\r\n"


def json_values(stream: IO[bytes], name: str, fields: tuple[str, ...]) -> Iterator[Any]:
    """Yields the records of a JSON file.

    Args:
        stream: the file, as UTF-8 bytes.
        name: its name in messages.
        fields: fields that hold texts; an object with one of them is a record itself.

    Raises:
        DataError: the file is not valid JSON, is nested deeper than MAX_DEPTH, or has a record that is too large.
    """
    text = _JsonText(stream, name)
    if text.take("["):
        while not text.take("]"):
            yield text.value(MAX_LINE)
            if text.take(","):
                continue
            if text.next() != "]":
                raise text.error("a comma or the end of the list is missing")
        if text.next():
            raise text.error("more follows after the list")
        return
    first = text.value(_MAX_WHOLE) if text.next() else None
    if first is not None and not text.next():
        yield from _inside(first, fields)
        return
    if first is not None:
        yield first
    while text.next():
        yield text.value(MAX_LINE)


def _inside(value: Any, fields: tuple[str, ...]) -> Iterator[Any]:
    """Yields the elements of the only list of records in an object, or the object."""
    lists = []
    if isinstance(value, dict) and not any(field in value for field in fields):
        lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict | str)]
    yield from lists[0] if len(lists) == 1 else [value]


class _JsonText:
    """A JSON text that is read when it is needed."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream, self._name = stream, name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self._parse = json.JSONDecoder().raw_decode
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def next(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._fill(_BLOCK):
                return ""

    def take(self, sign: str) -> bool:
        """Passes the next character if it is `sign`; returns whether it was."""
        if self.next() != sign:
            return False
        self._at += 1
        return True

    def value(self, limit: int) -> Any:
        """Reads a value of at most `limit` characters."""
        self.next()
        size = _BLOCK
        while True:
            try:
                value, end = self._parse(self._text, self._at)
            except RecursionError:
                raise self.error(f"it is nested more than {MAX_DEPTH} levels deep") from None
            except ValueError as e:
                why = e.msg if isinstance(e, json.JSONDecodeError) else reason(e)
            else:
                if end < len(self._text) or not self._fill(_BLOCK):
                    break
                continue  # a number may go on
            if len(self._text) - self._at > limit:
                raise self.error(f"a value is longer than the {limit:,} characters that it may have")
            if not self._fill(size):
                raise self.error(why)
            size *= 2
        if end - self._at > limit:
            raise self.error(f"a value is longer than the {limit:,} characters that it may have")
        if deeper_than(value, MAX_DEPTH):
            raise self.error(f"it is nested more than {MAX_DEPTH} levels deep")
        self._at = end
        return value

    def error(self, why: str) -> DataError:
        line = self._line + self._text.count("\n", 0, self._at)
        return DataError(
            f"{self._name} line {line} is not valid JSON: {why}",
            hint="a list of objects with `text`; or JSONL: one object a line, and a name that ends in .jsonl",
        )

    def _fill(self, size: int) -> bool:
        """Reads on, and forgets what was passed; returns whether there was more."""
        if self._ended:
            return False
        raw = self._stream.read1(size)  # type: ignore[attr-defined]
        try:
            more = self._decode(raw, final=not raw)
        except UnicodeDecodeError as e:
            decoded(e.object[max(0, e.start - 20) : e.end + 20], f"{self._name} line {self._line} or later")
            raise
        self._ended = not raw
        self._line += self._text.count("\n", 0, self._at)
        self._text, self._at = self._text[self._at :] + more, 0
        return not self._ended
