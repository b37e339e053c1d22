"""The commands and the Python of README and guide run, in the order in which a page shows them.

Each page has a working folder of its own with the files that the guide speaks of: tiny encoders under the names of real
ones, texts, pictures, labels, a corpus with queries. Commands run in this process; what a block shows below a command
must be what it prints, and `echo $?` the exit code. Budgets are cut (`_quick`), nothing else is changed. A block that
needs what the tests have not (a GPU, the hub, a cluster) says so in a comment above it, and is parsed in
`test_readme`.
"""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from support.heads import save_headed
from support.heads import write_pairs as write_ranked
from support.models import WORDS, save_tiny_bert, save_tiny_vit
from support.pages import PAGES, ROOT, Block, blocks, stages
from ternarize_cli.cli.app import app

RUN_PAGES = [
    page
    for page in PAGES
    if page == ROOT / "README.md" or page.parent.name == "guide"
    if any(block.reason is None for block in blocks(page))
]
"""README, and the pages of the guide that have something to run."""
_BENCH = " --no-memory --repeats 3 --warmup 0 --seconds 0.05"
"""What `bench` gets so that it ends in a second."""
_BUDGETS = (
    ("--minutes [0-9.]+", "--minutes 0.01"),
    ("--steps [0-9]+", "--steps 3"),
    ("--epochs [0-9.]+", "--epochs 0.5"),
)
"""What `distill` and `compress` may spend on a page, and what it spends here."""
_NAMED_MODELS = (
    ("my-bert", save_tiny_bert),
    ("sentence-transformers/all-MiniLM-L6-v2", save_tiny_bert),
    ("intfloat/multilingual-e5-small", save_tiny_bert),
    ("my-vit", save_tiny_vit),
    ("my-reranker", save_headed),
)
_MADE_MODELS = {
    "my-ternary": "convert my-bert -o my-ternary",
    "my-packed": "pack my-ternary -o my-packed",
    "my-vit-ternary": "convert my-vit -o my-vit-ternary",
    "my-vit-packed": "pack my-vit-ternary -o my-vit-packed",
}
"""What earlier pages leave behind, unless a page makes it itself."""


def _texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 20))) for _ in range(count)]


def _write_texts(folder: Path) -> None:
    for i, name in enumerate(("texts.txt", "passages.txt", "en.txt", "zh.txt", "queries.txt")):
        (folder / name).write_text("\n".join(_texts(300, i)) + "\n")
    subprocess.run(["gzip", "-k", folder / "texts.txt"], check=True)
    labelled = [f"{'ab'[i % 2]}\t{text}" for i, text in enumerate(_texts(80, 7))]
    (folder / "labels.tsv").write_text("\n".join(labelled) + "\n")


def _write_pairs(folder: Path) -> None:
    """Pairs whose scores are the tiny teacher's own cosines, so that it keeps 1 and its student less."""
    from sentence_transformers import SentenceTransformer

    left, right = _texts(60, 5), _texts(60, 6)
    model = SentenceTransformer(str(folder / "my-bert"), device="cpu")
    cosines = (model.encode(left) * model.encode(right)).sum(axis=1)
    rows = [f"{a},{b},{5 * cosine:.4f}\n" for a, b, cosine in zip(left, right, cosines, strict=True)]
    for name in ("pairs.csv", "pairs-zh.csv", "pairs-en.csv"):
        (folder / name).write_text("".join(rows))


