"""The compiled library (src/api.cpp), on tensors.

It is built with the wheel where a C++ compiler is found, and lies beside this file; without it other backends serve.
Which instruction set runs is decided when it is loaded: the best that the processor has, or the one named by the
environment variable TERNARIZE_NATIVE_ISA.

The library can't see how large a tensor is. So every size that it gets is read from a tensor here, and tensors that
belong together are held against each other; the library holds the sizes against each other and against its limits
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
from ternarize_cli.kernels.native.interface import MAX_THREADS, Encoder, NativeLayer, NativeLinear, declare

__all__ = ["Encoder", "Library", "NativeLayer", "NativeLinear", "PackedCodes", "library"]

PANEL, BLOCK = 32, 64
_NAME = "libternarize_native.so.1"
_REFUSED = -2


class PackedCodes:
    """A ternary linear in the library's layout: 2 bits a weight, in panels of 32 outputs and blocks of 64 inputs.

    Attributes:
        codes: uint8; scale, bias: float32 `[outputs rounded up to 32]`.
        linear: the C structure that points at them.
    """

    def __init__(
        self, lib: "Library", codec: Codec, rows: Tensor, inputs: int, scale: Tensor, bias: Tensor | None
    ) -> None:
        """rows: uint8 `[out, width]`, as `codec` packs them; scale: `[out]` float; bias: `[out]` or None.

        Raises:
            FormatError: the shapes don't fit each other, or the library takes no linear of that size.
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
            self.codes.data_ptr(), self.scale.data_ptr(), self.bias.data_ptr(), inputs, outputs, blocks, panels
        )


class Library:
    """The functions, on tensors.

    Attributes:
        instruction_sets: those that this processor runs, best first.
        chosen: the name of the one in use.
    """

    def __init__(self, path: Path) -> None:
        """Loads the library.

        Raises:
            OSError: the file can't be loaded.
            UnavailableError: TERNARIZE_NATIVE_ISA can't run here, or the library is of another version.
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
        """uint8 `[out, width]` of a codec → uint8, in the library's layout.

        Raises:
            FormatError: `width` is not what `inputs` codes take, or the library takes no linear of that size.
        """
        if rows.dtype != torch.uint8 or rows.dim() != 2:
            raise FormatError(f"packed codes are uint8 [out, width], not {rows.dtype} {list(rows.shape)}")
        rows = rows.contiguous()
        outputs, width = rows.shape
        size = self._c.tz_packed_bytes(_c_int(outputs), _c_int(inputs))
        if size == _REFUSED:
            raise self._refusal()
        made = torch.empty(size, dtype=torch.uint8, device="cpu")
        shape = _c_int(width), codec.radix, codec.per_byte, outputs, inputs
        self._run("tz_pack", _at(rows), *shape, _at(made), size, _threads())
        return made

    def rest(self, tensor: Tensor) -> None:
        """Lets a tensor mapped from a file leave memory until it is read; others go to swap, if there is some."""
        self._run("tz_rest", _at(tensor), tensor.nbytes)

    def trim(self) -> None:
        """Gives memory that was needed for a moment back to the system."""
        self._c.tz_trim()

    def linear(self, w: PackedCodes, x: Tensor) -> Tensor:
        """float32 `[rows, in]` → float32 `[rows, out]`, bit for bit what `ternary.ternary_linear` gives.

        Raises:
            ValueError: `x` is not float32 `[rows, in]`.
            FormatError: the library takes no linear of that size.
        """
        y = _zeros(len(x), w.linear.outputs)
        self._product(w, x, _at(y), None)
        return y

    def sums(self, w: PackedCodes, x: Tensor) -> Tensor:
        """float32 `[rows, in]` → int32 `[rows, out]`: the exact products of the rounded rows with the codes.

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
        norm: tuple[Tensor, Tensor, float],
    ) -> Tensor:
        """The sum of the rows of int8 tables, normalised.

        Args:
            tables: pairs of int8 `[rows, dim]` and float32 `[rows]`.
            ids: for each table int64 `[tokens]`, rows that exist.
            norm: gain, bias and eps of a layer norm.

        Returns:
            float32 `[tokens, dim]`.

        Raises:
            ValueError: a tensor has another type or shape, or there is not a tensor of ids for each table.
            FormatError: an id is no row of its table, or the library takes no such sizes.
        """
        rows, width = len(ids[0]), tables[0][0].shape[1]
        gain, bias, eps = norm
        for (table, scale), chosen in zip(tables, ids, strict=True):
            _check("a table", table, torch.int8, (len(table), width))
            _check("the scales of a table", scale, torch.float32, (len(table),))
            _check("ids", chosen, torch.int64, (rows,))
        for name, tensor in (("the gain of a norm", gain), ("the bias of a norm", bias)):
            _check(name, tensor, torch.float32, (width,))
        x = _zeros(rows, width)
        count = len(tables)
        codes, scales, chosen_ids = (
            (ctypes.c_void_p * count)(*map(_at, column))
            for column in ([t for t, _ in tables], [s for _, s in tables], ids)
        )
        lengths = (ctypes.c_int64 * count)(*(len(table) for table, _ in tables))
        self._run(
            "tz_embed",
            *(self._isa, codes, scales, lengths, chosen_ids, count, _c_int(rows), _c_int(width)),
            *(_at(gain), _at(bias), eps, _at(x), _threads()),
        )
        return x

    def encode(self, encoder: Encoder, starts: Tensor, x: Tensor) -> None:
        """Runs all blocks in place.

        Args:
            encoder: the blocks.
            starts: int32 `[sequences + 1]`, where each sequence begins in `x`, and where the last ends.
            x: float32 `[tokens, width]`.

        Raises:
            ValueError: a tensor has another type or shape.
            FormatError: sequences end before they start or behind the last token, or parts of the encoder don't fit
                each other.
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
        return FormatError(f"the native library refuses it: {why}", hint=hint)


def _check(name: str, tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    if tensor.dtype != dtype or tensor.shape != shape:
        kind = str(dtype).removeprefix("torch.")
        given = str(tensor.dtype).removeprefix("torch.")
        raise ValueError(f"{name} should be {kind} {list(shape)}, and is {given} {list(tensor.shape)}")


def _c_int(size: int) -> int:
    """A size as C counts it; one that is too large for it is refused there like any other of its kind."""
    return max(-1, min(size, 2**31 - 1))


def _threads() -> int:
    return min(torch.get_num_threads(), MAX_THREADS)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float32, device="cpu")


def _at(tensor: Tensor) -> int:
    if not (tensor.device.type == "cpu" and tensor.is_contiguous()):
        raise ValueError(f"the library takes contiguous tensors on the CPU, not one on {tensor.device}")
    return tensor.data_ptr()


@cache
def library() -> Library:
    """The library, loaded once.

    Raises:
        UnavailableError: it was not built, is of another version, or can't be loaded here.
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
