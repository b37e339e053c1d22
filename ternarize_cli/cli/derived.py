"""Makes commands whose options are the fields of the library's dataclasses (`storage.command_option`).

    @derived
    def encode(model: ModelArgument, options: EncoderOptions, json: Json = False) -> None: ...

typer then sees a function with an option for each field of EncoderOptions in place of `options`, and the body gets an
instance of EncoderOptions. `Annotated[EncoderOptions, Only("backend", "threads")]` offers only these fields; all
others keep their defaults, and so do fields without an `Option`.
"""

import dataclasses
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

import typer

from ternarize_cli.errors import InputError, shown
from ternarize_cli.storage.command_option import Option

__all__ = ["Only", "derived", "typer_option"]

_STRENGTH = {"COMMANDLINE": 3, "ENVIRONMENT": 2, "DEFAULT_MAP": 1}
_SEVERAL = (tuple, Sequence)
_LARGEST = 1_000_000
"""The largest number that a list of numbers with commas between them may hold."""


class Only:
    """Names the fields of a dataclass that a command offers, in the order of its help."""

    def __init__(self, *names: str) -> None:
        self.names = names


@dataclasses.dataclass(frozen=True)
class _Field:
    """A field of a dataclass and the option that sets it.

    Attributes:
        field: the field's name.
        option: the description of the option.
        type: the type of the option's value: the first of the types that the field takes.
        is_optional: whether the field may be None.
        default: the field's default; None if it has none.
    """

    field: str
    option: Option
    type: Any
    is_optional: bool
    default: Any

    @property
    def name(self) -> str:
        return self.option.name or self.field

    @property
    def is_inverted(self) -> bool:
        return self.default is True and self.name.startswith("no_")

    @property
    def is_repeated(self) -> bool:
        return get_origin(self.type) in _SEVERAL and not self.option.in_one

    @property
    def is_mapping(self) -> bool:
        return get_origin(self.type) is Mapping

    def parameter(self) -> inspect.Parameter:
        """Makes the parameter from which typer makes the option."""
        default: Any = None if isinstance(self.default, tuple) else self.default
        kind: Any = self.type | None if self.is_optional else self.type
        if self.is_repeated or self.is_mapping:
            kind = list[_first(get_args(self.type)[0])] | None  # type: ignore[misc]
        elif self.option.in_one:
            kind = str | None
        elif self.is_inverted:
            default = False
        both = self.type is bool and default is not False
        annotation = Annotated[kind, typer_option(self.option, self.name, both=both)]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    def value(self, given: Any) -> Any:
        """Converts the option's value on the command line to the field's value."""
        if self.is_inverted:
            return not given
        if self.is_mapping:
            return _pairs(given or (), self.option, self.name)
        if get_origin(self.type) not in _SEVERAL:
            return given
        if self.option.in_one and given is not None:
            return _numbers(given, f"--{self.name}")
        return tuple(given) if given else self.default


def derived(body: Callable[..., None]) -> Callable[..., None]:
    """Makes the function that is registered with typer from the body of a command.

    Args:
        body: a function whose parameters are annotated for typer, or have a dataclass with options as their type.

    Returns:
        A function that has an option for each offered field in place of a parameter with a dataclass.
    """
    hints = get_type_hints(body, include_extras=True)
    parameters: list[inspect.Parameter] = []
    made: dict[str, tuple[Any, list[_Field]]] = {}
    contexts: list[str] = []
    for parameter in inspect.signature(body).parameters.values():
        hint = hints[parameter.name]
        kind, *marks = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if kind is typer.Context:  # typer gives one parameter the context
            contexts.append(parameter.name)
        elif dataclasses.is_dataclass(kind):
            only = next((mark.names for mark in marks if isinstance(mark, Only)), None)
            offered = _fields(kind, only)
            made[parameter.name] = (kind, offered)
            parameters += [field.parameter() for field in offered]
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(body)
    def command(context_: typer.Context, **values: Any) -> None:
        for name, (kind, offered) in made.items():
            given = {field.name: values.pop(field.name) for field in offered}
            _choose(given, offered, context_)
            values[name] = kind(**{field.field: field.value(given[field.name]) for field in offered})
        body(**values, **dict.fromkeys(contexts, context_))

    context = inspect.Parameter("context_", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    command.__signature__ = inspect.Signature([context, *parameters])  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in (context, *parameters)}
    return command


