"""kill -9 at any moment: nothing under the final name but a whole output, and the old one survives.

TERNARIZE_KILLS=20 kills each command that writes 20 times instead of once.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.models import WORDS, save_tiny_bert
from support.warm import Program, shared
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import checkpoint
from ternarize_cli.export import formats
from ternarize_cli.index.build import IndexOptions, build_index
from ternarize_cli.storage import digests, files

pytestmark = pytest.mark.slow


def start(*arguments: object) -> Program:
    return shared().start(*arguments, output=subprocess.DEVNULL)


def kill_when(process: Program, folder: Path, timeout: float = 90) -> bool:
    """Kills the process as soon as something is written below `folder`; False if it ended before."""
    deadline = time.monotonic() + timeout
    while process.poll() is None and time.monotonic() < deadline:
        if folder.is_dir() and any(folder.iterdir()):
            break
        time.sleep(0.001)
    alive = process.poll() is None
    process.kill()
    process.wait()
    return alive


@pytest.fixture(scope="module")
def big_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough that writing it takes a while: 4 layers of width 256."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024}
    return save_tiny_bert(tmp_path_factory.mktemp("kills") / "big", **sizes)


@pytest.fixture(scope="module")
def big_ternary(big_bert: Path) -> Path:
    convert(big_bert, big_bert.parent / "big-ternary")
    return big_bert.parent / "big-ternary"


@pytest.mark.parametrize("work", ["convert", "calibrate", "pack"])
def test_a_killed_command_leaves_no_half_output(big_bert: Path, big_ternary: Path, tmp_path: Path, work: str) -> None:
    texts, out = big_bert.parent / "texts.txt", tmp_path / "out"
    texts.write_text("\n".join(f"{a} {b}" for a in WORDS[:20] for b in WORDS[:20]))
    skip = ("encoder.layer.[1-3].*", "*.dense", "*.key", "*.value")
    few = ("--calibration-tokens", 1000, *(part for pattern in skip for part in ("--skip", pattern)))
    command = {
        "convert": ("convert", big_bert),
        "calibrate": ("convert", big_bert, "--calibrate", texts, *few),
        "pack": ("pack", big_ternary),
    }[work]
    assert kill_when(start(*command, "-o", out), files.partial_path(out)), "it ended before it was killed"
    assert not out.exists()
    assert start(*command, "-o", out).wait() == 0
    assert checkpoint.validate(out) is not None
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture(scope="module")
def big_packed(big_ternary: Path) -> Path:
    pack(big_ternary, big_ternary.parent / "big-packed")
    return big_ternary.parent / "big-packed"


@pytest.mark.parametrize("to", list(formats._MODULES))
def test_a_killed_export_leaves_nothing_under_its_name(big_packed: Path, tmp_path: Path, to: str) -> None:
    needed = {"onnx": "onnxscript", "openvino": "openvino", "gguf": "gguf", "compressed-tensors": "compressed_tensors"}
    if to in needed:
        pytest.importorskip(needed[to])
    out = tmp_path / "out"
    command = ("export", big_packed, "--to", to, "-o", out, *(() if to in ("wheel", "c") else ("--no-check",)))
    written = out if to == "wheel" else files.partial_path(out)  # a wheel is a file in the folder
    assert kill_when(start(*command), written), "it ended before it was killed"
    assert not list(out.glob("*.whl")) if to == "wheel" else not out.exists()
    assert start(*command).wait() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert [p.name for p in out.rglob("*.partial")] == []


def test_a_killed_replacement_keeps_the_old_output(big_bert: Path, big_ternary: Path, tmp_path: Path) -> None:
    out = shutil.copytree(big_ternary, tmp_path / "out")
    before = digests.content_hash(out)
    process = start("convert", big_bert, "-o", out, "--rule", "absmean", "--force")
    assert kill_when(process, files.partial_path(out)), "it ended before it was killed"
    assert digests.content_hash(out) == before


def test_a_killed_distillation_leaves_no_half_output(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    (tmp_path / "texts.txt").write_text("\n".join(f"{a} {b}" for a in WORDS[:20] for b in WORDS[:20]))
    out = tmp_path / "out"
    arguments = ("--teacher", tiny_bert, "--data", tmp_path / "texts.txt", "--minutes", 5, "-o", out)
    process = start("distill", tmp_path / "latent", *arguments)
    deadline = time.monotonic() + 90
    while not files.partial_path(out).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    assert process.poll() is None, "it ended before it was killed"
    process.kill()
    process.wait()
    assert not out.exists()


@pytest.fixture
def prepared(tiny_bert: Path, tmp_path: Path, run: Callable[..., Any]) -> Path:
    """A model, texts, and an index with deleted documents, for `killing`."""
    folder = tmp_path / "prepared"
    shutil.copytree(tiny_bert, folder / "m")
    convert(folder / "m", folder / "latent")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=8)) for _ in range(300)]
    (folder / "texts.txt").write_text("\n".join(texts))
    (folder / "sts.csv").write_text(
        "\n".join(f"{a},{b},{len(a) % 6}" for a, b in zip(texts[:40], texts[40:80], strict=True))
    )
    (folder / "docs.jsonl").write_text("\n".join(json.dumps({"id": f"d{i}", "text": t}) for i, t in enumerate(texts)))
    (folder / "more.jsonl").write_text(
        "\n".join(json.dumps({"id": f"d{i * 7}", "text": t}) for i, t in enumerate(texts))
    )
    build_index(
        str(folder / "docs.jsonl"), folder / "ix", model=str(folder / "m"), options=IndexOptions(factory="flat")
    )
    assert run("index", "delete", folder / "ix", "d3", "d4").exit_code == 0
    return folder


@pytest.mark.nightly
def test_commands_killed_at_random_leave_whole_outputs_and_the_next_run_nothing_else(prepared: Path) -> None:
    kills = int(os.environ.get("TERNARIZE_KILLS", "1"))
    script = Path(__file__).parents[1] / "support" / "killing.py"
    done = subprocess.run(
        [sys.executable, str(script), str(prepared.parent), str(kills), "1"],
        capture_output=True,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {name: faults for name, trial in found.items() if (faults := trial["faults"])} == {}
    assert sum(trial["alive"] for trial in found.values()) > len(found) * kills / 3
