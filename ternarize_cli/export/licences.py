"""The licences of an export: those of the model, and that of ternarize, whose code and library an export carries."""

import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from ternarize_cli.errors import UnavailableError
from ternarize_cli.model_folder.model_files import contained

__all__ = ["OURS", "licence_texts", "spdx", "with_ours"]

OURS = "LICENSE-ternarize"
"""The name of the file that holds the text of ternarize's licence."""
_DISTRIBUTION, _EXPRESSION = "ternarize-cli", "MIT"
_NAMES = re.compile(r"(LICENSE|LICENCE|NOTICE|COPYING)[\w.-]{0,80}")
_LARGEST = 1 << 20


def licence_texts(folder: Path) -> Mapping[str, bytes]:
    """Reads the texts of licences that an export carries, by the names of their files.

    They are the licences and notices in the model's folder, without links to other places, sorted by name, and
    ternarize's own.

    Args:
        folder: the model's folder.

    Raises:
        UnavailableError: the installed ternarize lacks the text of its licence.
    """
    ours = _installed()
    if ours is None:
        raise UnavailableError(
            "the text of ternarize's licence is not installed, and every export carries it",
            hint="install ternarize again",
        )
    paths = sorted(path for path in folder.iterdir() if _NAMES.fullmatch(path.name))
    own = [p for p in paths if p.is_file() and contained(folder, p) and p.stat().st_size <= _LARGEST]
    return {path.name: path.read_bytes() for path in own} | {OURS: ours.encode()}


def spdx(licence: str) -> str | None:
    """Returns the name of a licence as an SPDX expression; None if it is none."""
    try:
        return canonicalize_license_expression(licence)
    except InvalidLicenseExpression:
        return None


def with_ours(licence: str | None) -> str | None:
    """Returns the licence of a package that holds a model and ternarize's code.

    Args:
        licence: the model's licence, as its card names it; None if it names none.

    Returns:
        Both as one SPDX expression, such as "Apache-2.0 AND MIT". A licence without an SPDX expression, or None, is
        returned as it is.
    """
    own = None if licence is None else spdx(licence)
    if own is None or own == _EXPRESSION:
        return own or licence
    return f"({own}) AND {_EXPRESSION}" if " OR " in own else f"{own} AND {_EXPRESSION}"


def _installed() -> str | None:
    """Returns the text of ternarize's licence; None if it is not installed as a package, or without that file."""
    try:
        return distribution(_DISTRIBUTION).read_text("licenses/LICENSE")
    except PackageNotFoundError:
        return None
