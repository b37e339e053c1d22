"""Writes `docs/reference/commands.md` from the command line itself: every command with its arguments and options.

    python docs/reference/write_commands.py

`tests/docs/test_docs_reference.py` fails while the page is not what this script would write.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from ternarize_cli.cli.app import app

PAGE = Path(__file__).parent / "commands.md"
_HEAD = """# Commands

Every command with its arguments and options, written by `docs/reference/write_commands.py`; change the code, not this
page. `ternarize COMMAND --help` prints the same.

`MODEL` is a folder, a hub id, or `package:NAME` for a checkpoint that an installed Python package carries. Every option
can also be set in the environment (`TERNARIZE_CONVERT_RULE=absmean`) or in `ternarize.toml`; see
[the guide](../guide/scripts.md). Exit codes are on [a page of their own](exit-codes.md).
"""

_WORDS = {"str": "NAME", "int": "N", "float": "NUMBER", "Path": "PATH"}
"""What a value is called that the command itself does not name."""


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, with the words that name it, in the order of `--help`."""
    for name, inner in command.commands.items():
        if hasattr(inner, "commands"):
            yield from commands(inner, (*path, name))
        else:
            yield " ".join((*path, name)), inner


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(parameter: Any) -> str:
    """What a value looks like: the metavar if the command names one, else the type's name; nothing for a flag."""
    if getattr(parameter, "is_flag", False):
        return ""
    annotation = parameter.type_descriptor.annotation
    if get_origin(annotation) is Literal:
        return f"`{_one_line('|'.join(map(str, get_args(annotation))))}`"
    name = getattr(annotation, "__name__", "")
    return f"`{_one_line(parameter.metavar or _WORDS.get(name, 'VALUE'))}`"


def _default(parameter: Any) -> str:
    """The default as `--help` shows it; nothing for flags that are off and for options without one."""
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value is False or callable(value) or value == () or value == []:
        return ""
    if value is True:
        return f"`{parameter.opts[0]}`"
    return f"`{value}`"


def _row(parameter: Any) -> str:
    """A line of a command's table: names, form of the value, default, meaning."""
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    value = _type(parameter)
    if parameter.param_type_name == "argument":
        names, value = f"`{_one_line(parameter.metavar or parameter.name.upper())}`", ""
    return f"| {names} | {value} | {_default(parameter)} | {_one_line(parameter.help or '')} |"


def _section(name: str, command: Any) -> str:
    rows = [_row(p) for p in command.params if p.name != "help" and not getattr(p, "hidden", False)]
    paragraphs = [" ".join(part.split()) for part in (command.help or "").split("\n\n")]
    table = "\n".join(["| option | value | default | what it does |", "|---|---|---|---|", *rows])
    return f"## {name}\n\n" + "\n\n".join([*paragraphs, table])


def text() -> str:
    """The page."""
    found = list(commands(get_command(app)))
    contents = "\n".join(f"- [{name}](#{name.replace(' ', '-')}): {_summary(command)}" for name, command in found)
    sections = "\n\n".join(_section(name, command) for name, command in found)
    return f"{_HEAD}\n{contents}\n\n{sections}\n"


def _summary(command: Any) -> str:
    return " ".join((command.help or "").split("\n\n")[0].split()).split(". ")[0].rstrip(".")


if __name__ == "__main__":
    PAGE.write_text(text(), encoding="utf-8")
