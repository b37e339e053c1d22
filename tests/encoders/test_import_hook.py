"""Models of ours in programs that do not import us, each in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from support.models import save_tiny_bert, save_tiny_vit
from support.warm import shared
from ternarize_cli import __version__
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.kernels import describe

pytestmark = pytest.mark.slow

TEXTS = ["the cat", "a house by the river", "fire", "the the the the the the the"]
ENCODE = f"""
import sys
from sentence_transformers import SentenceTransformer
import numpy
model = SentenceTransformer(sys.argv[1], device="cpu")
for size in (1, 3):
    numpy.save(f"{{sys.argv[2]}}-{{size}}.npy", model.encode({TEXTS!r}, batch_size=size))
print(type(model[0].auto_model.forward).__name__)
"""


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ternary checkpoints and packed models of a tiny BERT and a tiny ViT."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name, save in (("bert", save_tiny_bert), ("vit", save_tiny_vit)):
        save(folder / name)
        convert(folder / name, folder / f"{name}-ternary")
        pack(folder / f"{name}-ternary", folder / f"{name}-packed")
    return folder


def python(program: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=os.environ | environment
    )


def warm(program: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs a program in a process that has imported torch and sentence-transformers, and so waits for our models."""
    return shared().run(*arguments, program=program, env=os.environ | environment)  # type: ignore[no-any-return]


def test_torch_imports_nothing_of_ours_but_the_hook() -> None:
    made = python("import torch, sys; print(sorted(m for m in sys.modules if m.startswith('ternarize_cli')))")
    assert made.stdout.strip() == "['ternarize_cli', 'ternarize_cli.encoders', 'ternarize_cli.encoders.import_hook']"


def test_sentence_transformers_gives_the_bits_of_the_command_line(artifacts: Path, tmp_path: Path) -> None:
    made = warm(ENCODE, artifacts / "bert-packed", tmp_path / "v")
    assert made.returncode == 0, made.stderr
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    assert shared().run("encode", artifacts / "bert-packed", "texts.txt", "-o", "w.npy", cwd=tmp_path).returncode == 0
    for size in (1, 3):
        assert np.array_equal(np.load(tmp_path / f"v-{size}.npy"), np.load(tmp_path / "w.npy"))
    is_native = any(b.name == "native" and b.available for b in describe())
    assert made.stdout.split()[-1] == ("NativeForward" if is_native else "method")


@pytest.mark.parametrize("first", ["transformers", "transformers.quantizers.auto", "torch", "sentence_transformers"])
def test_whatever_is_imported_first_our_models_load(artifacts: Path, first: str) -> None:
    program = (
        f"import sys, {first}\nfrom transformers import AutoModel\n"
        "for folder in sys.argv[1:]:\n"
        "    print(sorted({type(m).__name__ for m in AutoModel.from_pretrained(folder).modules()}))"
    )
    made = python(program, artifacts / "bert-packed", artifacts / "bert-ternary", artifacts / "vit-packed")
    assert made.returncode == 0, made.stderr
    packed, ternary, vit = made.stdout.strip().split("\n")[-3:]
    assert "PackedLinear" in packed
    assert "TernaryLinear" in ternary
    assert "PackedLinear" in vit


def test_the_environment_names_another_backend(artifacts: Path, tmp_path: Path) -> None:
    made = warm(ENCODE, artifacts / "bert-packed", tmp_path / "v", TERNARIZE_BACKEND="reference")
    assert made.stdout.split()[-1] == "method", made.stderr
    made = warm(ENCODE, artifacts / "bert-packed", tmp_path / "v", TERNARIZE_BACKEND="nonsense")
    assert "there is no backend 'nonsense'" in made.stderr


def test_hidden_states_come_from_the_modules(artifacts: Path) -> None:
    program = (
        "import sys, json, torch\nfrom transformers import AutoModel\n"
        "model = AutoModel.from_pretrained(sys.argv[1]).eval()\n"
        "ids = torch.tensor([[5, 6, 7, 8]])\n"
        "with torch.no_grad(): given = model(input_ids=ids, output_hidden_states=True)\n"
        "same = (given.hidden_states[-1] == given.last_hidden_state).all().item()\n"
        "print(json.dumps([len(given.hidden_states), same]))"
    )
    made = warm(program, artifacts / "bert-packed")
    assert json.loads(made.stdout.strip().split("\n")[-1]) == [3, True], made.stderr


def test_without_the_hook_a_packed_model_is_refused(artifacts: Path) -> None:
    program = "import sys\nfrom transformers import AutoModel\nAutoModel.from_pretrained(sys.argv[1])"
    for switch in ("TERNARIZE_NO_HOOK", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        made = python(program, artifacts / "bert-packed", **{switch: "1" if switch == "TERNARIZE_NO_HOOK" else "0"})
        assert made.returncode == 1
        assert "ignore_mismatched_sizes" in made.stderr


def test_a_model_that_is_saved_again_keeps_its_requirement_of_us(artifacts: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom sentence_transformers import SentenceTransformer\n"
        "SentenceTransformer(sys.argv[1], device='cpu').save_pretrained(sys.argv[2])"
    )
    made = warm(program, artifacts / "bert-packed", tmp_path / "again")
    settings = json.loads((tmp_path / "again" / "config_sentence_transformers.json").read_text())
    assert settings["requirements"] == {"ternarize-cli": {"specifier": f">={__version__}"}}, made.stderr
