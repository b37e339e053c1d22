"""Fixtures for tests of exports: packed models, and what is exported of them."""

from pathlib import Path

import pytest

from support.families import stages
from support.models import add_dense, save_tiny_bert
from support.wheels import site_of, wheel_of
from ternarize_cli.export import check
from ternarize_cli.export.session import export


@pytest.fixture(scope="session")
def packed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed tiny BERT; tests must not write into it."""
    return stages(tiny_bert, tmp_path_factory.mktemp("packed"))[2]


@pytest.fixture(scope="session")
def with_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed tiny BERT with a module Dense that has a tanh."""
    folder = tmp_path_factory.mktemp("dense")
    source = save_tiny_bert(folder / "source")
    add_dense(source)
    return stages(source, folder)[2]


@pytest.fixture(scope="session")
def c_folder(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `ternarize export --to c` writes of the tiny BERT; tests must not write into it."""
    made = tmp_path_factory.mktemp("c") / "made"
    export(packed, made, to="c")
    return made


@pytest.fixture(scope="session")
def wheel(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the tiny BERT."""
    return wheel_of(packed, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's files, NumPy and tokenizers; tests must not write into it."""
    return site_of(wheel, tmp_path_factory.mktemp("site"))


@pytest.fixture
def without_rival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the check of an export time no int8 beside it, which takes seconds to make: every model is too large."""
    monkeypatch.setattr(check, "_LARGEST", 0)
