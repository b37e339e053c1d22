"""Writes the file of weights that the compiled library opens by itself (runtime/native/src/weights_file.h).

Everything is little-endian. Behind a head come numbers of 4 bytes and arrays, which begin at multiples of 64 bytes, in
the order in which src/model.cpp reads them:

    byte   0   8 bytes   "TERNARIZ"
           8   uint32    version of the format
          12   uint32    CRC-32 of all bytes from 24 on
          16   int64     bytes of the file
          24   values

Linears, tables and norms are written as the library has them in memory, so opening a file needs no work, and the C
structures that Python calls the library with hold all that is written.
"""

import ctypes
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from ternarize_cli.format.block import Block
from ternarize_cli.runtime.blocks import Prepared
from ternarize_cli.runtime.modules import Dense, Modules
from ternarize_cli.runtime.native.interface import POOLINGS, NativeDense, NativeLayer, NativeLinear, NativeNorm
from ternarize_cli.runtime.native.weights import NormWeights
from ternarize_cli.runtime.packed_file import Table

__all__ = ["VERSION", "write_weights"]

VERSION = 1
"""The version of the format; equals kWeightsVersion in src/weights_file.h."""
_MAGIC = b"TERNARIZ"
_HEAD = 24
_LINE = 64
_PANEL = 32
_LINEAR, _DENSE, _NORM = 0, 1, 2


def write_weights(
    prepared: Prepared, block: Block, tables: Sequence[Table], embedded: NormWeights | None, modules: Modules, dim: int
) -> bytes:
    """Makes the content of a file of weights.

    Args:
        prepared: the blocks for texts of up to as many tokens as the model reads.
        block: their description, whose `embeddings` are those of texts.
        tables: the tables of embeddings: of words, then of types and of positions where there are such.
        embedded: the norm of the embeddings; None if there is none.
        modules: what is done with hidden states.
        dim: the number of dimensions of a vector.
    """
    values = _Values()
    _write_blocks(values, prepared, block)
    _write_embeddings(values, prepared.positions, block, tables, embedded)
    _write_vectors(values, modules, block.width, dim)
    return values.file()


class _Values:
    """The content of a file of weights, value by value."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._at = _HEAD

    def numbers(self, *values: int) -> None:
        """Adds numbers."""
        self._add(struct.pack(f"<{len(values)}i", *values))

    def real(self, value: float) -> None:
        """Adds a float32."""
        self._add(struct.pack("<f", value))

    def array(self, array: np.ndarray) -> None:
        """Adds an array of bytes or float32."""
        self._add(bytes(-self._at % _LINE))
        self._add(np.ascontiguousarray(array).tobytes())

    def memory(self, place: int, count: int, size: int) -> None:
        """Adds `count` numbers of `size` bytes from where the library reads them."""
        self._add(bytes(-self._at % _LINE))
        self._add(ctypes.string_at(place, count * size))

    def linear(self, w: NativeLinear) -> None:
        """Adds a packed linear."""
        self.numbers(w.inputs, w.outputs, w.bits)
        self.memory(w.codes, w.panels * w.blocks * 256 * w.bits, 1)
        for place in (w.scale, w.bias):
            self.memory(place, w.panels * _PANEL, 4)

    def dense(self, w: NativeDense) -> None:
        """Adds a linear of floats."""
        panels = -(-w.outputs // _PANEL)
        self.numbers(w.inputs, w.outputs)
        self.memory(w.weights, panels * w.inputs * _PANEL, 4)
        self.memory(w.bias, panels * _PANEL, 4)

    def norm(self, norm: NativeNorm, width: int) -> None:
        """Adds a norm of rows of some width."""
        self.numbers(norm.kind)
        if norm.kind:
            self.real(norm.eps)
            self.memory(norm.gain, width, 4)
        if norm.kind == 1:
            self.memory(norm.bias, width, 4)

    def file(self) -> bytes:
        """Returns the whole file."""
        content = b"".join(self._parts)
        return _MAGIC + struct.pack("<IIq", VERSION, zlib.crc32(content), _HEAD + len(content)) + content

    def _add(self, part: bytes) -> None:
        self._parts.append(part)
        self._at += len(part)


def _write_blocks(values: _Values, prepared: Prepared, block: Block) -> None:
    e = prepared.encoder
    layers: list[NativeLayer] = [e.layer[i] for i in range(e.layers)]
    values.numbers(e.layers, e.width, e.head, e.heads, e.key_value_heads, e.inner, e.gated, e.activation)
    values.numbers(e.positions, e.rotated, e.reach)
    values.real(e.scale)
    biases = [layer.bias for layer in layers if layer.bias is not None]
    values.numbers(int(bool(biases)))
    if biases:
        values.memory(biases[0], e.heads * (2 * e.reach + 1), 4)
    values.numbers(len(block.kinds))
    for kind, turns in zip(block.kinds, prepared.turns, strict=True):
        values.numbers(*(-1 if seen is None else seen for seen in (kind.before, kind.after)), int(turns is not None))
        for turn in turns or ():
            values.array(turn)
    for layer, kind_of in zip(layers, block.kind_of, strict=True):
        values.numbers(kind_of)
        for linear in (layer.qkv, layer.output, layer.up, layer.down):
            values.linear(linear)
        for norms in (layer.attention, layer.feed_forward):
            for norm in (norms.before, norms.after, norms.sum):
                values.norm(norm, e.width)
        for norm in (layer.query, layer.key):
            values.norm(norm, e.head)
    values.norm(e.last, e.width)


def _write_embeddings(
    values: _Values, limit: int, block: Block, tables: Sequence[Table], embedded: NormWeights | None
) -> None:
    given = block.embeddings
    assert given is not None
    int8 = all(table.is_int8 for table in tables)
    values.numbers(limit)
    # The library looks int8 rows up by their scales alone, which then hold the factor.
    values.real(1.0 if int8 else given.factor)
    values.numbers(int(given.types is not None), int(given.positions is not None), given.first_position)
    for i, table in enumerate(tables):
        rows, scale = table.rows, table.scale
        if scale is None:
            rows = rows.astype("<f4", copy=False)
        elif int8 and i == 0:
            scale = scale * np.float32(given.factor)
        values.numbers(len(rows), 32 if scale is None else 8 if table.is_int8 else 4)
        values.array(rows)
        if scale is not None:
            values.array(scale.astype("<f4", copy=False))
    values.norm(NativeNorm() if embedded is None else embedded.norm, block.width)


def _write_vectors(values: _Values, modules: Modules, width: int, dim: int) -> None:
    assert modules.pooling is not None
    modes = modules.pooling.modes
    values.numbers(len(modes), *(POOLINGS.index(mode) for mode in modes))
    values.numbers(len(modules.layers))
    width *= len(modes)
    for layer in modules.layers:
        if not isinstance(layer, Dense):
            values.numbers(_NORM, 0)
            values.norm(layer.norm, width)
            continue
        linear, is_tanh = layer.weights.linear, int(layer.activation == "Tanh")
        if isinstance(linear, NativeLinear):
            values.numbers(_LINEAR, is_tanh)
            values.linear(linear)
        else:
            values.numbers(_DENSE, is_tanh)
            values.dense(linear)
        width = linear.outputs
    values.numbers(int(modules.normalizes), dim)
