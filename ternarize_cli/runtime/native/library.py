"""Loads the compiled library (src/api.cpp) and calls its functions with NumPy arrays.

The library is built with the wheel if a C++ compiler is found, and lies beside this file; without it other backends
run. The instruction set is chosen when the library is loaded: the best that the processor has, or the one that the
environment variable TERNARIZE_NATIVE_ISA names.

The library can't see how large an array is. So every size that it gets is read from an array here, and the shapes of
arrays that belong together are compared; the library compares the sizes with each other and with its limits
(src/arguments.h).
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.errors import FormatError, UnavailableError
from ternarize_cli.format.codecs import Codec
from ternarize_cli.runtime.native.arrays import address, aligned, c_int, check, check_rows
from ternarize_cli.runtime.native.interface import BITS, POOLINGS, Encoder, declare
from ternarize_cli.runtime.native.threads import keep_forks_alive, threads
from ternarize_cli.runtime.native.weights import DenseWeights, NormWeights, PackedCodes

__all__ = ["Library", "library"]

_SHARING, _ALONE = "libternarize_native.so.1", "libternarize_alone.so.1"
"""The library that shares OpenMP's threads with PyTorch, and the one with threads of its own, which needs no OpenMP."""
_REFUSED = -2


class Library:
    """Calls the functions of the compiled library with arrays.

    Attributes:
        instruction_sets: names of the instruction sets that the library has and this processor runs, best first.
        chosen: the name of the instruction set in use.
        isa: its place among them, which the library's functions take.
    """

    def __init__(self, path: Path) -> None:
        """Loads the library from a file, and chooses the instruction set.

        Raises:
            OSError: the file can't be loaded.
            UnavailableError: this processor can't run the instruction set that TERNARIZE_NATIVE_ISA names, or the
                library has another version of the interface.
        """
        self._c = ctypes.CDLL(str(path))
        declare(self._c)
        found: list[str] = []
        while (name := self._c.tz_instruction_set(len(found))) is not None:
            found.append(name.decode())
        self.instruction_sets = tuple(found)
        wanted = os.environ.get("TERNARIZE_NATIVE_ISA", "").lower()
        if wanted and wanted not in found:
            raise UnavailableError(
                f"TERNARIZE_NATIVE_ISA={wanted}: this processor runs {', '.join(found)}", hint="unset it"
            )
        self.isa = found.index(wanted) if wanted else 0
        self.chosen = found[self.isa]

    def packed(self, codec: Codec, rows: np.ndarray, inputs: int) -> np.ndarray:
        """Lays out packed codes for the library.

        Args:
            codec: the codec that packed the codes.
            rows: uint8 `[out, width]`, the packed codes.
            inputs: number of codes in a row.

        Returns:
            uint8 `[bytes]`: 2 bits a ternary code or 4 bits an int4 code, in panels of 32 outputs and blocks of 64
            inputs.

        Raises:
            FormatError: the codes are neither ternary nor int4, `rows` is not uint8 `[out, width]`, `width` is not
                the number of bytes that `inputs` codes take, or the library takes no linear of that size.
        """
        if codec.levels not in BITS:
            raise FormatError(f"the native library takes {' and '.join(BITS)} codes, not {codec.levels}")
        if rows.dtype != np.uint8 or rows.ndim != 2:
            raise FormatError(f"packed codes are uint8 [out, width], not {rows.dtype} {list(rows.shape)}")
        rows = np.ascontiguousarray(rows)
        outputs, width = rows.shape
        size = self._c.tz_packed_bytes(c_int(outputs), c_int(inputs), BITS[codec.levels])
        if size == _REFUSED:
            raise self._refusal()
        made = aligned(size, dtype=np.uint8, filled=False)
        shape = c_int(width), codec.radix, codec.per_byte, outputs, inputs
        self.run("tz_pack", address(rows), *shape, address(made), size, threads())
        return made

    def rest(self, array: np.ndarray) -> None:
        """Tells the system that it may free the memory of an array until it is read again.

        An array that is mapped from a file is then read from the file; another one goes to swap, if there is any.
        """
        self.run("tz_rest", address(array), array.nbytes)

    def trim(self) -> None:
        """Gives freed memory, which the C library keeps for later allocations, back to the system."""
        self._c.tz_trim()

    def linear(self, w: PackedCodes, x: np.ndarray) -> np.ndarray:
        """Computes a linear: float32 `[rows, in]` to float32 `[rows, out]`, bit for bit as `ternary.ternary_linear`.

        Raises:
            ValueError: `x` is not float32 `[rows, in]`.
            FormatError: the library takes no linear of that size.
        """
        y = aligned(len(x), w.linear.outputs)
        self._product(w, x, address(y), None)
        return y

    def sums(self, w: PackedCodes, x: np.ndarray) -> np.ndarray:
        """Rounds rows to int8 and multiplies them by the codes: float32 `[rows, in]` to exact int32 `[rows, out]`.

        Raises:
            ValueError: `x` is not float32 `[rows, in]`.
            FormatError: the library takes no linear of that size.
        """
        sums = np.empty((len(x), w.linear.outputs), dtype=np.int32)
        self._product(w, x, None, address(sums))
        return sums

    def _product(self, w: PackedCodes, x: np.ndarray, y: int | None, sums: int | None) -> None:
        check("x", x, np.float32, (len(x), w.linear.inputs))
        x = np.ascontiguousarray(x)
        self.run("tz_linear", self.isa, ctypes.byref(w.linear), address(x), c_int(len(x)), y, sums, threads())

    def dense(self, w: DenseWeights, x: np.ndarray) -> np.ndarray:
        """Computes a linear of floats: float32 `[rows, in]` to float32 `[rows, out]`.

        A row of the result depends neither on the rows beside it nor on the number of threads.

        Raises:
            ValueError: `x` is not float32 `[rows, in]`.
            FormatError: the library takes no linear of that size.
        """
        check("x", x, np.float32, (len(x), w.linear.inputs))
        x = np.ascontiguousarray(x)
        y = aligned(len(x), w.linear.outputs, filled=False)
        self.run("tz_dense", self.isa, ctypes.byref(w.linear), address(x), c_int(len(x)), address(y), threads())
        return y

    def norm(self, norm: NormWeights, x: np.ndarray) -> None:
        """Norms the rows of `x`, float32 `[rows, width]`, in place.

        Raises:
            ValueError: an array has another dtype or shape.
            FormatError: a size is beyond the limits of the library.
        """
        check_rows(x)
        _check_norm(norm, x.shape[1])
        self.run("tz_norm", self.isa, ctypes.byref(norm.norm), address(x), c_int(len(x)), c_int(x.shape[1]), threads())

    def embed(
        self, tables: list[tuple[np.ndarray, np.ndarray]], ids: list[np.ndarray], norm: NormWeights | None
    ) -> np.ndarray:
        """Adds up a row of each of several int8 tables for every token, and applies a norm to the sums.

        Args:
            tables: for each table its codes, int8 `[rows, dim]`, and its scales, float32 `[rows]`.
            ids: for each table the rows of the tokens, int64 `[tokens]`.
            norm: the norm, whose gain and bias are float32 `[dim]`; None for no norm.

        Returns:
            float32 `[tokens, dim]`.

        Raises:
            ValueError: an array has another dtype or shape, or the numbers of tables and of arrays of ids differ.
            FormatError: an id is no row of its table, or a size is beyond the limits of the library.
        """
        rows, width = len(ids[0]), tables[0][0].shape[1]
        for (table, scale), chosen in zip(tables, ids, strict=True):
            check("a table", table, np.int8, (len(table), width))
            check("the scales of a table", scale, np.float32, (len(table),))
            check("ids", chosen, np.int64, (rows,))
        if norm is not None:
            _check_norm(norm, width)
        x = aligned(rows, width, filled=False)
        count = len(tables)
        codes, scales, chosen_ids = (
            (ctypes.c_void_p * count)(*map(address, column))
            for column in ([t for t, _ in tables], [s for _, s in tables], ids)
        )
        lengths = (ctypes.c_int64 * count)(*(len(table) for table, _ in tables))
        self.run(
            "tz_embed",
            *(self.isa, codes, scales, lengths, chosen_ids, count, c_int(rows), c_int(width)),
            *(None if norm is None else ctypes.byref(norm.norm), address(x), threads()),
        )
        return x

    def encode(self, encoder: Encoder, starts: np.ndarray, x: np.ndarray) -> None:
        """Runs all blocks of an encoder, and writes the last hidden states over `x`.

        Args:
            encoder: the C structure of the blocks.
            starts: int32 `[sequences + 1]`: the row of `x` where each sequence begins, then the row where the last
                ends.
            x: float32 `[tokens, width]`, the embeddings of all sequences, one after the other.

        Raises:
            ValueError: an array has another dtype or shape.
            FormatError: a sequence ends before it starts or beyond the last token, or the linears and norms of the
                encoder don't fit each other.
        """
        check("x", x, np.float32, (len(x), encoder.width))
        check("starts", starts, np.int32, (max(1, len(starts)),))
        sequences, tokens = c_int(len(starts) - 1), c_int(len(x))
        self.run(
            "tz_encode", self.isa, ctypes.byref(encoder), address(starts), sequences, address(x), tokens, threads()
        )

    def pool(self, x: np.ndarray, starts: np.ndarray, modes: tuple[str, ...], skipped: int = 0) -> np.ndarray:
        """Makes one vector of the tokens of each sequence.

        Args:
            x: float32 `[tokens, width]`, the hidden states of all sequences, one after the other.
            starts: int32 `[sequences + 1]`, as `encode` takes them.
            modes: some of `POOLINGS`, whose vectors are joined.
            skipped: tokens at the beginning of each sequence that are left out.

        Returns:
            float32 `[sequences, len(modes) * width]`. A sequence without tokens gives zeros, and -inf for "max".

        Raises:
            ValueError: an array has another dtype or shape, or there is no such mode.
            FormatError: a sequence ends before it starts or beyond the last token.
        """
        check_rows(x)
        check("starts", starts, np.int32, (max(1, len(starts)),))
        if unknown := [mode for mode in modes if mode not in POOLINGS]:
            raise ValueError(f"there is no pooling {unknown[0]!r}, only {', '.join(POOLINGS)}")
        width, sequences = x.shape[1], len(starts) - 1
        made = aligned(sequences, len(modes) * width, filled=False)
        for i, mode in enumerate(modes):
            self.run(
                "tz_pool",
                *(POOLINGS.index(mode), address(x), c_int(len(x)), c_int(width), address(starts), c_int(sequences)),
                *(c_int(skipped), address(made) + i * width * made.itemsize, len(modes) * width, threads()),
            )
        return made

    def normalize(self, x: np.ndarray) -> None:
        """Scales the rows of `x`, float32 `[rows, width]`, to length 1, in place.

        A row that is shorter than 1e-12 is divided by 1e-12.

        Raises:
            ValueError: `x` is not float32 `[rows, width]`.
        """
        check_rows(x)
        self.run("tz_normalize", address(x), c_int(len(x)), c_int(x.shape[1]))

    def run(self, name: str, *arguments: Any) -> None:
        """Calls a function of the interface by its name.

        Raises:
            FormatError: the function refuses an argument; the message has its sentence.
            MemoryError: memory ran out.
        """
        code = getattr(self._c, name)(*arguments)
        if code == _REFUSED:
            raise self._refusal()
        if code != 0:
            raise MemoryError("not enough memory for this batch")

    def _refusal(self) -> FormatError:
        why = self._c.tz_why().decode()
        hint = "fetch the model again, or run it with --backend reference"
        return FormatError(f"the native library can't run this model: {why}", hint=hint)


