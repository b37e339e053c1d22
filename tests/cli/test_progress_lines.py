"""Progress where stderr is no terminal: a line now and then, as in the log of a server."""

import pytest

from ternarize_cli.cli import output
from ternarize_cli.cli.output import Output


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(output, "_SECONDS_BETWEEN_LINES", 0)
    assert list(Output(json_mode=False).track("abc", "ternarising")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == [f"ternarising: {done} of 3" for done in range(3)]
    assert list(Output(json_mode=False).track(iter("ab"), "reading")) == ["a", "b"]
    assert capsys.readouterr().err.splitlines() == ["reading: 0", "reading: 1"]


def test_quiet_and_quick_commands_print_no_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(Output(json_mode=False).track("abc", "ternarising")) == ["a", "b", "c"]
    assert list(Output(json_mode=False, quiet=True).track("abc", "ternarising")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")
