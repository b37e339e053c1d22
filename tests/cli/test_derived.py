"""Options of commands are made of the fields of the library's dataclasses (`cli.derived`)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from ternarize_cli.bench.options import BenchFiles, BenchOptions
from ternarize_cli.cli.app import app
from ternarize_cli.cli.derived import Only, derived
from ternarize_cli.compress.options import Calibration, ConvertOptions
from ternarize_cli.distill.options import DistillOptions, Training
from ternarize_cli.errors import InputError
from ternarize_cli.evaluation.options import EvaluationOptions
from ternarize_cli.evaluation.report_files import EvaluationFiles
from ternarize_cli.index.options import IndexOptions, SearchOptions
from ternarize_cli.storage.command_option import Option, check_fields
from ternarize_cli.vectors.options import EncoderOptions, ShardOptions


@dataclass(frozen=True)
class Made:
    """Every kind of field."""

    names: Annotated[Sequence[str | Path], Option("Repeated.", name="name")] = ()
    sizes: Annotated[tuple[int, ...] | None, Option("In one value.", name="size", in_one=True)] = None
    weights: Annotated[Mapping[str, float], Option("Of parts.", name="weigh", metavar="PART=WEIGHT")] = field(
        default_factory=dict
    )
    count: Annotated[int, Option("Bounded.", min=1, max=9)] = 3
    careful: Annotated[bool, Option("Off by default.")] = False
    memory: Annotated[bool, Option("On by default.")] = True
    cached: Annotated[bool, Option("On, unless.", name="no_cache")] = True
    folder: Annotated[str | Path | None, Option("Optional.", metavar="DIR")] = None
    minutes: Annotated[float | None, Option("A budget.", exclusive="budget", otherwise=10.0)] = None
    steps: Annotated[int | None, Option("Another.", exclusive="budget")] = None
    inner: int = 7


def made(*arguments: str, settings: dict[str, Any] | None = None, **environment: str) -> Any:
    """What a command's body is given, or the result of a command that failed."""
    given: list[Made] = []

    def body(options: Made) -> None:
        given.append(options)

    tool = typer.Typer(context_settings={"auto_envvar_prefix": "T", "default_map": settings or {}})
    tool.command()(derived(body))
    result = CliRunner().invoke(tool, arguments, env=environment)
    return given[0] if given else result


def test_without_options_the_body_gets_the_dataclass_as_python_makes_it() -> None:
    assert made() == Made(minutes=10.0)


@pytest.mark.parametrize(
    ("arguments", "changed"),
    [
        (["--name", "a", "--name", "b"], {"names": ("a", "b")}),
        (["--size", "8, 1,8"], {"sizes": (8, 1)}),
        (["--weigh", "hidden=0.5", "--weigh", "cosine"], {"weights": {"hidden": 0.5, "cosine": 1.0}}),
        (["--count", "9"], {"count": 9}),
        (["--careful"], {"careful": True}),
        (["--no-memory"], {"memory": False}),
        (["--no-cache"], {"cached": False}),
        (["--folder", "x"], {"folder": "x"}),
    ],
)
def test_a_flag_sets_its_field(arguments: list[str], changed: dict[str, Any]) -> None:
    assert made(*arguments) == Made(**{"minutes": 10.0} | changed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "10"], "--count"),
        (["--weigh", "hidden=x"], "'hidden=x' is not PART=WEIGHT"),
        (["--inner", "1"], "No such option"),
        (["--no-careful"], "No such option"),
        (["--cached"], "No such option"),
    ],
)
def test_what_no_field_takes_is_a_usage_error(arguments: list[str], message: str) -> None:
    result = made(*arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("text", ["", "x", "0", "1,,2", "1000001"])
def test_a_list_in_one_value_is_of_positive_numbers(text: str) -> None:
    error = made("--size", text).exception
    assert isinstance(error, InputError)
    assert "is no positive number up to 1,000,000" in str(error)


def test_of_options_that_exclude_each_other_the_one_given_most_expressly_counts() -> None:
    assert made("--steps", "5") == Made(steps=5)
    assert made("--steps", "5", T_MINUTES="2") == Made(steps=5)
    assert made(T_MINUTES="2", settings={"steps": 5}) == Made(minutes=2.0)
    assert made(settings={"steps": 5}) == Made(steps=5)
    assert made("--steps", "5", "--minutes", "2") == Made(minutes=2.0, steps=5)


def test_a_command_may_offer_some_fields() -> None:
    given: list[Made] = []

    def body(options: Annotated[Made, Only("count")], name: str = "x") -> None:
        given.append(options)

    tool = typer.Typer()
    tool.command()(derived(body))
    assert CliRunner().invoke(tool, ["--count", "2", "--name", "y"]).exit_code == 0
    assert given == [Made(count=2)]
    assert CliRunner().invoke(tool, ["--careful"]).exit_code == 2


def test_a_lone_string_is_no_sequence() -> None:
    check_fields(Made(names=["a"]))
    with pytest.raises(InputError, match="names takes several values, not the string 'abc'"):
        check_fields(Made(names="abc"))


@pytest.mark.parametrize(
    ("command", "kinds"),
    [
        ("bench", (BenchOptions, BenchFiles)),
        ("convert", (ConvertOptions,)),
        ("distill", (Training, DistillOptions)),
        ("encode", (EncoderOptions, ShardOptions)),
        ("eval", (EvaluationOptions, EvaluationFiles)),
        ("index build", (IndexOptions,)),
        ("index search", (SearchOptions,)),
    ],
)
def test_every_field_of_a_command_s_options_is_offered_once(command: str, kinds: tuple[Any, ...]) -> None:
    found: Any = get_command(app)
    for word in command.split():
        found = found.commands[word]
    names = [option.name for option in found.params]
    assert len(set(names)) == len(names)
    helps = {option.name: option.help for option in found.params}
    for kind in kinds:
        hints = get_type_hints(kind, include_extras=True)
        for one in fields(kind):
            marks = getattr(hints[one.name], "__metadata__", ())
            option = next((mark for mark in marks if isinstance(mark, Option)), None)
            if option is not None:
                assert helps[option.name or one.name] == option.help
            else:
                assert one.name in names, "an option that the command declares itself"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvertOptions(seed="x"), "seed is 'x'; it must be a whole number, 0 or more"),  # type: ignore[arg-type]
        (lambda: ConvertOptions(seed=-3), "seed is -3"),
        (lambda: ConvertOptions(seed=True), "seed is True"),
        (lambda: ConvertOptions(skip=3), "skip takes several values, not 3"),  # type: ignore[arg-type]
        (lambda: ConvertOptions(trim=Path("x")), "trim takes several values"),  # type: ignore[arg-type]
        (lambda: Calibration(["a"], samples=0), "samples is 0; it must be a whole number, 16 or more"),
        (lambda: Calibration(["a"], tokens=-1), "tokens is -1"),
        (lambda: Training(steps=2.5), "steps is 2.5; it must be a whole number"),  # type: ignore[arg-type]
    ],
)
def test_python_is_told_of_values_that_the_command_line_refuses(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make()
