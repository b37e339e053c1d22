"""Files for wheels: all that is imported, nothing else, and nothing that can't be carried."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from ternarize_cli import __version__
from ternarize_cli.errors import TernarizeError
from ternarize_cli.export import vendoring
from ternarize_cli.export.vendoring import vendored

ALLOWED = frozenset({"numpy", "tokenizers", "PIL"})


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose Python files are modules of ternarize_cli."""
    import ternarize_cli

    monkeypatch.setattr(ternarize_cli, "__path__", [*ternarize_cli.__path__, str(tmp_path)])
    return tmp_path


def test_imports_are_followed_into_functions_and_packages() -> None:
    made = vendored(["ternarize_cli.runtime.encoder"], "mine._runtime", ALLOWED)
    assert {
        "runtime/native/processors.py",
        "runtime/__init__.py",
        "storage/bounds.py",
        "errors.py",
    } <= made.files.keys()
    assert not [path for path in made.files if path.startswith(("kernels/", "encoders/", "cli/"))]
    assert made.imports <= ALLOWED
    assert "numpy" in made.imports


def test_every_import_of_ternarize_is_rewritten_and_nothing_else() -> None:
    made = vendored(["ternarize_cli.runtime.encoder"], "mine._runtime", ALLOWED)
    for path, content in made.files.items():
        if path == "__init__.py":
            continue
        before = ast.parse((Path(vendoring.__file__).parents[1] / path).read_text(encoding="utf-8"))
        for node in ast.walk(before):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("ternarize_cli"):
                node.module = node.module.replace("ternarize_cli", "mine._runtime", 1)
        assert ast.dump(ast.parse(content)) == ast.dump(before), path


def test_the_package_itself_is_replaced_by_its_version(tmp_path: Path) -> None:
    made = vendored(["ternarize_cli.errors"], "mine", frozenset())
    assert list(made.files) == ["__init__.py", "errors.py"]
    for path, content in made.files.items():
        (tmp_path / "mine" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / path).write_bytes(content)
    code = "import mine, mine.errors; print(mine.__version__)"
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(tmp_path)},
    )
    assert ran.stdout == f"{__version__}\n"


@pytest.mark.parametrize(
    "line",
    [
        "import torch",
        "from transformers import AutoModel",
        "def f() -> None:\n    import psutil",
        "from safetensors.numpy import load",
        "from . import errors",
        "import ternarize_cli.errors",
        "from ternarize_cli.encoders.loading import load",
    ],
)
def test_what_can_not_be_carried_is_refused(line: str, modules: Path) -> None:
    (modules / "fresh.py").write_text(line + "\n")
    with pytest.raises(TernarizeError):
        vendored(["ternarize_cli.fresh"], "mine", ALLOWED)


def test_what_never_runs_is_not_followed(modules: Path) -> None:
    (modules / "fresh.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import torch\nelse:\n    from ternarize_cli import errors\n"
        "try:\n    import resource\nexcept ImportError:\n    import psutil\n"
    )
    made = vendored(["ternarize_cli.fresh"], "mine", ALLOWED)
    assert list(made.files) == ["__init__.py", "errors.py", "fresh.py"]
    assert b"    from mine import errors\n" in made.files["fresh.py"]
