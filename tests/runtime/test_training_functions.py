"""What training computes besides products, on every instruction set, against PyTorch's operations one by one."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from support.instruction_sets import needs_library
from ternarize_cli.arithmetic import ternary
from ternarize_cli.errors import FormatError
from ternarize_cli.format.scheme import LEVELS
from ternarize_cli.runtime.native import training
from ternarize_cli.runtime.native.library import Library

pytestmark = needs_library
SHAPES = [(1, 1), (5, 3), (7, 16), (33, 100), (3, 257), (64, 384)]
"""Rows and columns; of some, the last vector of a row is not full."""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def scales(count: int) -> np.ndarray:
    made = np.random.default_rng(5).uniform(0.2, 2, count).astype(np.float32)
    made[::4] = 0  # of rows that hold nothing
    return made


def codes(weights: np.ndarray, by: np.ndarray, levels: str) -> np.ndarray:
    return ternary.codes_of(torch.from_numpy(weights), torch.from_numpy(by)[:, None], levels).numpy()


@pytest.mark.parametrize("levels", ["ternary", "int4"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_weights_are_rounded_bit_for_bit(lib: Library, rows: int, columns: int, levels: str) -> None:
    weights, by, out = random(rows, columns), scales(rows), np.full((rows, columns), 9, np.float32)
    weights[0, 0], weights[-1, -1] = 1e30, -0.5 * by[-1]  # far outside, and in the middle between two codes
    training.round_weights(lib, weights, by, (LEVELS[levels][0], LEVELS[levels][-1]), out)
    assert (out == codes(weights, by, levels) * by[:, None]).all()


@pytest.mark.parametrize("levels", ["ternary", "int4"])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_gradients_of_scales_are_sums_over_codes(lib: Library, rows: int, columns: int, levels: str) -> None:
    weights, gradients, by = random(rows, columns), random(rows, columns, seed=1), scales(rows)
    out = np.full(rows, 9, np.float32)
    training.scale_gradients(lib, gradients, weights, by, (LEVELS[levels][0], LEVELS[levels][-1]), out)
    parts = gradients.astype(np.float64) * codes(weights, by, levels)
    assert (np.abs(out - parts.sum(axis=1)) <= 2.0**-22 * np.abs(parts).sum(axis=1)).all()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_activations_are_rounded_bit_for_bit(lib: Library, rows: int, columns: int) -> None:
    x, out = random(rows, columns) * 10 ** random(rows, 1, seed=2), np.full((rows, columns), 9, np.float32)
    x[-1] = 0
    training.round_activations(lib, x, out)
    q, t = ternary.quantize_tokens(torch.from_numpy(x))
    assert (out == (q * t).numpy()).all()


def as_bfloat16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).to(torch.bfloat16).view(torch.uint16).numpy()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_results_in_bfloat16_are_those_in_float32_rounded(lib: Library, rows: int, columns: int) -> None:
    x, by, out = random(rows, columns), scales(rows), np.empty((rows, columns), np.float32)
    rounded = np.full((rows, columns), 9, np.uint16)
    training.round_weights(lib, x, by, (-8, 7), out)
    training.round_weights(lib, x, by, (-8, 7), rounded)
    assert (rounded == as_bfloat16(out)).all()
    training.round_activations(lib, x, out)
    training.round_activations(lib, x, rounded)
    assert (rounded == as_bfloat16(out)).all()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_gradients_in_bfloat16_are_widened(lib: Library, rows: int, columns: int) -> None:
    weights, given, by = random(rows, columns), as_bfloat16(random(rows, columns, seed=1)), scales(rows)
    same = torch.from_numpy(given).view(torch.bfloat16).float().numpy()
    wide, out, expected = np.full_like(weights, 9), np.empty_like(by), np.empty_like(by)
    training.scale_gradients(lib, given, weights, by, (-1, 1), out, wide)
    training.scale_gradients(lib, same, weights, by, (-1, 1), expected)
    assert (wide == same).all()
    assert (out == expected).all()


def test_numbers_that_are_not_finite_show(lib: Library) -> None:
    x = random(4, 40)
    x[1, 7], x[3, 39] = np.nan, np.inf
    rounded, dense = np.empty_like(x), np.empty_like(x)
    training.round_activations(lib, x, rounded)
    assert np.isnan(rounded[[1, 3]]).all()
    assert np.isfinite(rounded[[0, 2]]).all()
    in_bfloat16 = np.empty(x.shape, np.uint16)
    training.round_activations(lib, x, in_bfloat16)
    assert (torch.from_numpy(in_bfloat16).view(torch.bfloat16).isnan().numpy() == np.isnan(rounded)).all()
    training.round_weights(lib, x, np.ones(4, np.float32), (-1, 1), dense)
    assert np.isnan(dense[1, 7])
    assert (np.isnan(dense).sum(), dense[3, 39]) == (1, 1)
    training.round_weights(lib, random(2, 40), np.array([1, np.nan], np.float32), (-1, 1), dense[:2])
    assert np.isnan(dense).sum(axis=1).tolist() == [0, 40, 0, 0]


def test_rows_do_not_depend_on_threads(lib: Library, set_threads: Callable[[int], None]) -> None:
    weights, gradients, by = random(700, 600), random(700, 600, seed=1), scales(700)
    made = []
    for threads in (1, 2, 5):
        set_threads(threads)
        dense, of_scales, rounded = np.empty_like(weights), np.empty_like(by), np.empty_like(weights)
        training.round_weights(lib, weights, by, (-1, 1), dense)
        training.scale_gradients(lib, gradients, weights, by, (-1, 1), of_scales)
        training.round_activations(lib, gradients, rounded)
        made.append((dense, of_scales, rounded))
    for other in made[1:]:
        assert all((a == b).all() for a, b in zip(made[0], other, strict=True))


def test_arrays_that_do_not_belong_together_are_refused(lib: Library) -> None:
    weights, out = random(6, 8), np.empty((6, 8), np.float32)
    with pytest.raises(ValueError, match=r"scales should be float32 \[6\], and is float32 \[5\]"):
        training.round_weights(lib, weights, scales(5), (-1, 1), out)
    with pytest.raises(ValueError, match=r"the output should be float32 \[6, 8\]"):
        training.round_weights(lib, weights, scales(6), (-1, 1), out[:5])
    with pytest.raises(ValueError, match=r"the output should be uint16 \[6, 8\]"):
        training.round_weights(lib, weights, scales(6), (-1, 1), np.empty((6, 7), np.uint16))
    for gradients, wide in ((weights, out), (as_bfloat16(weights), None)):
        with pytest.raises(ValueError, match="gradients in bfloat16, and no others, are written as float32, too"):
            training.scale_gradients(lib, gradients, weights, scales(6), (-1, 1), scales(6), wide)
    with pytest.raises(ValueError, match=r"the gradients as float32 should be float32 \[6, 8\]"):
        training.scale_gradients(lib, as_bfloat16(weights), weights, scales(6), (-1, 1), scales(6), out[:5])
    with pytest.raises(ValueError, match="contiguous"):
        training.round_weights(lib, random(8, 6).T, scales(6), (-1, 1), out)
    with pytest.raises(ValueError, match=r"the output should be float32"):
        training.round_activations(lib, weights, out.astype(np.float64))
    with pytest.raises(FormatError, match="codes lie between -8 and 7"):
        training.round_weights(lib, weights, scales(6), (-9, 7), out)
