"""Libraries that use sentence-transformers or transformers, each in programs that do not import us."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import pytest

from support.clients import PROGRAMS, answers, packages_of, texts
from ternarize_cli import load
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack

pytestmark = [pytest.mark.slow, pytest.mark.real]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, minilm: Path) -> Path:
    folder = tmp_path_factory.mktemp("minilm")
    convert(minilm, folder / "ternary")
    pack(folder / "ternary", folder / "packed")
    return folder / "packed"


@pytest.fixture(scope="module")
def expected(packed: Path) -> np.ndarray:
    """Our vector of the first text."""
    return load(packed).encode(texts())[0]


@pytest.mark.parametrize("client", PROGRAMS)
def test_a_client_gets_our_vectors_and_opens_again_what_it_stored(
    client: str, packed: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    try:
        for package in packages_of(client):
            version(package)
    except PackageNotFoundError as e:
        pytest.skip(f"the extra clients is not installed: {e}")
    made, found = answers(client, packed, tmp_path)
    # LanceDB and LlamaIndex normalise once more, and the program with transformers takes the mean in PyTorch:
    # both change last bits, of 1e-8 or less in a vector of length 1
    np.testing.assert_allclose(np.float32(made), expected, rtol=3e-7, atol=1e-8)
    assert found == texts()[0]
