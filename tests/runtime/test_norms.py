"""Norms of rows on every instruction set, against NumPy in float64."""

from collections.abc import Callable

import numpy as np
import pytest

from support.instruction_sets import needs_library
from ternarize_cli.errors import FormatError
from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.native.weights import NormWeights

pytestmark = needs_library
EPS = 1e-5


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def exact(kind: str, x: np.ndarray, gain: np.ndarray, bias: np.ndarray) -> np.ndarray:
    wide = x.astype(np.float64)
    if kind == "rms":
        return wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * gain
    return (wide - wide.mean(axis=1, keepdims=True)) / np.sqrt(wide.var(axis=1, keepdims=True) + EPS) * gain + bias


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (5, 33), (2, 384), (70, 769), (0, 8)])
def test_norms_are_those_of_their_formulas(lib: Library, kind: str, rows: int, width: int) -> None:
    x, gain, bias = 3 * random(rows, width) + 1, random(width, seed=1), random(width, seed=2)
    expected = exact(kind, x, gain, bias)
    assert lib.norm(NormWeights(kind, gain, bias, EPS), x) is None
    np.testing.assert_allclose(x, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_a_row_depends_neither_on_threads_nor_on_its_neighbours(
    lib: Library, set_threads: Callable[[int], None], kind: str
) -> None:
    norm, x = NormWeights(kind, random(700), random(700, seed=1), EPS), random(600, 700, seed=2)
    set_threads(1)
    alone = x.copy()
    for i in range(len(x)):
        lib.norm(norm, alone[i : i + 1])
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        made = x.copy()
        lib.norm(norm, made)
        assert (made == alone).all(), threads


def test_what_does_not_fit_a_norm_is_refused_in_words(lib: Library) -> None:
    norm = NormWeights("layer", random(8), random(8), EPS)
    for x in (random(2, 8).astype(np.float64), random(8), random(2, 1, 8)):
        with pytest.raises(ValueError, match=r"x should be float32 \[rows, width\]"):
            lib.norm(norm, x)
    with pytest.raises(ValueError, match="contiguous"):
        lib.norm(norm, random(4, 16)[:, ::2])
    for gain, bias in ((random(8), random(7)), (random(7), random(8)), (random(8), random(8, 1)), (random(1, 8),) * 2):
        with pytest.raises(ValueError, match=r"of a norm should be float32 \[8\]"):
            lib.norm(NormWeights("layer", gain, bias, EPS), random(2, 8))
    for eps in (0.0, -1e-5, 1.0, float("nan")):
        with pytest.raises(FormatError, match="the epsilon of a layer norm lies between 0 and 1"):
            lib.norm(NormWeights("rms", random(8), random(8), eps), random(2, 8))
