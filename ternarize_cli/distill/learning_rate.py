"""Chooses the peak learning rate of a student by its width, and what linears of other levels get of it.

Wide layers want smaller steps: Adam moves every weight by about the rate, and an output sums as many of them as the
layer is wide. How much smaller was measured at two widths: of the rates tried, 5e-4 was the best at 384 (1e-4 to 1e-3)
and 3e-4 at 768 (3e-4 to 8e-4). The power of the width between the two is -3/4 (docs/research/distillation.md,
"Learning rates").

Codes of int4 lie closer together than ternary ones: about 3/8 of a deviation of the weights instead of one and a half.
At a rate that moves ternary weights over a few thresholds, int4 weights jump to and fro.
"""

import math

__all__ = ["rate_for_width", "share_for_levels"]

_WIDTH, _RATE, _POWER = 384, 5e-4, -0.75
_LOWEST = 1e-4
_SHARES = {"int4": 0.2}


def rate_for_width(width: int) -> float:
    """Returns the peak learning rate for a student: 5e-4 · (width / 384)^(-3/4), rounded to one digit.

    Widths below 384 get the rate of 384, since nothing narrower was measured; no width gets less than 1e-4.

    Args:
        width: size of the hidden states.
    """
    rate = max(_LOWEST, _RATE * (max(width, _WIDTH) / _WIDTH) ** _POWER)
    unit: float = 10.0 ** math.floor(math.log10(rate))
    return float(f"{round(rate / unit) * unit:.0e}")


def share_for_levels(levels: str) -> float:
    """Returns what a linear's weights and scales get of the learning rate: a fifth for int4, all for other levels.

    Args:
        levels: a key of `format.scheme.LEVELS`.
    """
    return _SHARES.get(levels, 1.0)
