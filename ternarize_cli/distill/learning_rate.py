"""Chooses the peak learning rate of a student by its width.

Wide layers want smaller steps: Adam moves every weight by about the rate, and an output sums as many of them as the
layer is wide. How much smaller was measured at one width: at 384, 5e-4 was the best of the rates tried, from 1e-4 to
1e-3. At width 768 only 3e-4 was tried, and is kept. The power between the two is -3/4
(docs/research/distillation.md, "Learning rates").
"""

import math

__all__ = ["rate_for_width"]

_WIDTH, _RATE, _POWER = 384, 5e-4, -0.75
_LOWEST = 1e-4


def rate_for_width(width: int) -> float:
    """Returns the peak learning rate for a student: 5e-4 · (width / 384)^(-3/4), rounded to one digit.

    Widths below 384 get the rate of 384, since nothing narrower was measured; no width gets less than 1e-4.

    Args:
        width: size of the hidden states.
    """
    rate = max(_LOWEST, _RATE * (max(width, _WIDTH) / _WIDTH) ** _POWER)
    unit: float = 10.0 ** math.floor(math.log10(rate))
    return float(f"{round(rate / unit) * unit:.0e}")