def typer_option(option: Option, name: str, *, both: bool = False) -> Any:
    """Converts the description of an option to typer's.

    Args:
        option: the description beside a field of a dataclass.
        name: the option's name as a Python identifier, such as `batch_size`.
        both: offer the flag `--no-NAME` too.
    """
    flag = name.replace("_", "-")
    return typer.Option(
        f"--{flag}/--no-{flag}" if both else f"--{flag}",
        help=option.help,
        metavar=option.metavar,
        min=option.min,
        max=option.max,
        envvar=option.envvar,
        callback=_checked_threads if name == "threads" else None,
    )


def _checked_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    from ternarize_cli.encoders.loading import checked_threads

    return checked_threads(threads)


def _fields(kind: Any, only: tuple[str, ...] | None) -> list[_Field]:
    hints = get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        base, *marks = get_args(hints[field.name]) if get_origin(hints[field.name]) is Annotated else (None,)
        option = next((mark for mark in marks if isinstance(mark, Option)), None)
        if option is None:
            continue
        default = None if field.default is dataclasses.MISSING else field.default
        found[field.name] = _Field(field.name, option, _first(base), types.NoneType in get_args(base), default)
    return [found[name] for name in only] if only is not None else list(found.values())


def _first(hint: Any) -> Any:
    """Returns the first member of a union, and any other type itself: `str` for `str | Path | None`."""
    return get_args(hint)[0] if get_origin(hint) in (Union, types.UnionType) else hint


def _choose(given: dict[str, Any], offered: list[_Field], context: typer.Context) -> None:
    """Sets those of several mutually exclusive options to None that come from a weaker source than another one.

    A flag is stronger than the environment, and the environment is stronger than the settings file. Several options
    from one source all stay, and the dataclass checks them. If none is given, each gets its `otherwise`.
    """
    groups: dict[str, list[_Field]] = {}
    for field in offered:
        if field.option.exclusive is not None:
            groups.setdefault(field.option.exclusive, []).append(field)
    for group in groups.values():
        strengths = {
            field.name: _STRENGTH.get(getattr(context.get_parameter_source(field.name), "name", ""), 0)
            for field in group
            if given[field.name] is not None
        }
        for field in group:
            if not strengths:
                given[field.name] = field.option.otherwise
            elif strengths.get(field.name) != max(strengths.values()):
                given[field.name] = None


def _pairs(texts: list[str] | tuple[str, ...], option: Option, name: str) -> dict[str, float]:
    """Parses values such as `hidden=0` into a dict, {"hidden": 0.0}; a name without a value gets 1.

    Raises:
        BadParameter: a value is no number.
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            found[key] = float(value) if equals else 1.0
        except ValueError as e:
            raise typer.BadParameter(f"{text!r} is not {option.metavar}", param_hint=f"--{name}") from e
    return found


def _numbers(text: str, flag: str) -> tuple[int, ...]:
    """Parses numbers with commas between them, such as `1,8`, and drops repeated ones.

    Raises:
        InputError: a piece is no whole number from 1 to 1,000,000.
    """
    pieces = [piece.strip() for piece in text.split(",")]
    for piece in pieces:
        if not piece.isdecimal() or len(piece) > 9 or not 1 <= int(piece) <= _LARGEST:
            raise InputError(
                f"{flag} {text[:80]}: {shown(piece)} is no positive number up to {_LARGEST:,}",
                hint=f"put commas between numbers: {flag} 1,8",
            )
    return tuple(dict.fromkeys(int(piece) for piece in pieces))
