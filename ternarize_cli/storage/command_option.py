"""Describes an option of a command once: beside the field of the dataclass that a library function takes.

    @plain_signature
    @dataclass(frozen=True)
    class EncoderOptions:
        batch_size: Annotated[int | None, Option("Texts per forward pass.", min=1, max=MAX_BATCH)] = None

Python users make the dataclass. The command line (`ternarize_cli.cli.derived`) reads the flag `--batch-size`, its names
in the environment and in the settings file, its type, default, bounds and help from the field. This module and the
modules that hold such dataclasses import no library, so that `ternarize --help` answers at once.
"""

import inspect
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import PurePath
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ternarize_cli.errors import InputError

__all__ = [
    "ALLOW_PICKLE",
    "BACKEND",
    "DEVICE",
    "MANY",
    "MAX_BATCH",
    "NO_CHECK",
    "SEED",
    "SKIP_BAD",
    "THREADS",
    "Option",
    "check_fields",
    "option_of",
    "plain_signature",
]

T = TypeVar("T")

MANY = 1_000_000_000
"""Upper bound of options that count something, where there is no better bound."""
MAX_BATCH = 1_000_000
"""Upper bound of options that set a batch size: a number of texts or images."""


@dataclass(frozen=True)
class Option:
    """Describes how the command line offers a field of a dataclass.

    Attributes:
        help: one sentence for `--help`.
        name: the name on the command line, in the environment and in the settings file; None takes the field's name. A
            field that is True by default and whose option is called `no_…` is switched off by that flag.
        metavar: what `--help` shows in place of the value; None shows the type.
        min: the smallest number that is accepted; None sets no bound.
        max: the largest number that is accepted; None sets no bound.
        envvar: an environment variable that several commands share, beside TERNARIZE_COMMAND_OPTION.
        in_one: whether a tuple of numbers is given as one value, with commas between; otherwise the option is repeated.
        exclusive: the name of a group of options of which one counts: a flag beats the environment, and the environment
            beats the settings file.
        otherwise: the field's value if no option of the group `exclusive` is given.
    """

    help: str
    name: str | None = None
    metavar: str | None = None
    min: float | None = None
    max: float | None = None
    envvar: str | None = None
    in_one: bool = False
    exclusive: str | None = None
    otherwise: object = None


NO_CHECK = Option(
    "Do not open the result and compare its vectors with the source's, which needs memory for a whole model.",
    name="no_check",
)
ALLOW_PICKLE = Option("Also read pytorch_model.bin (tensors only; trust its author all the same).")
BACKEND = Option("Kernels to run on; `ternarize doctor` lists them.", envvar="TERNARIZE_BACKEND")
DEVICE = Option("cpu, cuda, cuda:1, …; default: a GPU if there is one.", envvar="TERNARIZE_DEVICE")
SEED = Option("Seed of everything random; recorded.", min=0, max=2**32 - 1, envvar="TERNARIZE_SEED")
SKIP_BAD = Option("Skip lines and images that can't be read, and count them.")
THREADS = Option("CPU threads, at most 4 a core; default: all cores.", min=1, envvar="TERNARIZE_THREADS")


def option_of(kind: type, field: str) -> Option:
    """Returns the description beside a field of a dataclass, for another dataclass that has the option, too.

    Args:
        kind: the dataclass.
        field: the name of its field, which must have an `Option`.
    """
    return next(mark for mark in get_args(get_type_hints(kind, include_extras=True)[field]) if isinstance(mark, Option))


def plain_signature(kind: type[T]) -> type[T]:
    """Makes `help` and editors show the types of a dataclass's fields without the `Option` beside each.

    Args:
        kind: the dataclass; its fields keep their options.
    """
    constructor: Any = kind.__init__
    constructor.__signature__ = _without_marks(inspect.signature(constructor))
    kind.__signature__ = _without_marks(inspect.signature(kind))  # type: ignore[attr-defined]
    return kind


def _without_marks(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(
        parameters=[
            one.replace(annotation=get_args(one.annotation)[0]) if get_origin(one.annotation) is Annotated else one
            for one in signature.parameters.values()
        ]
    )


def check_fields(options: Any) -> None:
    """Checks the values of an options dataclass that Python code makes, as the command line checks its options.

    Args:
        options: an instance of a dataclass.

    Raises:
        InputError: a field that takes several values holds a string, a path or no sequence; or a field that takes a
            number holds something else, or a number out of the bounds of its `Option`.
    """
    hints = get_type_hints(type(options), include_extras=True)
    for field in fields(options):
        value, hint = getattr(options, field.name), hints[field.name]
        base, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        kinds = get_args(base) if get_origin(base) in (Union, UnionType) else (base,)
        if value is None and NoneType in kinds:
            continue
        if get_origin(kinds[0]) in (Sequence, tuple):
            if isinstance(value, str | PurePath) or not isinstance(value, Iterable):
                what = f"the string {value!r}" if isinstance(value, str) else repr(value)
                raise InputError(f"{field.name} takes several values, not {what}", hint=f"[{value!r}]")
        elif kinds[0] in (int, float):
            option = next((mark for mark in marks if isinstance(mark, Option)), None)
            _check_number(field.name, value, kinds[0], option)


def _check_number(name: str, value: Any, kind: type, option: Option | None) -> None:
    number = numbers.Integral if kind is int else numbers.Real
    low, high = (option.min, option.max) if option is not None else (None, None)
    is_number = isinstance(value, number) and not isinstance(value, bool)
    if is_number and (low is None or value >= low) and (high is None or value <= high):
        return
    least = "" if low is None else f", {low:,} or more"
    most = "" if high is None else f", at most {high:,}"
    what = "a whole number" if kind is int else "a number"
    raise InputError(f"{name} is {value!r}; it must be {what}{least}{most}")
