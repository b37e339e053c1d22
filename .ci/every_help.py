"""Runs `ternarize … --help` for every command and group of commands, each in a process of its own."""

import subprocess
from collections.abc import Iterator

from typer.main import get_command

from ternarize_cli.cli.app import app


def paths(command: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words that lead to a command, and to each command below it."""
    yield path
    for name, inner in getattr(command, "commands", {}).items():
        yield from paths(inner, (*path, name))


found = list(paths(get_command(app)))
assert ("index", "build") in found, found
for path in found:
    words = ["ternarize", *path, "--help"]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    assert made.returncode == 0, f"{' '.join(words)}: {made.stderr}"
    assert "Usage: ternarize" in made.stdout, f"{' '.join(words)}: {made.stdout}"
print(f"--help of {len(found)} commands")
