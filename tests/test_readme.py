"""The README's commands exist, with the options it uses."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from ternarize_cli.cli.app import app

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(?:console|bash|sh)\n(.*?)```", README, re.S)
LINES = [
    line.strip().removeprefix("$ ").split(" #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
]
COMMANDS = sorted(
    {part.strip() for line in LINES for part in re.split(r"&&|\||;", line) if part.strip().startswith("ternarize ")}
)


def test_the_readme_shows_every_stage() -> None:
    assert {c.split()[1] for c in COMMANDS} >= {
        "convert",
        "distill",
        "pack",
        "bench",
        "eval",
        "index",
        "encode",
        "demo",
    }


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_readme_parses(line: str) -> None:
    words = shlex.split(re.sub(r">.*$", "", line))[1:]
    command: Any = get_command(app)
    context = None
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{words[0]} is no command"
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(line, words)
    assert context.args == []
