"""Commands in hints can be pasted into a shell, whatever the names of the folders in them."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import Result

from ternarize_cli.errors import quoted


def _hinted(result: Result, code: int) -> list[str]:
    """The words of the command in the hint of a result."""
    assert result.exit_code == code, result.output
    found = re.search(r"(?:hint|try): (ternarize .*)", result.stderr)
    assert found is not None, result.stderr
    return shlex.split(found[1])


def test_commands_in_hints_quote_paths_with_blanks(run, tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    ternary, packed, shards, index = (str(folder / name) for name in ("ternary", "packed", "shards", "index"))
    assert _hinted(run("convert", tiny_bert, "-o", ternary), 0)[:3] == ["ternarize", "distill", ternary]
    assert _hinted(run("pack", ternary, "-o", packed), 0)[:2] == ["ternarize", "bench"]
    assert _hinted(run("pack", packed, "-o", folder / "x"), 2) == ["ternarize", "inspect", packed]
    assert _hinted(run("pack", tiny_bert, "-o", folder / "x"), 2) == ["ternarize", "convert", str(tiny_bert)]
    assert _hinted(run("encode", packed, corpus, "--shards", "-o", shards), 0)[3] == shards
    assert _hinted(run("index", "build", shards, "-o", index), 0)[:4] == ["ternarize", "index", "search", index]
    assert _hinted(run("index", "search", index), 2)[3] == index


def test_the_hint_of_a_packed_image_encoder_names_pictures(run, tiny_vit: Path, tmp_path: Path) -> None:
    assert run("convert", tiny_vit, "-o", tmp_path / "ternary").exit_code == 0
    assert _hinted(run("pack", tmp_path / "ternary", "-o", tmp_path / "packed"), 0)[-1] == "PICTURES"


@pytest.mark.parametrize(
    ("path", "shown"), [("a/b.txt", "a/b.txt"), ("a b", "'a b'"), ("$(x)", "'$(x)'"), ("it's", "'it'\"'\"'s'")]
)
def test_a_path_is_quoted_only_where_the_shell_needs_it(path: str, shown: str) -> None:
    assert quoted(Path(path)) == shown
