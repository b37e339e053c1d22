"""Draws quality against cost, a point for each model.

A model is *dominated* if another has at least as much quality at no more cost, and is better in one of the two. Models
that are not dominated make the frontier; the others are drawn grey, except the teacher and the evaluated model. Each
model has a marker of its own, which the legend names.

Costs are bytes of weights and milliseconds, on log axes, on which a factor of two has one length everywhere. Quality is
the mean retention, with its 95% interval; without a teacher it is the mean score.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import TYPE_CHECKING, Any

from ternarize_cli.measuring.figures import BLUE, GREEN, GREY, ORANGE, new_figure

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison, Evaluation

__all__ = ["CostPoint", "frontier", "pareto_figure", "points"]

_COLOURS = {"teacher": BLUE, "student": ORANGE, "other": GREEN}
_LONGEST = 34
_MARKERS = "o^vDPX<>phd8"
"""Of other models, which have no colour of their own; outlines, which still show where points coincide."""


@dataclass(frozen=True)
class CostPoint:
    """A model in the plot. `low` and `high` bound `quality`, if the interval is known; `role` decides the colour."""

    name: str
    role: str
    quality: float
    low: float | None
    high: float | None
    weights_bytes: int
    latency_ms: float | None


def points(comparison: "Comparison") -> list[CostPoint]:
    """Makes the points of models with a defined quality: the teacher, the first student, and others (roles)."""
    found = []
    if comparison.teacher is not None:
        found.append(_point(comparison.teacher, "teacher", 1.0, None))
    for i, student in enumerate(comparison.students):
        if comparison.teacher is not None:
            quality = comparison.mean_retention(i)
            interval = comparison.interval(i)
        else:
            quality, interval = sum(score.value for score in student.scores) / len(student.scores), None
        if quality is not None:
            found.append(_point(student, "other" if i else "student", quality, interval))
    return found


def _point(model: "Evaluation", role: str, quality: float, interval: tuple[float, float] | None) -> CostPoint:
    low, high = interval or (None, None)
    return CostPoint(model.name, role, quality, low, high, model.weights_bytes, model.latency_ms)


def frontier(of: Sequence[tuple[float, float]]) -> list[bool]:
    """Tells, for each pair of cost and quality, whether no other pair dominates it."""
    return [not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in of) for cost, quality in of]


def pareto_figure(comparison: "Comparison", title: str) -> Any:
    """Draws a matplotlib figure: quality against bytes and, if latencies are known, against latency."""
    shown = points(comparison)
    timed = [p for p in shown if p.latency_ms is not None]
    panels: list[tuple[str, list[CostPoint], Callable[[CostPoint], float], Callable[[float], str]]] = [
        ("bytes of weights", shown, lambda p: p.weights_bytes, _bytes)
    ]
    if timed:
        panels.append(("time to encode 8 items, median", timed, lambda p: p.latency_ms or 0.0, _milliseconds))
    figure = new_figure(title, width=6.2 * len(panels), height=4.8)
    whole = comparison.teacher is not None
    other = cycle(_MARKERS)
    markers = {p.name: {"teacher": "s", "student": "*"}.get(p.role) or next(other) for p in shown}
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (label, models, cost, unit) in zip(axes, panels, strict=True):
        _panel(axis, [(max(cost(p), 1e-3), p) for p in models], markers, unit)
        axis.set_xlabel(label)
        if whole:
            axis.axhline(1.0, color=BLUE, linewidth=0.8, linestyle=":", alpha=0.7, zorder=1)
    axes[0].set_ylabel("quality kept, mean over the tasks" if whole else "mean score")
    if whole:
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(2 * len(panels), len(names)), fontsize=8)
    return figure


def _panel(
    axis: Any, models: Sequence[tuple[float, CostPoint]], markers: Mapping[str, str], unit: Callable[[float], str]
) -> None:
    on = frontier([(cost, p.quality) for cost, p in models])
    edge = sorted((cost, p.quality) for (cost, p), best in zip(models, on, strict=True) if best)
    corners = [*edge[:1], *(corner for (_, q), (c, r) in pairwise(edge) for corner in ((c, q), (c, r)))]
    axis.plot(*zip(*corners, strict=True), color=GREY, linewidth=1, alpha=0.7, zorder=1)
    for (cost, p), best in zip(models, on, strict=True):
        colour = _COLOURS[p.role] if best or p.role != "other" else GREY
        if p.low is not None and p.high is not None:
            axis.vlines(cost, p.low, p.high, color=colour, linewidth=1.4, alpha=0.6, zorder=2)
        marker = markers[p.name]
        name = p.name if len(p.name) <= _LONGEST else p.name[: _LONGEST - 1] + "…"
        fill = "none" if p.role == "other" else "full"
        size = 13 if marker == "*" else 8
        axis.plot(cost, p.quality, marker, color=colour, markersize=size, fillstyle=fill, label=name, zorder=3)
    axis.set_xscale("log")
    costs = [cost for cost, _ in models]
    axis.set_xlim(min(costs) / 1.6, max(costs) * 1.6)
    axis.set_ymargin(0.12)
    axis.xaxis.set_major_locator(_locator())
    axis.xaxis.set_major_formatter(lambda value, _: unit(value))
    axis.xaxis.set_minor_formatter(lambda value, _: "")
    axis.grid(alpha=0.25)


def _locator() -> Any:
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1, 2, 5), numticks=12)


def _bytes(value: float) -> str:
    return f"{value / 1e9:g} GB" if value >= 1e9 else f"{value / 1e6:g} MB" if value >= 1e5 else f"{value / 1e3:g} kB"


def _milliseconds(value: float) -> str:
    return f"{value / 1e3:g} s" if value >= 1e3 else f"{value:g} ms"
