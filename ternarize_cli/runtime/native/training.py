"""What a training step of a linear computes besides products, by the compiled library.

Results equal those of `arithmetic.ternary`, bit for bit but for sums, which are added in another order. Results and
gradients may be in bfloat16, which NumPy lacks: such an array has the dtype uint16, and holds the numbers' bits.
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
        out: float32 or bfloat16 `[outputs, inputs]`.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous.
        FormatError: the library takes no linear of that size.
    """
    check_rows(weights)
    check("scales", scales, np.float32, weights.shape[:1])
    outputs, inputs = map(c_int, weights.shape)
    places = address(weights), address(scales)
    lib.run(
        "tz_round_weights",
        lib.isa,
        *places,
        *codes,
        outputs,
        inputs,
        *_places("the output", out, weights.shape),
        threads(),
    )


def scale_gradients(
    lib: Library,
    gradients: np.ndarray,
    weights: np.ndarray,
    scales: np.ndarray,
    codes: tuple[int, int],
    out: np.ndarray,
    wide: np.ndarray | None = None,
) -> None:
    """Writes the gradients of scales to `out`, float32 `[outputs]`: for each row the sum of gradients times codes.

    Args:
        lib: the library.
        gradients: float32 or bfloat16 `[outputs, inputs]`, the gradients of the rounded weights.
        weights, scales, codes: as `round_weights` takes them.
        out: float32 `[outputs]`.
        wide: float32 `[outputs, inputs]`, where gradients in bfloat16 are written as float32; None for such in float32.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous; or `wide` is missing, or not needed.
        FormatError: the library takes no linear of that size.
    """
    check_rows(weights)
    check("scales", scales, np.float32, weights.shape[:1])
    check("the gradients of scales", out, np.float32, scales.shape)
    given = _places("the gradients", gradients, weights.shape)
    if (wide is not None) != (gradients.dtype == np.uint16):
        raise ValueError("gradients in bfloat16, and no others, are written as float32, too")
    if wide is not None:
        check("the gradients as float32", wide, np.float32, weights.shape)
    outputs, inputs = map(c_int, weights.shape)
    places = *given, address(weights), address(scales)
    results = address(out), None if wide is None else address(wide)
    lib.run("tz_scale_gradients", lib.isa, *places, *codes, outputs, inputs, *results, threads())


def round_activations(lib: Library, x: np.ndarray, out: np.ndarray) -> None:
    """Rounds the rows of `x` to symmetric int8 with a scale for each row, and writes integer · scale to `out`.

    Args:
        lib: the library.
        x: float32 `[rows, width]`.
        out: float32 or bfloat16 `[rows, width]`. A row that holds a number that is not finite becomes NaN.

    Raises:
        ValueError: an array has another dtype or shape, or is not contiguous.
        FormatError: a size is beyond the limits of the library.
    """
    check_rows(x)
    rows, width = map(c_int, x.shape)
    lib.run("tz_round_activations", lib.isa, address(x), rows, width, *_places("the output", out, x.shape), threads())


def _places(name: str, array: np.ndarray, shape: tuple[int, ...]) -> tuple[int | None, int | None]:
    """Gives the addresses of an array in float32 and in bfloat16, of which one is None."""
    check(name, array, np.uint16 if array.dtype == np.uint16 else np.float32, shape)
    place = address(array)
    return (None, place) if array.dtype == np.uint16 else (place, None)
