"""JSON records that tell when another hand changed them: one of their fields is a digest of the others."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ternarize_cli.errors import DataError

__all__ = ["checked", "read_signed", "signed"]

_DIGEST = "record_sha256"


def signed(fields: Mapping[str, Any], *, indent: int | None = None) -> str:
    """The JSON text of a record.

    Args:
        fields: of the record, JSON values.
        indent: as `json.dumps` takes it.
    """
    return json.dumps({**fields, _DIGEST: _digest(fields)}, indent=indent) + "\n"


def checked(text: str) -> dict[str, Any]:
    """The fields of a record that `signed` made.

    Raises:
        ValueError: the text is no such record, or was changed.
    """
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise ValueError("it holds no record")
    digest = fields.pop(_DIGEST, None)
    if digest != _digest(fields):
        raise ValueError("its content is not what was written" if digest else f"it has no {_DIGEST}")
    return fields


def read_signed(path: Path, version: int, what: str, hint: str) -> dict[str, Any]:
    """The fields of a record file, `format_version` being one of them.

    Args:
        path: of the file.
        version: the one that is read.
        what: the record is of, for messages.
        hint: what to do about a file that can't be used.

    Raises:
        DataError: the file is damaged, was edited, or is of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
        if isinstance(found, dict) and found.get("format_version") != version:
            raise DataError(
                f"{path}: {what} format {found.get('format_version')!r}; this ternarize reads version {version}",
                hint=f"{hint}, or update ternarize",
            )
        return checked(text)
    except (OSError, ValueError) as e:
        raise DataError(f"{path} is damaged or was edited: {e}", hint=hint) from e


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
