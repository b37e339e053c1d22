"""The pages of README and docs, and the commands that they show."""

import importlib.util
import re
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]


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


def stages(line: str) -> list[str]:
    """The commands of a line: what stands between `&&`, `;` and pipes that have spaces around them."""
    return [part.strip() for part in re.split(r"\s(?:&&|\|)\s|;\s", line)]


def script(path: Path) -> Any:
    """The module that a script in docs is."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
