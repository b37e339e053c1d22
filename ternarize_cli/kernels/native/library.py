"""The compiled library and its C interface (src/api.cpp), through ctypes.

It is built with the wheel where a C++ compiler is found, and lies beside this file; without it other backends serve.
Which instruction set runs is decided when it is loaded: the best that the processor has, or the one named by the
environment variable TERNARIZE_NATIVE_ISA.
"""

import ctypes
import os
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ternarize_cli.errors import UnavailableError
from ternarize_cli.packing import Codec

__all__ = ["Encoder", "Layer", "Library", "Linear", "PackedCodes", "library"]

PANEL, BLOCK = 32, 64
_NAME = "libternarize_native.so.1"
_POINTER = ctypes.c_void_p


class Linear(ctypes.Structure):
    """`tz::Linear`: pointers into tensors that the caller keeps."""

    _fields_ = [
        ("codes", _POINTER),
        ("scale", _POINTER),
        ("bias", _POINTER),
        *((name, ctypes.c_int32) for name in ("inputs", "outputs", "blocks", "panels")),
    ]


class Layer(ctypes.Structure):
    """`tz::Layer`."""

    _fields_ = [
        *((name, Linear) for name in ("qkv", "output", "up", "down")),
        *((name, _POINTER) for name in ("first_gain", "first_bias", "second_gain", "second_bias")),
    ]


class Encoder(ctypes.Structure):
    """`tz::Encoder`."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("layers", "width", "heads", "inner", "norm_first")),
        ("eps", ctypes.c_float),
        ("layer", ctypes.POINTER(Layer)),
    ]


class PackedCodes:
    """A ternary linear in the library's layout: 2 bits a weight, in panels of 32 outputs and blocks of 64 inputs.

    Attributes:
        codes: uint8; scale, bias: float32 `[outputs rounded up to 32]`.
        linear: the C structure that points at them.
    """

    def __init__(
        self, lib: "Library", codec: Codec, rows: Tensor, inputs: int, scale: Tensor, bias: Tensor | None
    ) -> None:
        """rows: uint8 `[out, width]`, as `codec` packs them; scale: `[out]` float; bias: `[out]` or None."""
        outputs = len(rows)
        panels, blocks = -(-outputs // PANEL), -(-inputs // BLOCK)
        self.codes = lib.packed(codec, rows, inputs)
        self.scale, self.bias = _zeros(2, panels * PANEL)
        self.scale[:outputs] = scale.float()
        if bias is not None:
            self.bias[:outputs] = bias.float()
        self.linear = Linear(
            self.codes.data_ptr(), self.scale.data_ptr(), self.bias.data_ptr(), inputs, outputs, blocks, panels
        )


class Library:
    """The functions, on tensors.

    Attributes:
        instruction_sets: those that this processor runs, best first.
        chosen: the name of the one in use.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError if the file can't be loaded, UnavailableError if TERNARIZE_NATIVE_ISA can't run."""
        self._c = ctypes.CDLL(str(path))
        self._c.tz_instruction_set.restype = ctypes.c_char_p
        self._c.tz_packed_bytes.restype = ctypes.c_int64
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
        """uint8 `[out, width]` of a codec → uint8, in the library's layout."""
        rows = rows.contiguous()
        made = torch.empty(self._c.tz_packed_bytes(len(rows), inputs), dtype=torch.uint8, device="cpu")
        shape = rows.shape[1], codec.radix, codec.per_byte, len(rows), inputs
        self._c.tz_pack(_at(rows), *shape, _at(made), _threads())
        return made

    def rest(self, tensor: Tensor) -> None:
        """Lets a tensor that is mapped from a file leave memory until it is read; others stay."""
        self._c.tz_rest(_at(tensor), ctypes.c_int64(tensor.nbytes))

    def trim(self) -> None:
        """Gives memory that was needed for a moment back to the system."""
        self._c.tz_trim()

    def linear(self, w: PackedCodes, x: Tensor) -> Tensor:
        """float32 `[rows, in]` → float32 `[rows, out]`, bit for bit what `ternary.ternary_linear` gives."""
        y = _zeros(len(x), w.linear.outputs)
        self._run("tz_linear", ctypes.byref(w.linear), _at(x := x.contiguous()), len(x), _at(y), None, _threads())
        return y

    def sums(self, w: PackedCodes, x: Tensor) -> Tensor:
        """float32 `[rows, in]` → int32 `[rows, out]`: the exact products of the rounded rows with the codes."""
        sums = torch.empty(len(x), w.linear.outputs, dtype=torch.int32, device="cpu")
        self._run("tz_linear", ctypes.byref(w.linear), _at(x := x.contiguous()), len(x), None, _at(sums), _threads())
        return sums

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
        """
        rows, width = len(ids[0]), tables[0][0].shape[1]
        x = _zeros(rows, width)
        gain, bias, eps = norm
        pointers = [
            (ctypes.c_void_p * len(tables))(*(_at(t).value for t in column))
            for column in ([t for t, _ in tables], [s for _, s in tables], ids)
        ]
        self._run(
            "tz_embed",
            *pointers,
            len(tables),
            rows,
            width,
            _at(gain),
            _at(bias),
            ctypes.c_float(eps),
            _at(x),
            _threads(),
        )
        return x

    def encode(self, encoder: Encoder, starts: Tensor, x: Tensor) -> None:
        """Runs all blocks in place.

        Args:
            encoder: the blocks.
            starts: int32 `[sequences + 1]`, where each sequence begins in `x`, and where the last ends.
            x: float32 `[tokens, width]`.

        Raises:
            ValueError: the shapes don't fit each other.
        """
        if x.shape != (int(starts[-1]), encoder.width) or bool((starts.diff() < 0).any()):
            raise ValueError(f"{list(x.shape)} is not what {len(starts) - 1} sequences take")
        sequences = len(starts) - 1
        self._run("tz_encode", ctypes.byref(encoder), _at(starts), sequences, _at(x), _threads())

    def _run(self, name: str, *arguments: object) -> None:
        if getattr(self._c, name)(self._isa, *arguments) != 0:
            raise MemoryError("not enough memory for this batch")


def _threads() -> int:
    return torch.get_num_threads()


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float32, device="cpu")


def _at(tensor: Tensor | None) -> ctypes.c_void_p:
    if tensor is not None and not (tensor.device.type == "cpu" and tensor.is_contiguous()):
        raise ValueError(f"the library takes contiguous tensors on the CPU, not one on {tensor.device}")
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@cache
def library() -> Library:
    """The library, loaded once.

    Raises:
        UnavailableError: it was not built, or can't be loaded here.
    """
    from ternarize_cli.kernels import native

    path = next((p for folder in native.__path__ if (p := Path(folder) / _NAME).is_file()), None)
    if path is None:
        raise UnavailableError(
            "its library was not built: no C++ compiler was found at installation",
            hint="install a C++ compiler and ternarize again",
        )
    try:
        return Library(path)
    except OSError as e:
        raise UnavailableError(f"its library can't be loaded: {e}", hint="install ternarize again") from e
