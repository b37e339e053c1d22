"""Lays out matrices in the types of GGUF, without changing a value.

A type cuts a row into blocks of equal length, each with a float16 scale; the scale of a row, or of its group, stands in
every one of its blocks. A matrix gets the first type of this list that holds it:

    type     block   codes         bytes a block
    TQ2_0    256     -1 … 1        64 + 2
    Q2_0     64      -1 … 2        2 + 16, in versions of the package gguf after 0.19
    Q4_0     32      -8 … 7        2 + 16
    Q8_0     32      -128 … 127    2 + 32; embedding tables of 8 bits
    F16      1       its values, if float16 holds them all
    F32      1       its values

Codes of 2 bits stand in a byte lowest first, as code + 1: in Q2_0 those of four neighbours, in TQ2_0 those of columns
32 apart. A byte of Q4_0 has columns j and j + 16, as code + 8.
"""

from dataclasses import dataclass

import numpy as np

from ternarize_cli.engines.onnx_codes import PackedLayer

__all__ = ["Matrix", "dense", "lay_out", "stack"]

Matrix = PackedLayer | np.ndarray
"""A packed layer, or a float32 array."""


@dataclass(frozen=True)
class _Type:
    """A type of blocks: its name, the columns of a block, and the lowest and highest code."""

    name: str
    block: int
    low: int
    high: int


_TQ2_0, _Q2_0, _Q4_0, _Q8_0 = (
    _Type("TQ2_0", 256, -1, 1),
    _Type("Q2_0", 64, -1, 2),
    _Type("Q4_0", 32, -8, 7),
    _Type("Q8_0", 32, -128, 127),
)


def lay_out(matrix: Matrix, *, bits: int) -> tuple[str, np.ndarray]:
    """Lays a matrix out in the smallest type that holds its values exactly.

    Args:
        matrix: the matrix [rows, columns]; a vector stays float32.
        bits: 2, or 4 to leave out the types of 2 bits, which few kernels know.

    Returns:
        The name of the type, and its data: uint8 [rows, bytes of a row], or float16 or float32 in the matrix's shape.
    """
    if isinstance(matrix, PackedLayer):
        columns, groups = matrix.codes.shape[1], matrix.scales.shape[1]
        low, high = int(matrix.codes.min(initial=0)), int(matrix.codes.max(initial=0))
        for kind in _types(bits):
            if columns % groups == 0 and columns // groups % kind.block == 0 and kind.low <= low and high <= kind.high:
                return kind.name, _blocks(matrix, kind)
        matrix = dense(matrix)
    if matrix.ndim > 1:
        with np.errstate(over="ignore"):
            half = matrix.astype(np.float16)
        if np.array_equal(half.astype(np.float32), matrix):
            return "F16", half
    return "F32", matrix


def dense(matrix: Matrix) -> np.ndarray:
    """Multiplies a packed layer out: float32 [rows, columns]. An array is returned as it is."""
    return matrix.dense() if isinstance(matrix, PackedLayer) else matrix


def stack(parts: list[Matrix]) -> Matrix:
    """Puts matrices of as many columns below each other."""
    layers = [part for part in parts if isinstance(part, PackedLayer)]
    if len(layers) == len(parts) and len({layer.scales.shape[1] for layer in layers}) == 1:
        codes, scales = (np.concatenate([getattr(layer, name) for layer in layers]) for name in ("codes", "scales"))
        return PackedLayer(layers[0].name, codes, scales, layers[0].is_table)
    return np.concatenate([dense(part) for part in parts])


def _types(bits: int) -> list[_Type]:
    from gguf import GGMLQuantizationType

    two = [kind for kind in (_TQ2_0, _Q2_0) if bits == 2 and hasattr(GGMLQuantizationType, kind.name)]
    return [*two, _Q4_0, _Q8_0]


def _blocks(layer: PackedLayer, kind: _Type) -> np.ndarray:
    """Lays out a packed layer in a type's blocks: uint8 [rows, bytes of a row]."""
    rows, columns = layer.codes.shape
    count = columns // kind.block
    codes = layer.codes.reshape(rows, count, kind.block)
    scales = np.repeat(np.ascontiguousarray(layer.scales, dtype="<f2"), count // layer.scales.shape[1], axis=1)
    ends = scales[..., None].view(np.uint8)
    parts: list[np.ndarray]
    if kind == _Q8_0:
        parts = [ends, codes.view(np.uint8)]
    elif kind == _Q4_0:
        nibbles = (codes + 8).astype(np.uint8)
        parts = [ends, nibbles[..., :16] | nibbles[..., 16:] << 4]
    else:
        shape, axis = ((-1, 4), -1) if kind == _Q2_0 else ((-1, 4, 32), -2)
        digits = (codes + 1).astype(np.uint8).reshape(rows, count, *shape)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, *shape[2:] and (1,))
        packed: np.ndarray = np.bitwise_or.reduce(digits << shifts, axis=axis).reshape(rows, count, -1)
        parts = [ends, packed] if kind == _Q2_0 else [packed, ends]
    return np.concatenate(parts, axis=2).reshape(rows, -1)
