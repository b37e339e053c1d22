r"""Codecs of packed format version 1, which pack codes into bytes.

Every codec is a positional number system. A code becomes a *digit*, its position in the ascending list of its grid, and
a byte is the sum of digit_i · radix^i over the codes it holds, the first input lowest:

    codec   radix   codes a byte   digits
    1bit      2          8         binary:  0 → -1,  1 → +1
    2bit      4          4         ternary: 0 → -1,  1 → 0,  2 → +1,  3 is invalid
                                   int2:    0 → -3,  1 → -1,  2 → +1,  3 → +3
    base3     3          5         ternary: as in 2bit; a byte above 242 = 3⁵ - 1 is invalid
    4bit     16          2         int4:    value - 8

With a power of two as radix that is a bit field, lowest bits first; `2bit`, byte j of a row:

     bit   7 6   5 4   3 2   1 0
         ┌─────┬─────┬─────┬─────┐
         │4j+3 │4j+2 │4j+1 │4j   │
         └─────┴─────┴─────┴─────┘

A row whose width does not fill its last byte is padded with the digit of a zero weight, or with digit 0 if the grid has
no zero; other padding is refused, so that equal models have equal bytes. Reading is one look-up per byte in a table
of 256 rows. `arithmetic.packing` packs and unpacks tensors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ternarize_cli.errors import InputError
from ternarize_cli.format.scheme import CODECS, LEVELS

__all__ = ["ALL_CODECS", "INVALID", "Codec", "codec_for"]

INVALID = 127
"""Stands in the tables of codecs for what is no code."""


@dataclass(frozen=True)
class Codec:
    """One layout of one grid's codes.

    Attributes:
        name: the name in the format and on the command line.
        levels: name of the grid, a key of `LEVELS`.
        radix: number of values that a digit can take.
        per_byte: number of codes in a byte.
    """

    name: str
    levels: str
    radix: int
    per_byte: int

    @property
    def bits(self) -> float:
        """Number of bits per code, which may be a fraction."""
        return 8 / self.per_byte

    @property
    def padding(self) -> int:
        """The code that fills the last byte of a row."""
        return 0 if 0 in LEVELS[self.levels] else LEVELS[self.levels][0]

    def width(self, in_features: int) -> int:
        """Number of bytes of a packed row of `in_features` codes."""
        return -(-in_features // self.per_byte)

    def check(self, packed: np.ndarray, in_features: int) -> None:
        """Checks packed codes without unpacking them, which takes milliseconds for a whole model.

        It runs on one thread: torch's threads would wait for each other for longer than the check takes, 8 ms a layer
        on a busy machine.

        Raises:
            ValueError: the dtype or the width is wrong, a byte or code is invalid, or padding has a wrong value.
        """
        self.check_shape(packed.dtype.name, packed.shape, in_features)
        limit, missing = self.radix**self.per_byte, packed.shape[1] * self.per_byte - in_features
        if self.radix == 4 and len(LEVELS[self.levels]) == 3:
            wrong = bool((packed & (packed >> 1) & 0b01010101).any())  # a digit 3
        else:
            wrong = limit < 256 and packed.size > 0 and int(packed.max()) >= limit
        if not wrong and missing:
            wrong = bool((self.table[packed[:, -1]][:, -missing:] != self.padding).any())
        if wrong:
            self.check_codes(self.table[packed].reshape(len(packed), -1), packed, in_features)

    def check_shape(self, dtype: str, shape: Sequence[int], in_features: int) -> None:
        """Checks the dtype and shape of packed codes.

        Raises:
            ValueError: they are not uint8 `[out, width(in)]`.
        """
        if dtype != "uint8" or len(shape) != 2 or shape[1] != self.width(in_features):
            raise ValueError(
                f"expected uint8 [out, {self.width(in_features)}] for {in_features} inputs, got {dtype} {list(shape)}"
            )

    def check_codes(self, codes: np.ndarray, packed: np.ndarray, in_features: int) -> None:
        """Checks codes that were unpacked by `table`, int8 `[out, width * per_byte]`, padding included.

        Raises:
            ValueError: a byte or code is invalid, or padding has a wrong value.
        """
        if len(LEVELS[self.levels]) ** self.per_byte < 256 and codes.size and codes.max() == INVALID:
            row, column = (int(i) for i in np.argwhere(codes == INVALID)[0])
            byte = int(packed[row, column // self.per_byte])
            if byte >= self.radix**self.per_byte:
                raise ValueError(
                    f"invalid byte {byte} at row {row}, input {column}; {self.name} ends at "
                    f"{self.radix**self.per_byte - 1}"
                )
            digit = byte // self.radix ** (column % self.per_byte) % self.radix
            raise ValueError(f"invalid code {digit} at row {row}, input {column}")
        if (codes[:, in_features:] != self.padding).any():
            meaning = "zero weights" if self.padding == 0 else "zero bits"
            raise ValueError(f"the padding at the end of a row is not {meaning}")

    @cached_property
    def table(self) -> np.ndarray:
        """The codes in each byte, int8 `[256, per_byte]`; invalid bytes and digits have `INVALID`."""
        grid = LEVELS[self.levels]
        table = np.full((256, self.per_byte), INVALID, dtype=np.int8)
        for byte in range(min(256, self.radix**self.per_byte)):
            for i in range(self.per_byte):
                digit = byte // self.radix**i % self.radix
                if digit < len(grid):
                    table[byte, i] = grid[digit]
        return table


_LAYOUTS = {"1bit": (2, 8), "2bit": (4, 4), "base3": (3, 5), "4bit": (16, 2)}
ALL_CODECS = tuple(Codec(name, levels, *_LAYOUTS[name]) for levels, names in CODECS.items() for name in names)
"""Every codec of the format; the first of a grid is its default."""


def codec_for(levels: str, name: str | None = None) -> Codec:
    """Gives the codec of a grid by its name, or the grid's default codec if `name` is None.

    Raises:
        InputError: the grid has no codec of that name.
    """
    for codec in ALL_CODECS:
        if codec.levels == levels and name in (None, codec.name):
            return codec
    raise InputError(f"there is no codec {name!r} for {levels} codes", hint=f"one of {', '.join(CODECS[levels])}")
