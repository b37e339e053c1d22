"""Counts codes, scales and magnitudes over the modules of a model, for both ways in which `inspect` reads one.

Codes need no unpacking: the bytes of a packed linear are counted, and each of the 256 values stands for a few codes.
Means are summed in double precision, so that they do not depend on the machine.
"""

from collections.abc import Mapping

import numpy as np

from ternarize_cli.compress.inspection import Histogram, TensorInfo
from ternarize_cli.format.codecs import Codec
from ternarize_cli.format.scheme import LEVELS, Artifact

__all__ = ["Survey", "code_counts"]

_BINS = 80
_WIDEST = {"ternary": 2.5, "binary": 2.5, "int2": 5.0, "int4": 10.0, "mixed": 10.0}
_WIDEST_DENSE = 5.0
_OCTAVES, _PER_OCTAVE = (-24, 8), 4


def code_counts(codec: Codec, packed: np.ndarray, in_features: int) -> dict[int, int]:
    """Counts the codes of a packed linear, and checks them.

    Args:
        codec: the codec of the codes.
        packed: uint8 `[out, codec.width(in)]`.
        in_features: number of inputs; padding behind them is not counted.

    Returns:
        For each code of the grid the number of weights that have it, codes ascending.

    Raises:
        ValueError: the dtype or the width is wrong, a byte or code is invalid, or padding has a wrong value.
    """
    codec.check(packed, in_features)
    found = np.bincount(packed.reshape(-1), minlength=len(codec.table))
    counts = {code: int((codec.table == code).sum(axis=1) @ found) for code in LEVELS[codec.levels]}
    counts[codec.padding] -= packed.shape[0] * (packed.shape[1] * codec.per_byte - in_features)
    return counts


class Survey:
    """Describes the ternary linears of a model one after the other, and counts values over all linears.

    Attributes:
        magnitudes: counts |w| / mean|w| or |w| / s; empty for a packed model.
    """

    def __init__(self, artifact: Artifact | None) -> None:
        """Begins with no values.

        Args:
            artifact: the description of the model; None at full precision.
        """
        widest = _WIDEST[artifact.levels] if artifact else _WIDEST_DENSE
        self.magnitudes = _BinCounter(0, widest, _BINS)
        self._exponents = _BinCounter(*_OCTAVES, (_OCTAVES[1] - _OCTAVES[0]) * _PER_OCTAVE)

    def ternary(
        self,
        name: str,
        shape: tuple[int, int],
        levels: str,
        size: int,
        counts: Mapping[int, int],
        scale: np.ndarray,
        error: float | None = None,
    ) -> TensorInfo:
        """Describes a linear of codes, and counts its scales.

        Args:
            name: the name of the module.
            shape: (out, in).
            levels: the name of the grid of its codes.
            size: bytes of weight and scales in the file.
            counts: for each code of the grid the number of weights that have it.
            scale: float32, the scales, in any shape.
            error: ‖W − s·c‖ / ‖W‖; None where W is gone.
        """
        self._exponents.add(np.log2(scale[scale > 0]))
        total = np.float32(sum(counts.values()))
        shares = {code: float(np.float32(count) / total) for code, count in counts.items()}
        return TensorInfo(
            name,
            "ternary",
            shape,
            size,
            True,
            levels=levels,
            codes=shares,
            zeros=shares.get(0, 0.0),
            scale_min=float(scale.min()),
            scale_mean=float(np.float32(scale.mean(dtype=np.float64))),
            scale_max=float(scale.max()),
            error=error,
        )

    def scales(self) -> Histogram | None:
        """The histogram of all scales that are not zero, without the empty bins at its ends; None if there are none."""
        counted = self._exponents.histogram()
        if counted is None:
            return None
        filled = [i for i, n in enumerate(counted.counts) if n]
        first, last = filled[0], filled[-1] + 1
        edges = tuple(2.0**x for x in counted.edges[first : last + 1])
        return Histogram(edges, counted.counts[first:last])


class _BinCounter:
    """Counts values of many arrays in equal bins from `low` to `high`."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self._low, self._step = low, (high - low) / bins
        self._counts = np.zeros(bins, dtype=np.int64)

    def add(self, values: np.ndarray) -> None:
        """Counts finite values, in any shape."""
        last = len(self._counts) - 1
        index = np.floor((values.reshape(-1) - self._low) / self._step).clip(0, last).astype(np.intp)
        self._counts += np.bincount(index, minlength=last + 1)

    def histogram(self) -> Histogram | None:
        """Returns the counts; None where nothing was counted."""
        edges = (self._low + self._step * i for i in range(len(self._counts) + 1))
        return Histogram(tuple(edges), tuple(int(n) for n in self._counts)) if self._counts.any() else None
