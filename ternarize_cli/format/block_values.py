"""Checks values in the description of blocks, which may come from a stranger's config."""

from typing import Any

from ternarize_cli.errors import FormatError, shown

__all__ = ["MOST", "check_count", "check_flag", "check_mapping", "check_name", "check_number", "check_one_of"]

MOST = 1 << 24
"""The greatest of all counts, if nothing else is said."""
_LONGEST = 200


def check_mapping(what: str, values: Any) -> dict[str, Any]:
    """Returns a JSON object, and refuses anything else.

    Raises:
        FormatError: the value is refused; the message calls it `what`.
    """
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise FormatError(f"quantization_config: {what} is {shown(values)}; it must be an object")
    return values


def check_name(what: str, name: Any) -> None:
    """Refuses what is no name of a module: parts with dots between them, up to 200 characters.

    Raises:
        FormatError: the value is refused; the message calls it `what`.
    """
    if not isinstance(name, str) or not name or len(name) > _LONGEST or not all(name.split(".")):
        raise FormatError(f"quantization_config: block: {what} is {shown(name)}, which names no module")


def check_one_of(what: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuses a value that is not one of those known.

    Raises:
        FormatError: the value is refused; the message calls it `what`.
    """
    if value not in known:
        raise FormatError(f"quantization_config: block: {what} is {shown(value)}; it must be one of {', '.join(known)}")


def check_count(what: str, value: Any, least: int, most: int = MOST) -> None:
    """Refuses what is no whole number from `least` to `most`.

    Raises:
        FormatError: the value is refused; the message calls it `what`.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise FormatError(f"quantization_config: block: {what} is {shown(value)}; it must be {least} to {most:,}")


def check_number(what: str, value: Any, least: float, most: float) -> None:
    """Refuses what is no finite number from `least` to `most`.

    Raises:
        FormatError: the value is refused; the message calls it `what`.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:
        raise FormatError(f"quantization_config: block: {what} is {shown(value)}; it must be {least:g} to {most:g}")


def check_flag(what: str, value: Any) -> None:
    """Refuses what is neither true nor false.

    Raises:
        FormatError: the value is refused; the message calls it `what`.
    """
    if not isinstance(value, bool):
        raise FormatError(f"quantization_config: block: {what} is {shown(value)}; it must be true or false")
