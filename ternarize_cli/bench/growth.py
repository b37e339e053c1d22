"""Fits how the time of a pass grows with the batch and with the length of texts, from a grid of points.

An encoder's work is a fixed part (reading weights, starting), a part for each token (the linears), and a part for each
pair of tokens of a text (attention). So, with all else fixed,

    over the batch, n texts or images of one size    t = a + b·n
    over the length, n tokens in each text           t = a + b·n + c·n²

None of the three coefficients can be negative. They are fitted to the medians by least squares of the relative errors,
because an error of 15% is as bad at 3 ms as at 300 ms. The largest error says how well the rule holds. If it is small,
two or three measurements predict any other point. If it is not, the costs change on the way: the fixed part may be
hidden behind the work, or a cache may be full.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ternarize_cli.bench.rows import BenchRow

__all__ = ["BATCH", "TOKENS", "Growth", "fit", "growths"]

BATCH, TOKENS = "batch", "tokens"
_DEGREE = {BATCH: 1, TOKENS: 2}


@dataclass(frozen=True)
class Growth:
    """The times of one candidate along one line of the grid, and the curve that fits them.

    Attributes:
        name: name of the candidate.
        along: the variable n, `BATCH` or `TOKENS`.
        fixed: the value that all points share: tokens of a text (or height and width of an image), or the batch.
        n: the values of n.
        median_ms: the median time at each n, in milliseconds.
        coefficients: a, b (and c) in milliseconds, the coefficients of the curve, a polynomial of n.
        deviation: the largest relative distance of a time from the curve.
        deviation_at: the n of this largest distance.
    """

    name: str
    along: str
    fixed: str
    n: tuple[int, ...]
    median_ms: tuple[float, ...]
    coefficients: tuple[float, ...]
    deviation: float
    deviation_at: int

    def at(self, n: float) -> float:
        """The value of the curve at n, in milliseconds."""
        return sum(c * n**power for power, c in enumerate(self.coefficients))


def growths(rows: Sequence[BenchRow]) -> list[Growth]:
    """Fits each candidate on each line of the grid that has more points than its curve has coefficients."""
    lines: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        if row.lengths is None and row.encoded is None:
            size = row.image or f"{row.tokens} tokens"
            lines.setdefault((row.name, BATCH, size), {})[row.batch] = row.median_ms
            if row.image is None:
                lines.setdefault((row.name, TOKENS, f"batch {row.batch}"), {})[row.tokens] = row.median_ms
    return [
        _growth(*line, times)
        for line, times in sorted(lines.items(), key=lambda entry: entry[0][1])
        if len(times) > _DEGREE[line[1]] + 1
    ]


def fit(n: Sequence[float], times: Sequence[float], degree: int) -> list[float]:
    """Fits a polynomial of n with coefficients ≥ 0 to times, by least squares of relative errors."""
    from scipy.optimize import nnls

    relative = np.vander(np.asarray(n, dtype=float), degree + 1, increasing=True) / np.asarray(times)[:, None]
    return [float(c) for c in nnls(relative, np.ones(len(times)))[0]]


def _growth(name: str, along: str, fixed: str, times: dict[int, float]) -> Growth:
    n = tuple(sorted(times))
    medians = tuple(times[value] for value in n)
    coefficients = tuple(round(c, 7) for c in fit(n, medians, _DEGREE[along]))
    found = Growth(name, along, fixed, n, medians, coefficients, 0.0, n[0])
    errors = [abs(found.at(value) / time - 1) for value, time in zip(n, medians, strict=True)]
    worst = max(range(len(n)), key=errors.__getitem__)
    return Growth(name, along, fixed, n, medians, coefficients, round(errors[worst], 4), n[worst])
