"""Files that somebody else wrote are read within bounds."""

import io
import os
from pathlib import Path

import pytest

from ternarize_cli.errors import CheckpointError, DataError
from ternarize_cli.storage import bounds


@pytest.mark.parametrize("text", ["[" * 200_000, "[" * 65 + "]" * 65, '{"a": ' * 65 + "1" + "}" * 65])
def test_deep_json_is_refused(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"nested more than 64 levels|not valid JSON"):
        bounds.parse_json(text, "config.json")


def test_json_of_the_greatest_depth_is_read() -> None:
    assert bounds.parse_json("[" * 64 + "]" * 64, "config.json") is not None


@pytest.mark.parametrize("text", [b"\xff{}", "{", "1" * 5000, ""])
def test_what_is_no_json_is_an_error_that_names_the_file(text: str | bytes) -> None:
    with pytest.raises(DataError, match=r"^here is not valid JSON"):
        bounds.parse_json(text, "here", error=DataError)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match=r"config\.json is a pipe"):
        bounds.read_json(tmp_path / "config.json")


def test_a_device_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is a device"):
        bounds.read_bytes(Path("/dev/zero"))


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="is larger than"):
        bounds.read_json(tmp_path / "config.json")


def test_lines_come_as_they_are() -> None:
    assert list(bounds.lines_of(io.BytesIO(b"a\n\nb"), "x", DataError)) == [b"a\n", b"\n", b"b"]


def test_an_endless_line_is_refused() -> None:
    with Path("/dev/zero").open("rb") as stream, pytest.raises(DataError, match="stdin line 1 is longer than"):
        next(bounds.lines_of(stream, "stdin", DataError))