def _check_norm(norm: NormWeights, width: int) -> None:
    for name, array in (("the gain of a norm", norm.gain), ("the bias of a norm", norm.bias)):
        check(name, array, np.float32, (width,))


@cache
def library() -> Library:
    """Loads the library on the first call, and returns it.

    Where PyTorch has been imported, it is the one that shares its threads; otherwise the one that has its own.

    Raises:
        UnavailableError: the library was not built, has another version of the interface, can't be loaded, or can't run
            the instruction set that TERNARIZE_NATIVE_ISA names.
    """
    from ternarize_cli.runtime import native

    names = (_SHARING, _ALONE) if "torch" in sys.modules else (_ALONE, _SHARING)
    places = (Path(folder) / name for name in names for folder in native.__path__)
    paths = [path for path in places if path.is_file()]
    if not paths:
        raise UnavailableError(
            "its library was not built: no C++ compiler was found at installation, or it failed",
            hint="install a C++ compiler, then ternarize again with pip install -v, which shows its errors",
        )
    reasons = []
    for path in paths:
        try:
            loaded = Library(path)
            if path.name == _SHARING:
                keep_forks_alive()
            return loaded
        except OSError as e:  # a system without OpenMP's library, for instance, which the second does not need
            reasons.append(str(e))
    raise UnavailableError(f"its library can't be loaded: {reasons[0]}", hint="install ternarize again")
