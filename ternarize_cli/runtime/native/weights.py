"""Weights of a model in the layout that the compiled library reads."""

from typing import Protocol

import numpy as np

from ternarize_cli.errors import FormatError
from ternarize_cli.format.codecs import Codec
from ternarize_cli.runtime.native.arrays import address, aligned
from ternarize_cli.runtime.native.interface import BITS, NativeDense, NativeLinear, NativeNorm

__all__ = ["BLOCK", "PANEL", "DenseWeights", "NormWeights", "PackedCodes", "Packer"]

PANEL, BLOCK = 32, 64
_KINDS = {"layer": 1, "rms": 2}


class Packer(Protocol):
    """What lays packed codes out: `library.Library`."""

    def packed(self, codec: Codec, rows: np.ndarray, inputs: int) -> np.ndarray:
        """Lays out packed codes, as `Library.packed`."""


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
        self, lib: Packer, codec: Codec, rows: np.ndarray, inputs: int, scale: np.ndarray, bias: np.ndarray | None
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
            shapes = [list(a.shape) for a in (scale, bias) if a is not None]
            raise FormatError(
                f"scale and bias of a linear of {outputs} outputs have the shapes {', '.join(map(str, shapes))}",
                hint="pack the model again",
            )
        self.codes = lib.packed(codec, rows, inputs)
        panels, blocks = -(-outputs // PANEL), -(-inputs // BLOCK)
        self.scale, self.bias = aligned(panels * PANEL), aligned(panels * PANEL)
        self.scale[:outputs] = scale
        if bias is not None:
            self.bias[:outputs] = bias
        self.linear = NativeLinear(
            *(address(self.codes), address(self.scale), address(self.bias)),
            *(inputs, outputs, blocks, panels, BITS[codec.levels]),
        )


class DenseWeights:
    """A linear of floats in the library's layout, in panels of 32 outputs.

    Attributes:
        weights: float32 `[panels, inputs, 32]`.
        bias: float32 `[panels * 32]`.
        linear: the C structure that points to both.
    """

    def __init__(self, weights: np.ndarray, bias: np.ndarray | None) -> None:
        """Lays out a linear.

        Args:
            weights: float `[out, in]`.
            bias: float `[out]`; None for no bias.
        """
        outputs, inputs = weights.shape
        if bias is not None and bias.shape != (outputs,):
            raise FormatError(f"a linear of {outputs} outputs has {list(bias.shape)} biases", hint="pack it again")
        panels = -(-outputs // PANEL)
        self.weights, self.bias = aligned(panels, inputs, PANEL), aligned(panels * PANEL)
        for panel in range(panels):
            some = weights[panel * PANEL : (panel + 1) * PANEL]
            self.weights[panel, :, : len(some)] = some.T
        if bias is not None:
            self.bias[:outputs] = bias
        self.linear = NativeDense(address(self.weights), address(self.bias), inputs, outputs)


class NormWeights:
    """A norm, with the arrays that the library reads.

    Attributes:
        gain, bias: float32 `[width]`; an RMS norm does not read its bias.
        norm: the C structure that points to both.
    """

    def __init__(self, kind: str, gain: np.ndarray, bias: np.ndarray, eps: float) -> None:
        """Keeps the arrays, or copies of those that are not float32, contiguous and aligned.

        Args:
            kind: "layer" or "rms".
            gain, bias: float `[width]`, of the same shape.
            eps: the epsilon.
        """
        self.gain, self.bias = (np.require(a, np.float32, ["C", "A"]) for a in (gain, bias))
        self.norm = NativeNorm(address(self.gain), address(self.bias), eps, _KINDS[kind])
