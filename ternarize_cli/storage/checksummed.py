"""Writes and reads JSON records with a checksum, by which damage and careless edits are found.

The checksum does not prevent forgery: whoever edits a record can compute it anew. So the content is also checked: its
fields must have the types of the dataclass that it becomes (`check_types`), and values are checked where they are used.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ternarize_cli.errors import DataError, shown
from ternarize_cli.storage.bounds import MAX_CONFIG, parse_json, read_bytes

__all__ = ["check_types", "checked", "read_checksummed", "with_checksum"]

_DIGEST = "record_sha256"


def with_checksum(fields: Mapping[str, Any], *, indent: int | None = None) -> str:
    """Makes the JSON text of a record and adds its checksum as the field `record_sha256`.

    Args:
        fields: the fields of the record by name; values that JSON can hold.
        indent: number of blanks by which each level is indented; None writes one line.
    """
    return json.dumps({**fields, _DIGEST: _digest(fields)}, indent=indent) + "\n"


def checked(text: str) -> dict[str, Any]:
    """Parses a record that `with_checksum` made into its fields, without the checksum.

    Raises:
        ValueError: the text is no JSON object, lacks the checksum, or does not match it.
    """
    fields = _parsed(text)
    if not isinstance(fields, dict):
        raise ValueError("it holds no record")
    digest = fields.pop(_DIGEST, None)
    if digest != _digest(fields):
        raise ValueError("its content is not what was written" if digest else f"it has no {_DIGEST}")
    return fields


def read_checksummed(path: Path, version: int, what: str, hint: str) -> dict[str, Any]:
    """Reads a file that holds one record into the fields of the record, without the checksum.

    Args:
        path: path of the file.
        version: the value that the field `format_version` must have.
        what: the kind of the record, for messages.
        hint: the hint for a file that can't be used.

    Raises:
        DataError: the file can't be read, is damaged or was edited, or has another `format_version`.
    """
    content = read_bytes(path, limit=MAX_CONFIG, error=DataError)
    try:
        text = content.decode()
        found = _parsed(text)
        if isinstance(found, dict) and found.get("format_version") != version:
            raise DataError(
                f"{path}: {what} format {shown(found.get('format_version'))}; this ternarize reads version {version}",
                hint=f"{hint}, or update ternarize",
            )
        return checked(text)
    except ValueError as e:
        raise DataError(f"{path} is damaged or was edited: {e}", hint=hint) from e


def _parsed(text: str) -> Any:
    """Parses a JSON text; raises ValueError if it is not valid or is nested deeper than `bounds.MAX_DEPTH`."""
    try:
        return parse_json(text, "its content", error=DataError)
    except DataError as e:
        raise ValueError(str(e)) from e


def check_types(found: Mapping[str, Any], cls: type[Any], path: Path, hint: str) -> None:
    """Checks that a record has the fields of a dataclass, with values of their types.

    Args:
        found: the fields of the record by name.
        cls: the dataclass; a record may lack those of its fields that have a default.
        path: path of the record's file, for messages.
        hint: the hint for a file that can't be used.

    Raises:
        DataError: a field is missing, is unknown to the dataclass, or has a value of another type.
    """
    hints, known = get_type_hints(cls), {field.name: field for field in fields(cls)}
    needed = {f.name for f in known.values() if f.default is f.default_factory}  # both are MISSING
    if unknown := sorted(found.keys() - known.keys()):
        raise DataError(f"{path} has an unknown field {shown(unknown[0])}", hint=hint)
    if missing := sorted(needed - found.keys()):
        raise DataError(f"{path} lacks the field {missing[0]}", hint=hint)
    for name, value in found.items():
        if not _is_a(value, hints[name]):
            raise DataError(f"{path}: {name} is {shown(value)}, which is of the wrong type", hint=hint)


def _is_a(value: Any, kind: Any) -> bool:
    """Returns whether a JSON value is of a type; a dataclass stands for any object, whose fields are not checked."""
    if isinstance(kind, UnionType):
        return any(_is_a(value, one) for one in get_args(kind))
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_a(v, get_args(kind)[1]) for v in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind in (int, bool, str, NoneType):
        return type(value) is kind
    return isinstance(value, dict)


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
