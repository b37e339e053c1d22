"""Linears of floats on every instruction set, against NumPy in float64."""

from collections.abc import Callable

import numpy as np
import pytest

from support.instruction_sets import needs_library
from ternarize_cli.errors import FormatError
from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.native.weights import DenseWeights

pytestmark = needs_library
SHAPES = [(1, 1, 1), (7, 33, 5), (9, 64, 32), (17, 65, 33), (65, 127, 130), (1, 768, 768), (300, 768, 96), (0, 8, 4)]
"""Rows, inputs and outputs."""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_are_as_near_to_float64_as_sums_in_float32_are(
    lib: Library, rows: int, inputs: int, outputs: int, has_bias: bool
) -> None:
    x, weights, bias = random(rows, inputs), random(outputs, inputs, seed=1), random(outputs, seed=2)
    y = lib.dense(DenseWeights(weights, bias if has_bias else None), x)
    assert (y.shape, y.dtype) == ((rows, outputs), np.float32)
    exact = x.astype(np.float64) @ weights.T.astype(np.float64) + bias * has_bias
    sizes = np.abs(x.astype(np.float64)) @ np.abs(weights.T.astype(np.float64)) + np.abs(bias)
    assert (np.abs(y - exact) <= 2.0**-22 * np.sqrt(inputs + 1) * sizes).all()


def test_weights_lie_in_panels_of_32_outputs_filled_up_with_zeros() -> None:
    weights, bias = random(70, 9), random(70, seed=1)
    made = DenseWeights(weights, bias)
    assert made.weights.shape == (3, 9, 32)
    rows = made.weights.transpose(0, 2, 1).reshape(96, 9)
    assert (rows[:70] == weights).all()
    assert (made.bias[:70] == bias).all()
    assert not rows[70:].any()
    assert not made.bias[70:].any()
    assert made.weights.ctypes.data % 64 == made.bias.ctypes.data % 64 == 0


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(5, 768, 800), (70, 300, 200), (300, 260, 33)])
def test_a_row_depends_neither_on_threads_nor_on_its_neighbours(
    lib: Library, set_threads: Callable[[int], None], rows: int, inputs: int, outputs: int
) -> None:
    assert rows * inputs * outputs >= 1 << 20, "less is not shared among threads"
    w, x = DenseWeights(random(outputs, inputs), random(outputs, seed=1)), random(rows, inputs, seed=2)
    set_threads(1)
    alone = np.concatenate([lib.dense(w, x[i : i + 1]) for i in range(rows)])
    for threads in (1, 2, 3, 8):
        set_threads(threads)
        assert (lib.dense(w, x) == alone).all(), threads
        assert (lib.dense(w, x[2:]) == alone[2:]).all(), threads
        assert (lib.dense(w, np.ascontiguousarray(x[::-1])) == alone[::-1]).all(), threads


def test_what_is_not_finite_stays_in_its_row_and_in_its_output(lib: Library) -> None:
    weights, x = random(40, 70), random(20, 70, seed=1)
    weights[33, 5], x[3, 2], x[11, 69] = np.inf, np.nan, np.inf
    finite = np.isfinite(lib.dense(DenseWeights(weights, None), x))
    assert finite.all(axis=1).tolist() == [False] * 20
    assert finite.any(axis=1).tolist() == [i not in (3, 11) for i in range(20)]
    assert finite[[i for i in range(20) if i not in (3, 11)]].all(axis=0).tolist() == [i != 33 for i in range(40)]


def test_rows_and_weights_may_lie_in_any_order_and_have_another_dtype(lib: Library) -> None:
    weights, x = random(33, 80), random(12, 80, seed=1)
    expected = lib.dense(DenseWeights(weights, None), x)
    assert (lib.dense(DenseWeights(np.asfortranarray(weights), None), np.asfortranarray(x)) == expected).all()
    assert (lib.dense(DenseWeights(weights.astype(np.float64), None), x) == expected).all()
    half = weights.astype(np.float16)
    expected = lib.dense(DenseWeights(half.astype(np.float32), None), x)
    assert (lib.dense(DenseWeights(half, None), x) == expected).all()


def test_what_does_not_fit_a_linear_is_refused_in_words(lib: Library) -> None:
    weights = random(40, 70)
    for bias in (random(39), random(41), random(40, 1)):
        with pytest.raises(FormatError, match=r"a linear of 40 outputs has \[.*\] biases"):
            DenseWeights(weights, bias)
    w = DenseWeights(weights, None)
    for x in (random(2, 71), random(2, 70).astype(np.float64), random(2, 1, 70), random(70)):
        with pytest.raises(ValueError, match=r"x should be float32 \[\d+, 70\]"):
            lib.dense(w, x)
    for empty, why in ((random(0, 70), "1 to 16,777,216 outputs"), (random(40, 0), "1 to 4,194,304 inputs")):
        with pytest.raises(FormatError, match=why):
            lib.dense(DenseWeights(empty, None), random(2, empty.shape[1]))
