"""Numbers on the command line are bounded: none reaches a library that it would crash, or memory that is not there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from ternarize_cli.cli.app import app
from ternarize_cli.encoders.loading import checked_threads, load_encoder
from ternarize_cli.errors import InputError
from ternarize_cli.index.search import Searcher
from ternarize_cli.index.tune import tune_index
from ternarize_cli.vectors.encode import EncoderOptions


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All commands, those of groups too, with the words that call them."""
    children = getattr(command, "commands", {})
    if not children:
        yield path, command
    for name, child in children.items():
        yield from commands(child, (*path, name))


COMMANDS = dict(commands(get_command(app)))
INTEGERS = [
    (path, option)
    for path, command in COMMANDS.items()
    for option in command.params
    if option.param_type_name == "option" and option.type_descriptor.annotation is int
]
THREADED = [path for path, option in INTEGERS if option.name == "threads"]
NEEDED = {
    "encode": "m",
    "convert": "m",
    "distill": "m --teacher t --data x.txt",
    "inspect": "m",
    "serve": "m",
    "eval": "m",
    "tune": "ix",
    "compact": "ix",
}
NEEDED |= {"build": "x.txt", "search": "ix", "add": "ix x.txt", "compare": "c -m m --teacher t"}


def run(path: tuple[str, ...], *options: str, **environment: str) -> tuple[int, str]:
    arguments = [*path, *NEEDED.get(path[-1], "").split(), *options]
    result = CliRunner().invoke(app, arguments, env=environment)
    return result.exit_code, result.output


def test_every_integer_option_has_a_largest_value() -> None:
    assert len(INTEGERS) > 35
    for path, option in INTEGERS:
        if option.name != "threads":  # bounded by the cores of the machine
            assert option.max is not None, f"{' '.join(path)} {option.opts[0]}"


@pytest.mark.parametrize(("path", "option"), INTEGERS, ids=lambda v: " ".join(v) if isinstance(v, tuple) else v.opts[0])
@pytest.mark.parametrize("value", [10**12, 10**30])
def test_absurd_integers_are_usage_errors(path: tuple[str, ...], option: Any, value: int) -> None:
    code, output = run(path, option.opts[0], str(value))
    assert code == 2, output
    assert option.opts[0] in output


@pytest.mark.parametrize("path", THREADED, ids=" ".join)
@pytest.mark.parametrize("value", ["100000", "0", "-1"])
def test_no_command_takes_absurd_numbers_of_threads(path: tuple[str, ...], value: str) -> None:
    name = "_".join(("TERNARIZE", *path, "THREADS")).upper()
    for options, environment in (
        (["--threads", value], {}),
        ([], {"TERNARIZE_THREADS": value}),
        ([], {name: value}),
    ):
        code, output = run(path, *options, **environment)
        assert code == 2, (environment, output)
        assert "--threads" in output, environment


def test_a_settings_file_sets_no_absurd_number_of_threads(tmp_path: Path) -> None:
    settings = tmp_path / "ternarize.toml"
    settings.write_text("threads = 100000\n")
    result = CliRunner().invoke(app, ["--config", str(settings), "index", "tune", "ix"])
    assert result.exit_code == 2
    assert "--threads 100000 is far more than the" in result.output


@pytest.mark.parametrize("threads", [0, -1, 100_000, 10**30])
def test_python_takes_no_absurd_number_of_threads(tmp_path: Path, threads: int) -> None:
    with pytest.raises(InputError, match=f"--threads {threads} is "):
        checked_threads(threads)
    with pytest.raises(InputError, match=f"--threads {threads} is "):
        load_encoder(tmp_path, threads=threads)
    with pytest.raises(InputError, match=f"--threads {threads} is "):
        tune_index(tmp_path, threads=threads)
    with pytest.raises(InputError, match=f"--threads {threads} is "):
        Searcher(tmp_path, encoder=EncoderOptions(threads=threads))


@pytest.mark.parametrize("options", [("--batch", "1,10000000"), ("--tokens", "9" * 5000), ("--tokens", "1000001")])
def test_bench_takes_no_absurd_batches_and_lengths(options: tuple[str, str]) -> None:
    code, output = run(("bench",), *options)
    assert code == 2
    assert "is no positive number up to 1,000,000" in " ".join(output.split())


def test_the_number_of_a_job_is_bounded(tmp_path: Path) -> None:
    code, output = run(("encode",), "--shards", "--shard", f"1/{'9' * 5000}", "-o", str(tmp_path / "v"))
    assert code == 2, output
    assert "--shard 1/8 is the first of eight jobs" in output