def _write_corpus(folder: Path) -> None:
    documents = [{"_id": f"d{i}", "text": text} for i, text in enumerate(_texts(200, 8))]
    queries = [{"_id": f"q{i}", "text": documents[i]["text"][:30], "relevant": [f"d{i}"]} for i in range(20)]
    new = [{"_id": f"n{i}", "text": text} for i, text in enumerate(_texts(20, 9))]
    (folder / "my-corpus").mkdir()
    for name, rows in (
        ("corpus.jsonl", documents),
        ("my-corpus/corpus.jsonl", documents),
        ("my-corpus/queries.jsonl", queries),
        ("new.jsonl", new),
    ):
        (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    (folder / "gone.txt").write_text("d3\nd4\n")


def _write_pictures(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for label in ("cats", "dogs"):
        for part in (folder / "photos", folder / "labelled-photos" / label):
            part.mkdir(parents=True, exist_ok=True)
            for i in range(24):
                pixels = draw.integers(0, 128, (10, 10, 3), dtype=np.uint8) + np.uint8(127 * (label == "cats"))
                Image.fromarray(pixels).save(part / f"{label}-{i:02}.png")
    shutil.copy(folder / "photos" / "cats-00.png", folder / "cat.png")


@pytest.fixture(scope="session")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder that each page gets a copy of."""
    folder = tmp_path_factory.mktemp("guide")
    for name, save in _NAMED_MODELS:
        save(folder / name)
    _write_texts(folder)
    _write_pairs(folder)
    write_ranked(folder / "ranked.csv")
    _write_corpus(folder)
    _write_pictures(folder)
    here = os.getcwd()
    os.chdir(folder)
    try:
        for line in _MADE_MODELS.values():
            assert CliRunner().invoke(app, shlex.split(line)).exit_code == 0
    finally:
        os.chdir(here)
    return folder


def _quick(command: str) -> str:
    """The command with a budget of a second."""
    name = command.split()[1]
    if name == "bench" and "--compare" not in command:
        command += " --repeats 1" if "--text" in command else _BENCH
        command += "" if "--tokens" in command or "--text" in command or "my-vit" in command else " --tokens 8"
    elif name in ("distill", "compress"):
        for budget, small in _BUDGETS:
            command = re.sub(budget, small, command)
    return command


class Shell:
    """Runs lines of a page, those of ternarize in this process, and remembers the last exit code."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.code: int = 0
        self._patch = patch

    def run(self, line: str) -> str:
        """What the line prints on stdout and stderr together."""
        said = ""
        for pipeline in re.split(r"\s&&\s|;\s", line):
            flowing = b""
            for stage in stages(pipeline):
                flowing, told = self._stage(stage, flowing)
                said += told
            said += flowing.decode()
        return said

    def _stage(self, stage: str, stdin: bytes) -> tuple[bytes, str]:
        if stage == "echo $?":
            return f"{self.code}\n".encode(), ""
        variables = re.match(r"(\w+=\S+ )*", stage)
        assert variables
        command, _, target = stage[variables.end() :].partition(" > ")
        with self._patch.context() as patch:
            for assignment in variables[0].split():
                patch.setenv(*assignment.split("=", 1))
            out, told = self._call(command, stdin)
        if target:
            Path(target.strip()).write_bytes(out)
            return b"", told
        return out, told

    def _call(self, command: str, stdin: bytes) -> tuple[bytes, str]:
        if not command.startswith("ternarize "):
            done = subprocess.run(["bash", "-c", command], input=stdin, capture_output=True, check=False)
            self.code = done.returncode
            return done.stdout, done.stderr.decode()
        result: Any = CliRunner().invoke(app, shlex.split(_quick(command))[1:], input=stdin)
        self.code = result.exit_code
        return result.stdout_bytes, result.stderr


def _plain(text: str) -> str:
    return " ".join(text.split())


def _steps(block: Block) -> list[tuple[str, list[str]]]:
    """Each line that a user types, with the lines that the page shows below it."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ ").split(" #")[0].strip(), []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def _run_block(block: Block, shell: Shell) -> None:
    steps = _steps(block)
    for i, (line, expected) in enumerate(steps):
        said = shell.run(line)
        asked = "echo $?" in (line, *(following for following, _ in steps[i + 1 : i + 2]))
        assert asked or shell.code == 0, f"{line}\n{said}"
        for wanted in expected:
            for piece in wanted.split("…"):
                assert _plain(piece) in _plain(said), f"{line}\nshould say: {piece}\nsays: {said}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if page.name == "README.md" else pytest.mark.slow, id=str(page.relative_to(ROOT)))
        for page in RUN_PAGES
    ],
)
def test_the_commands_of_a_page_run(
    page: Path, furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name == "troubleshooting.md" and torch.cuda.is_available():
        pytest.skip("the page shows what a machine without a GPU says")
    running = [block for block in blocks(page) if block.reason is None]
    text = "\n".join(block.text for block in running)
    folder = tmp_path / "work"
    shutil.copytree(furnished, folder)
    for name in _MADE_MODELS:
        first = re.search(rf"(-o )?(?<![\w/-]){name}(?![\w-])", text)
        if first and first[1]:
            shutil.rmtree(folder / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERNARIZE_THREADS", "1")
    shell = Shell(monkeypatch)
    for block in running:
        if block.language == "python":
            exec(compile(block.text, str(page), "exec"), {"__name__": "page"})
        else:
            _run_block(block, shell)


def test_every_command_is_run_by_some_page() -> None:
    run = {
        stage.split()[1]
        for page in RUN_PAGES
        for block in blocks(page)
        if block.language == "console" and block.reason is None
        for line, _ in _steps(block)
        for stage in stages(line)
        if stage.startswith("ternarize ")
    }
    assert run >= {
        "compress",
        "publish",
        "convert",
        "distill",
        "pack",
        "bench",
        "eval",
        "encode",
        "index",
        "inspect",
        "doctor",
    }
