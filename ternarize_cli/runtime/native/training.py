"""What a training step of a linear computes besides products, by the compiled library.

Results equal those of `arithmetic.ternary`, bit for bit but for sums, which are added in another order.
"""

import numpy as np

from ternarize_cli.runtime.native.arrays import address, c_int, check, check_rows
from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.native.threads import threads

__all__ = ["round_activations", "round_weights", "scale_gradients"]


def round_weights(
    lib: Library, weights: np.ndarray, scales: np.ndarray, codes: tuple[int, int], out: np.ndarray
) -> None:
    """Writes codes · scale to `out`, where codes are weights / scale, rounded to the nearest integer of a range.

    Args:
        lib: the library.
        weights: float32 `[outputs, inputs]`.
        scales: float32 `[outputs]`; the codes of a row whose scale is 0 are 0.
        codes: the lowest and the highest code, at least -8 and at most 7.
        out: float32 `[outputs, inputs]`.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous.
        FormatError: the library takes no linear of that size.
    """
    _check_matrices(weights, out, scales)
    outputs, inputs = map(c_int, weights.shape)
    places = address(weights), address(scales)
    lib.run("tz_round_weights", lib.isa, *places, *codes, outputs, inputs, address(out), threads())


def scale_gradients(
    lib: Library,
    gradients: np.ndarray,
    weights: np.ndarray,
    scales: np.ndarray,
    codes: tuple[int, int],
    out: np.ndarray,
) -> None:
    """Writes the gradients of scales to `out`, float32 `[outputs]`: for each row the sum of gradients times codes.

    Args:
        lib: the library.
        gradients: float32 `[outputs, inputs]`, the gradients of the rounded weights.
        weights, scales, codes: as `round_weights` takes them.
        out: float32 `[outputs]`.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous.
        FormatError: the library takes no linear of that size.
    """
    _check_matrices(weights, gradients, scales)
    check("the gradients of scales", out, np.float32, scales.shape)
    outputs, inputs = map(c_int, weights.shape)
    places = address(gradients), address(weights), address(scales)
    lib.run("tz_scale_gradients", lib.isa, *places, *codes, outputs, inputs, address(out), threads())


def round_activations(lib: Library, x: np.ndarray, out: np.ndarray) -> None:
    """Rounds the rows of `x` to symmetric int8 with a scale for each row, and writes integer · scale to `out`.

    Args:
        lib: the library.
        x: float32 `[rows, width]`.
        out: float32 `[rows, width]`. A row that holds a number that is not finite becomes NaN.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous.
        FormatError: a size is beyond the limits of the library.
    """
    check_rows(x)
    check("the rounded rows", out, np.float32, x.shape)
    rows, width = map(c_int, x.shape)
    lib.run("tz_round_activations", lib.isa, address(x), rows, width, address(out), threads())


def _check_matrices(weights: np.ndarray, other: np.ndarray, scales: np.ndarray) -> None:
    check_rows(weights)
    check("the other matrix", other, np.float32, weights.shape)
    check("scales", scales, np.float32, weights.shape[:1])
