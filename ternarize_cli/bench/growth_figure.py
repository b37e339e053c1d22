"""Draws `growth`: a panel for the batch and one for the length, with a curve for each line of the grid.

Dots are medians, and curves are fits. Both axes start at zero, so that costs in proportion to n show as a straight line
through the origin.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ternarize_cli.bench.growth import BATCH, TOKENS, Growth
from ternarize_cli.bench.run import BenchReport
from ternarize_cli.measuring.figures import new_figure

__all__ = ["growth_figure"]

_PANELS = {
    BATCH: ("over the batch: t = a + b·n", "batch"),
    TOKENS: ("over the length: t = a + b·n + c·n²", "tokens of a text"),
}


def growth_figure(report: BenchReport) -> Any:
    """Draws a matplotlib figure of a report's growth, which must not be empty."""
    panels = {along: [line for line in report.growth if line.along == along] for along in _PANELS}
    shown = {along: lines for along, lines in panels.items() if lines}
    names = dict.fromkeys(line.name for line in report.growth)
    whose = report.model if len(names) > 1 else f"{report.model}, {next(iter(names))}"
    figure = new_figure(f"{whose}: time of a forward pass", width=5.2 * len(shown), height=3.9)
    for axis, (along, lines) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown.items(), strict=True):
        _panel(axis, along, lines)
    return figure


def _panel(axis: Any, along: str, lines: Sequence[Growth]) -> None:
    from matplotlib import colormaps

    title, label = _PANELS[along]
    several = len({line.name for line in lines}) > 1
    for i, line in enumerate(sorted(lines, key=lambda line: -line.median_ms[-1])):
        colour = colormaps["viridis"](0.85 * i / max(1, len(lines) - 1))
        x = np.linspace(0, max(line.n), 200)
        name = f"{line.name}, {line.fixed}" if several else line.fixed
        axis.plot(x, [line.at(value) for value in x], color=colour, linewidth=1.2)
        axis.plot(line.n, line.median_ms, "o", color=colour, markersize=5, label=f"{name}: within {line.deviation:.0%}")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(label)
    axis.set_ylabel("milliseconds")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
