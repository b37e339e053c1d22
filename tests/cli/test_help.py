"""The help of commands, completion, variables that nothing reads, and NO_COLOR."""

import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from support.families import stages
from support.pages import ROOT, script
from ternarize_cli.cli.app import app
from ternarize_cli.cli.help import EXAMPLES

WRITER = script(ROOT / "docs" / "reference" / "write_commands.py")
COMMANDS = dict(WRITER.commands(get_command(app)))


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_groups_and_two_examples_that_parse(name: str, run: Any) -> None:
    text = run(*name.split(), "--help").stdout
    assert "\nOutput:\n" in text
    assert text.count("--help ") == 1
    assert len(EXAMPLES[name]) == 2
    for line in EXAMPLES[name]:
        assert f"\n  {line}\n" in text
        words = shlex.split(re.sub(r"\s>.*$", "", line.rpartition("| ")[2]))
        assert words[: len(name.split()) + 1] == ["ternarize", *name.split()]
        COMMANDS[name].make_context(name, words[len(name.split()) + 1 :])


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "offered"), [("ternarize conv", "convert"), ("ternarize index bu", "build")])
def test_the_shell_completes_commands(typed: str, offered: str) -> None:
    place = str(len(typed.split()) - 1)
    asked = {"_TERNARIZE_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": place}
    command = [sys.executable, "-P", "-m", "ternarize_cli"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | asked)
    assert done.stdout.split() == [offered], done.stderr


def test_no_variable_installs_completion(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_INSTALL_COMPLETION", "1")
    assert "bash" not in run("doctor").stdout


def test_a_variable_that_nothing_reads_is_said(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERNARIZE_CONVRT_RULE", "absmean")
    monkeypatch.setenv("TERNARIZE_XYZ", "1")
    for known in ("TERNARIZE_ENCODE_FORCE", "TERNARIZE_INDEX_BUILD_FACTORY", "TERNARIZE_NO_HOOK"):
        monkeypatch.setenv(known, "1")
    said = [line for line in run("doctor").stderr.splitlines() if "nothing reads" in line]
    assert said == [
        "note: nothing reads the variable TERNARIZE_CONVRT_RULE; do you mean TERNARIZE_CONVERT_RULE?",
        "note: nothing reads the variable TERNARIZE_XYZ",
    ]


@pytest.mark.slow
def test_no_color_means_no_escapes_on_a_terminal(tiny_bert: Path, tmp_path: Path) -> None:
    packed = stages(tiny_bert, tmp_path)[2]

    def on_a_terminal(**environment: str) -> bytes:
        ours, theirs = pty.openpty()
        command = [sys.executable, "-P", "-m", "ternarize_cli", "inspect", str(packed)]
        subprocess.run(command, stdout=theirs, stderr=theirs, env=os.environ | environment, check=True)
        os.close(theirs)
        printed = b""
        try:
            while piece := os.read(ours, 65536):
                printed += piece
        except OSError:  # the end of a terminal
            pass
        os.close(ours)
        return printed

    assert b"\x1b" in on_a_terminal(TERM="xterm", NO_COLOR="")
    assert b"\x1b" not in on_a_terminal(TERM="xterm", NO_COLOR="1")
