"""Reads the fields of a JSON body, and refuses values of a wrong type by the name of their field."""

from collections.abc import Mapping
from typing import Any, TypeVar

import orjson

from ternarize_cli.errors import shown
from ternarize_cli.serve.answers import Fault, Refusal

__all__ = ["Fields"]

T = TypeVar("T")
_WHAT = {bool: "true or false", int: "a whole number", str: "a string"}


class Fields:
    """The JSON object in the body of a request. A field that is null counts as missing; unknown fields are not read."""

    def __init__(self, body: bytes | bytearray) -> None:
        """Parses a body.

        Raises:
            Refusal: the body is no JSON, or no object.
        """
        try:
            values = orjson.loads(body)
        except orjson.JSONDecodeError as e:
            raise Refusal(Fault.NOT_JSON, f"the body is not JSON: {e}") from e
        if not isinstance(values, dict):
            raise Refusal(Fault.INVALID, f"the body is {_kind(values)}, not a JSON object")
        self._values: Mapping[str, Any] = values

    def value(self, name: str) -> Any:
        """Returns a field as it was parsed; None if it is missing."""
        return self._values.get(name)

    def required(self, name: str) -> Any:
        """Returns a field as it was parsed.

        Raises:
            Refusal: it is missing.
        """
        value = self._values.get(name)
        if value is None:
            raise Refusal(Fault.INVALID, f"`{name}` is missing", param=name)
        return value

    def get(self, name: str, kind: type[T], default: T) -> T:
        """Returns a field of one type; `default` if it is missing.

        Raises:
            Refusal: it has another type.
        """
        value = self._values.get(name)
        if value is None:
            return default
        if type(value) is not kind:
            raise Refusal(Fault.INVALID, f"`{name}` is {_shown(value)}, not {_WHAT[kind]}", param=name)
        return value

    def optional(self, name: str, kind: type[T]) -> T | None:
        """Returns a field of one type; None if it is missing.

        Raises:
            Refusal: it has another type.
        """
        return None if self._values.get(name) is None else self.get(name, kind, kind())

    def choice(self, name: str, *known: str) -> str:
        """Returns a field that has one of some values, in any case; the first of them if it is missing.

        Raises:
            Refusal: it is none of them.
        """
        value = self.get(name, str, known[0])
        if value.lower() not in known:
            raise Refusal(Fault.INVALID, f"`{name}` is {shown(value)}, not {' or '.join(known)}", param=name)
        return value.lower()


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "null" if value is None else "an object")


def _shown(value: Any) -> str:
    return _kind(value) if isinstance(value, list | dict) else shown(value)
