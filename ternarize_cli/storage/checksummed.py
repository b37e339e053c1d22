"""JSON records with a checksum, by which damage and careless edits are found.

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
    """Makes the JSON text of a record, with its checksum.

    Args:
        fields: the fields of the record, JSON values.
        indent: number of blanks for each level, as in `json.dumps`; None writes one line.
    """
    return json.dumps({**fields, _DIGEST: _digest(fields)}, indent=indent) + "\n"


def checked(text: str) -> dict[str, Any]:
    """Reads the fields of a record that `with_checksum` wrote.

    Raises:
        ValueError: the text is no such record, or was changed.
    """
    fields = _parsed(text)
    if not isinstance(fields, dict):
        raise ValueError("it holds no record")
    digest = fields.pop(_DIGEST, None)
    if digest != _digest(fields):
        raise ValueError("its content is not what was written" if digest else f"it has no {_DIGEST}")
    return fields


def read_checksummed(path: Path, version: int, what: str, hint: str) -> dict[str, Any]:
    """Reads the fields of a record file, which must have a field `format_version`.

    Args:
        path: path of the file.
        version: the version that can be read.
        what: the kind of the record, for messages.
        hint: the hint for a file that can't be used.

    Raises:
        DataError: the file is damaged, was edited, or is of another version.
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
    """Parses a JSON text; raises ValueError if it is not valid or is nested too deep."""
    try:
        return parse_json(text, "its content", error=DataError)
    except DataError as e:
        raise ValueError(str(e)) from e


def check_types(found: Mapping[str, Any], cls: type[Any], path: Path, hint: str) -> None:
    """Checks that the fields of a record are those of a dataclass, and their values of its types.

    Args:
        found: the fields.
        cls: the dataclass; fields with a default may be missing.
        path: path of the record's file, for messages.
        hint: the hint for a file that can't be used.

    Raises:
        DataError: a field is missing, is not one of the dataclass's, or has a value of another type.
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
    """Whether a JSON value is of a type; a dataclass stands for any object, whose fields are not checked."""
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
