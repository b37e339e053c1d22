"""Fixtures for tests of exports: packed models."""

from pathlib import Path

import pytest

from support.families import stages
from support.models import add_dense, save_tiny_bert


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
