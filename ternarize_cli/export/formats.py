"""Registers the formats that models are exported to.

To add a format, add a file with a class under `@register`, and its name to `_MODULES`: a format's module is loaded when
it is asked for, since its libraries may take long to load.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ternarize_cli.errors import InputError
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source

__all__ = ["Export", "Format", "find_format", "register"]

_MODULES = {
    "wheel": "wheel",
    "c": "c",
    "onnx": "onnx",
    "openvino": "openvino",
    "gguf": "gguf",
    "dense": "dense",
    "compressed-tensors": "compressed_tensors",
}
"""For each format the module in this package that defines it."""


@dataclass(frozen=True)
class Export:
    """What was written.

    Attributes:
        files: the files, each with its size in bytes.
        hint: what the user may want to do next.
        facts: what else is worth knowing of the result, with values of JSON.
        check_gates: raises GateMissedError if the result, which is there all the same, missed a gate.
    """

    files: Mapping[Path, int]
    hint: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    check_gates: Callable[[], None] = lambda: None


class Format(Protocol):
    """The interface of a format; formats have no state.

    Attributes:
        name: the name that users type.
        options: the names of the options that it knows, fields of `ExportOptions`.
    """

    name: str
    options: frozenset[str]

    def write(
        self, source: Source, output: Path, options: ExportOptions, *, force: bool, say: Callable[[str], None]
    ) -> Export:
        """Writes a model that has been checked, atomically.

        Args:
            source: the model.
            output: the folder to write, or to write into.
            options: the options, of which only those that the format knows are set.
            force: replace what exists.
            say: is told what is written when all arguments have been checked.

        Raises:
            InputError: an option has a value that can't be used.
            UnavailableError: the model can't be written in this format, or something is missing for it.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """


_REGISTRY: dict[str, Format] = {}


def register(cls: type[Format]) -> type[Format]:
    """Registers a format's class under its name; used as a class decorator."""
    _REGISTRY[cls.name] = cls()
    return cls


def find_format(name: str) -> Format:
    """Returns the format of a name.

    Raises:
        InputError: there is no format of that name.
    """
    if name not in _MODULES:
        raise InputError(f"there is no format {name!r}", hint=f"--to takes {', '.join(_MODULES)}")
    import_module(f"ternarize_cli.export.{_MODULES[name]}")
    return _REGISTRY[name]
