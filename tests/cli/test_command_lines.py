"""Command lines that nobody would type: no traceback, a designed exit code, and with --json nothing else on stdout.

A small run is part of the tests; TERNARIZE_FUZZ=10000 pytest tests/cli/test_command_lines.py makes it a long one.
"""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from support.models import WORDS, save_tiny_bert
from ternarize_cli.cli.app import app
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.index.build import IndexOptions, build_index

pytestmark = pytest.mark.slow

COUNT = int(os.environ.get("TERNARIZE_FUZZ", "200"))
SEED = os.environ.get("TERNARIZE_FUZZ_SEED", "0")
_CODES = {0, 1, 2, 3, 4}
_TEXTS = (
    *("", "x", "-1", "0", "1", "3", "1e9", "99999999999999999999", "nan", "inf", "1.5", "a,b", "1,2", ",", "group:0"),
    *("group:64", "../..", "/", "/dev/null", "/dev/full", "nothing/here", "\udcff\udcfe", "😀", "cpu", "cuda:9", "ip"),
    *("int4", "row", "tensor", "optimal", "auto", "native", "reference", "Flat", "IVF0,Flat", "HNSW999999", "--", "-"),
)
_MODELS = ("full", "latent", "packed")
_USUAL = {
    **dict.fromkeys(("model", "student", "teacher", "against", "candidate"), _MODELS),
    **dict.fromkeys(("source", "corpus", "calibrate", "trim_vocabulary", "data", "text", "lengths"), ("texts.txt",)),
    "index": ("ix",),
    "sts": ("pairs.csv",),
    "query": ("the cat",),
    "backend": ("native", "reference", "onednn", "auto"),
    "rule": ("optimal", "absmean"),
    "levels": ("ternary", "int4", "binary"),
    "format": ("npy", "jsonl", "parquet"),
    "output": ("out", "out.npy", "other"),
}
"""Values of options and arguments with which a command can begin to work."""
_SLOW = {"demo": 1.0, "serve": 1.0, "distill": 0.9, "bench": 0.9, "eval": 0.7}
"""The share of command lines of these commands that ask for help or are refused: others take minutes, or never end."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a model of every stage, texts, an index, and files that are none of these."""
    where = tmp_path_factory.mktemp("lines")
    save_tiny_bert(where / "full")
    convert(where / "full", where / "latent")
    pack(where / "latent", where / "packed")
    (where / "texts.txt").write_text("\n".join(WORDS[:20]))
    (where / "pairs.csv").write_text("cat,dog,1\nhouse,tree,2\nred,green,3\n")
    (where / "noise").write_bytes(random.Random(0).randbytes(500))
    build_index(str(where / "texts.txt"), where / "ix", model=str(where / "packed"), options=IndexOptions())
    return where


def commands(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every command, with the words that name it."""
    if hasattr(command, "commands"):
        return [one for name, inner in command.commands.items() for one in commands(inner, (*path, name))]
    return [(path, command)]


def words_of(command: Any, draw: random.Random) -> list[str]:
    """Options and arguments of a command, most of them of the kind that it takes."""
    needed = [p for p in command.params if p.param_type_name == "option" and p.name in ("output", "model")]
    options = [p for p in command.params if p.param_type_name == "option" and p.name not in ("help", "version")]
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    found = [value(p, draw) for p in arguments if draw.random() < 0.9]
    for option in [
        *draw.sample(options, min(len(options), draw.choice((0, 1, 1, 2, 3, 5)))),
        *needed[: draw.choice((0, 2))],
    ]:
        found.append(draw.choice(option.opts + option.secondary_opts))
        if not option.is_flag and draw.random() < 0.95:
            found.append(value(option, draw))
    if draw.random() < 0.1:
        found.insert(draw.randrange(len(found) + 1), draw.choice(("--nonsense", "-z", *_TEXTS)))
    return found


def value(parameter: Any, draw: random.Random) -> str:
    """A value for an option or argument."""
    if draw.random() < 0.25:
        return draw.choice(_TEXTS)
    kind = str(parameter.type_descriptor.annotation)
    if "int" in kind:
        return str(draw.choice((-1, 0, 1, 2, 7, 64, 1000, 10**6, 10**12)))
    if "float" in kind:
        return str(draw.choice((-1, 0, 0.01, 0.5, 1, 2, 1e30, "nan")))
    if parameter.name in _USUAL and draw.random() < 0.85:
        return draw.choice(_USUAL[parameter.name])
    return draw.choice(("full", "latent", "packed", "texts.txt", "pairs.csv", "ix", "noise", ".", "out", "the cat"))


def test_no_command_line_ends_in_a_traceback(
    place: Path, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    known, found = commands(get_command(app)), []
    for number in range(COUNT):
        draw = random.Random(f"{SEED}/{number}")
        path, command = draw.choice(known)
        words = words_of(command, draw)
        if draw.random() < _SLOW.get(path[0], 0):
            words = draw.choice((["--help"], ["--nonsense", *words[:1]]))  # in front, so that it is no value
        takes_json = any("--json" in p.opts for p in command.params)
        if takes_json and draw.random() < 0.5:
            words.insert(0, "--json")  # in front, so that it is no value of another option
        said = run(*path, *words, input="the cat\na dog\n")
        if wrong := fault(said, as_json=words[:1] == ["--json"] and "--help" not in words):
            found.append(f"{number}: {' '.join([*path, *words])!r}: {wrong}")
    assert not found, "\n".join(found)


def fault(said: Any, *, as_json: bool) -> str | None:
    """What is wrong with how a command line ended; None if nothing is."""
    if said.exit_code not in _CODES or not isinstance(said.exception, SystemExit | None):
        return f"exit {said.exit_code}, {said.exception!r}"
    if "Traceback" in said.stderr or "error: unexpected" in said.stderr:
        return str(said.stderr)
    if said.exit_code and not said.stderr.strip():
        return f"exit {said.exit_code} without a word"
    if as_json and said.stdout:
        try:
            json.loads(said.stdout)
        except ValueError:
            return f"no JSON on stdout: {said.stdout[:200]!r}"
    return None
