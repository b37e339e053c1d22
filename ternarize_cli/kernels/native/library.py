"""Loads the compiled library (src/api.cpp) and calls its functions with tensors.

The library is built with the wheel if a C++ compiler is found, and lies beside this file; without it other backends
run. The instruction set is chosen when the library is loaded: the best that the processor has, or the one that the
environment variable TERNARIZE_NATIVE_ISA names.

The library can't see how large a tensor is. So every size that it gets is read from a tensor here, and the shapes of
tensors that belong together are compared; the library compares the sizes with each other and with its limits
(src/arguments.h).
"""

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.errors import FormatError, UnavailableError
from ternarize_cli.format.codecs import Codec
from ternarize_cli.kernels.native.interface import MAX_THREADS, Encoder, NativeLinear, NativeNorm, declare
from ternarize_cli.kernels.native.processors import processors

__all__ = ["Library", "NormTensors", "PackedCodes", "library"]

PANEL, BLOCK = 32, 64
_BITS = {"ternary": 2, "int4": 4}
_NAME = "libternarize_native.so.1"
_REFUSED = -2
_KINDS = {"layer": 1, "rms": 2}


class PackedCodes:
    """A linear in the library's layout, in panels of 32 outputs and blocks of 64 inputs.

    Ternary codes take 2 bits a weight, and int4 codes 4.

    Attributes:
        codes: uint8 `[bytes]`, the codes in that layout.
        scale: float32 `[outputs rounded up to a multiple of 32]`, with zeros beyond the outputs.
        bias: float32, of the shape of `scale`; zeros for a linear without bias.
        linear: the C structure that points to these three.
    """

    def __init__(
        self, lib: "Library", codec: Codec, rows: Tensor, inputs: int, scale: Tensor, bias: Tensor | None
    ) -> None:
        """Lays out a linear.

        Args:
            lib: the compiled library.
            codec: the codec that packed the codes.
            rows: uint8 `[out, width]`, the packed codes.
            inputs: number of inputs of the linear; `width` bytes hold so many codes.
            scale: float `[out]`, a scale for each row.
            bias: float `[out]`, or None.

        Raises:
            FormatError: the shapes don't fit each other, or the library takes no linear of those levels or that size.
        """
        outputs = len(rows)
        if scale.shape != (outputs,) or (bias is not None and bias.shape != (outputs,)):
            shapes = [list(t.shape) for t in (scale, bias) if t is not None]
            raise FormatError(
                f"scale and bias of a linear of {outputs} outputs have the shapes {', '.join(map(str, shapes))}",
                hint="pack the model again",
            )
        self.codes = lib.packed(codec, rows, inputs)
        panels, blocks = -(-outputs // PANEL), -(-inputs // BLOCK)
        self.scale, self.bias = _zeros(2, panels * PANEL)
        self.scale[:outputs] = scale.float()
        if bias is not None:
            self.bias[:outputs] = bias.float()
        self.linear = NativeLinear(
            *(self.codes.data_ptr(), self.scale.data_ptr(), self.bias.data_ptr()),
            *(inputs, outputs, blocks, panels, _BITS[codec.levels]),
        )


class NormTensors:
    """A norm, with the tensors that the library reads.

    Attributes:
        gain, bias: float32 `[width]`; an RMS norm does not read its bias.
        norm: the C structure that points to both.
    """

    def __init__(self, kind: str, gain: Tensor, bias: Tensor, eps: float) -> None:
        """Keeps the tensors, or copies of those that lie at an address that float32 can't have.

        Args:
            kind: "layer" or "rms".
            gain, bias: float32, of the same shape.
            eps: the epsilon.
        """
        self.gain, self.bias = (t.clone() if t.data_ptr() % t.element_size() else t for t in (gain, bias))
        self.norm = NativeNorm(self.gain.data_ptr(), self.bias.data_ptr(), eps, _KINDS[kind])


class Library:
    """Calls the functions of the compiled library with tensors.

    Attributes:
        instruction_sets: names of the instruction sets that the library has and this processor runs, best first.
        chosen: the name of the instruction set in use.
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
        self._isa = found.index(wanted) if wanted else 0
        self.chosen = found[self._isa]

    def packed(self, codec: Codec, rows: Tensor, inputs: int) -> Tensor:
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
        if codec.levels not in _BITS:
            raise FormatError(f"the native library takes {' and '.join(_BITS)} codes, not {codec.levels}")
        if rows.dtype != torch.uint8 or rows.dim() != 2:
            raise FormatError(f"packed codes are uint8 [out, width], not {rows.dtype} {list(rows.shape)}")
        rows = rows.contiguous()
        outputs, width = rows.shape
        size = self._c.tz_packed_bytes(_c_int(outputs), _c_int(inputs), _BITS[codec.levels])
        if size == _REFUSED:
            raise self._refusal()
        made = torch.empty(size, dtype=torch.uint8, device="cpu")
        shape = _c_int(width), codec.radix, codec.per_byte, outputs, inputs
        self._run("tz_pack", _at(rows), *shape, _at(made), size, _threads())
        return made

    def rest(self, tensor: Tensor) -> None:
        """Tells the system that it may free the memory of a tensor until it is read again.

        A tensor that is mapped from a file is then read from the file; another one goes to swap, if there is any.
        """
        self._run("tz_rest", _at(tensor), tensor.nbytes)

    def trim(self) -> None:
        """Gives freed memory, which the C library keeps for later allocations, back to the system."""
        self._c.tz_trim()

    def linear(self, w: PackedCodes, x: Tensor) -> Tensor:
        """Computes a linear: float32 `[rows, in]` to float32 `[rows, out]`, bit for bit as `ternary.ternary_linear`.

        Raises:
            ValueError: `x` is not float32 `[rows, in]`.
            FormatError: the library takes no linear of that size.
        """
        y = _zeros(len(x), w.linear.outputs)
        self._product(w, x, _at(y), None)
        return y

    def sums(self, w: PackedCodes, x: Tensor) -> Tensor:
        """Rounds rows to int8 and multiplies them by the codes: float32 `[rows, in]` to exact int32 `[rows, out]`.

        Raises:
            ValueError: `x` is not float32 `[rows, in]`.
            FormatError: the library takes no linear of that size.
        """
        sums = torch.empty(len(x), w.linear.outputs, dtype=torch.int32, device="cpu")
        self._product(w, x, None, _at(sums))
        return sums

    def _product(self, w: PackedCodes, x: Tensor, y: int | None, sums: int | None) -> None:
        _check("x", x, torch.float32, (len(x), w.linear.inputs))
        x = x.contiguous()
        self._run("tz_linear", self._isa, ctypes.byref(w.linear), _at(x), _c_int(len(x)), y, sums, _threads())

    def embed(
        self,
        tables: list[tuple[Tensor, Tensor]],
        ids: list[Tensor],
        norm: NormTensors | None,
    ) -> Tensor:
        """Adds up a row of each of several int8 tables for every token, and applies a norm to the sums.

        Args:
            tables: for each table its codes, int8 `[rows, dim]`, and its scales, float32 `[rows]`.
            ids: for each table the rows of the tokens, int64 `[tokens]`.
            norm: the norm, whose gain and bias are float32 `[dim]`; None for no norm.

        Returns:
            float32 `[tokens, dim]`.

        Raises:
            ValueError: a tensor has another dtype or shape, or the numbers of tables and of tensors of ids differ.
            FormatError: an id is no row of its table, or a size is beyond the limits of the library.
        """
        rows, width = len(ids[0]), tables[0][0].shape[1]
        for (table, scale), chosen in zip(tables, ids, strict=True):
            _check("a table", table, torch.int8, (len(table), width))
            _check("the scales of a table", scale, torch.float32, (len(table),))
            _check("ids", chosen, torch.int64, (rows,))
        if norm is not None:
            for name, tensor in (("the gain of a norm", norm.gain), ("the bias of a norm", norm.bias)):
                _check(name, tensor, torch.float32, (width,))
        x = torch.empty(rows, width, dtype=torch.float32, device="cpu")
        count = len(tables)
        codes, scales, chosen_ids = (
            (ctypes.c_void_p * count)(*map(_at, column))
            for column in ([t for t, _ in tables], [s for _, s in tables], ids)
        )
        lengths = (ctypes.c_int64 * count)(*(len(table) for table, _ in tables))
        self._run(
            "tz_embed",
            *(self._isa, codes, scales, lengths, chosen_ids, count, _c_int(rows), _c_int(width)),
            *(None if norm is None else ctypes.byref(norm.norm), _at(x), _threads()),
        )
        return x

    def encode(self, encoder: Encoder, starts: Tensor, x: Tensor) -> None:
        """Runs all blocks of an encoder, and writes the last hidden states over `x`.

        Args:
            encoder: the C structure of the blocks.
            starts: int32 `[sequences + 1]`: the row of `x` where each sequence begins, then the row where the last
                ends.
            x: float32 `[tokens, width]`, the embeddings of all sequences, one after the other.

        Raises:
            ValueError: a tensor has another dtype or shape.
            FormatError: a sequence ends before it starts or beyond the last token, or the linears and norms of the
                encoder don't fit each other.
        """
        _check("x", x, torch.float32, (len(x), encoder.width))
        _check("starts", starts, torch.int32, (max(1, len(starts)),))
        sequences, tokens = _c_int(len(starts) - 1), _c_int(len(x))
        self._run("tz_encode", self._isa, ctypes.byref(encoder), _at(starts), sequences, _at(x), tokens, _threads())

    def _run(self, name: str, *arguments: Any) -> None:
        code = getattr(self._c, name)(*arguments)
        if code == _REFUSED:
            raise self._refusal()
        if code != 0:
            raise MemoryError("not enough memory for this batch")

    def _refusal(self) -> FormatError:
        why = self._c.tz_why().decode()
        hint = "fetch the model again, or run it with --backend reference"
        return FormatError(f"the native library can't run this model: {why}", hint=hint)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        kind = str(dtype).removeprefix("torch.")
        given = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} should be {kind} {list(shape)}, and is {given} {list(tensor.shape)}")


def _c_int(size: int) -> int:
    """Clamps a size to the range of a C int; the library refuses a size of -1 or of 2^31 - 1."""
    return max(-1, min(size, 2**31 - 1))


def _threads() -> int:
    return min(torch.get_num_threads(), MAX_THREADS, processors())


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float32, device="cpu")


def _at(tensor: Tensor) -> int:
    if not (tensor.device.type == "cpu" and tensor.is_contiguous()):
        raise ValueError(f"the library takes contiguous tensors on the CPU, not one on {tensor.device}")
    return tensor.data_ptr()


@cache
def library() -> Library:
    """Loads the library on the first call, and returns it.

    Raises:
        UnavailableError: the library was not built, has another version of the interface, can't be loaded, or can't run
            the instruction set that TERNARIZE_NATIVE_ISA names.
    """
    from ternarize_cli.kernels import native

    path = next((p for folder in native.__path__ if (p := Path(folder) / _NAME).is_file()), None)
    if path is None:
        raise UnavailableError(
            "its library was not built: no C++ compiler was found at installation, or it failed",
            hint="install a C++ compiler, then ternarize again with pip install -v, which shows its errors",
        )
    try:
        return Library(path)
    except OSError as e:
        raise UnavailableError(f"its library can't be loaded: {e}", hint="install ternarize again") from e
