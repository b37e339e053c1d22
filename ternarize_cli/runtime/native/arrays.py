"""Arrays as the compiled library takes them: contiguous, aligned, and of the shapes that belong together."""

import numpy as np

__all__ = ["address", "aligned", "c_int", "check", "check_rows"]

_LINE = 64  # bytes, to which arrays are aligned that the library reads in whole vectors


def aligned(*shape: int, dtype: type = np.float32, filled: bool = True) -> np.ndarray:
    """Makes a contiguous array whose first byte lies at a multiple of 64; it holds zeros if `filled`."""
    kind = np.dtype(dtype)
    count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw = (np.zeros if filled else np.empty)(count + _LINE, dtype=np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + count].view(kind).reshape(shape)


def address(array: np.ndarray) -> int:
    """Returns the address of an array's first byte.

    Raises:
        ValueError: the array is not contiguous.
    """
    if not array.flags.c_contiguous:
        raise ValueError("the library takes contiguous arrays")
    return array.ctypes.data


def check(name: str, array: np.ndarray, dtype: type, shape: tuple[int, ...]) -> None:
    """Checks the dtype and the shape of an array.

    Args:
        name: the name of the array in messages.
        array: the array.
        dtype: the dtype that it should have.
        shape: the shape that it should have.

    Raises:
        ValueError: it has another dtype or shape.
    """
    if array.dtype != dtype or array.shape != shape:
        kind = np.dtype(dtype).name
        raise ValueError(f"{name} should be {kind} {list(shape)}, and is {array.dtype} {list(array.shape)}")


def check_rows(x: np.ndarray) -> None:
    """Checks that an array is float32 `[rows, width]`.

    Raises:
        ValueError: it is not.
    """
    if x.dtype != np.float32 or x.ndim != 2:
        raise ValueError(f"x should be float32 [rows, width], and is {x.dtype} {list(x.shape)}")


def c_int(size: int) -> int:
    """Clamps a size to the range of a C int; the library refuses a size of -1 or of 2^31 - 1."""
    return max(-1, min(size, 2**31 - 1))
