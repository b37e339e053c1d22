"""Draws quality against cost, a point for each model.

A model is *dominated* if another has at least as much quality at no more cost, and is better in one of the two. Models
that are not dominated make the frontier; the others are drawn grey, except the teacher and the evaluated model.

Costs are bytes of weights and milliseconds, on log axes, on which a factor of two has one length everywhere. Quality is
the mean retention, with its 95% interval; without a teacher it is the mean score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ternarize_cli.measuring.figures import BLUE, GREEN, GREY, ORANGE, new_figure

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison, Evaluation

__all__ = ["CostPoint", "frontier", "pareto_figure", "points"]

_LONGEST = 34
_COLOURS = {"teacher": BLUE, "student": ORANGE, "other": GREEN}


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
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axis, (label, models, cost, unit) in zip(axes, panels, strict=True):
        _panel(axis, [(max(cost(p), 1e-3), p) for p in models], unit)
        axis.set_xlabel(label)
        if whole:
            axis.axhline(1.0, color=BLUE, linewidth=0.8, linestyle=":", alpha=0.7, zorder=1)
    axes[0].set_ylabel("quality kept, mean over the tasks" if whole else "mean score")
    if whole:
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    _label_all(figure, axes, whole)
    return figure


def _panel(axis: Any, models: Sequence[tuple[float, CostPoint]], unit: Callable[[float], str]) -> None:
    on = frontier([(cost, p.quality) for cost, p in models])
    edge = sorted((cost, p.quality) for (cost, p), best in zip(models, on, strict=True) if best)
    corners = [*edge[:1], *(corner for (_, q), (c, r) in pairwise(edge) for corner in ((c, q), (c, r)))]
    axis.plot(*zip(*corners, strict=True), color=GREY, linewidth=1, alpha=0.7, zorder=1, label="frontier")
    axis.corners, axis.labelled = corners, []
    for (cost, p), best in zip(models, on, strict=True):
        colour = _COLOURS[p.role] if best or p.role != "other" else GREY
        if p.low is not None and p.high is not None:
            axis.vlines(cost, p.low, p.high, color=colour, linewidth=1.4, alpha=0.6, zorder=2)
        marker = {"teacher": "s", "student": "*", "other": "o"}[p.role]
        axis.plot(cost, p.quality, marker, color=colour, markersize=13 if marker == "*" else 7, zorder=3)
        name = p.name if len(p.name) <= _LONGEST else p.name[: _LONGEST - 1] + "…"
        axis.labelled.append((name, cost, p.quality, p.low or p.quality, p.high or p.quality, colour))
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


def _label_all(figure: Any, axes: Sequence[Any], whole: bool) -> None:
    """Writes each point's name beside it, at a place where it covers no other name, point or interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    figure.set_layout_engine("none")  # a new layout would move the axes under the names
    for axis in axes:
        taken = [_span(axis, *spot[1:5]) for spot in axis.labelled]
        taken += [_line(axis, a, b) for a, b in pairwise(axis.corners)]
        left, right = axis.get_xlim()
        taken += [_line(axis, (left, 1.0), (right, 1.0))] if whole else []
        for spot in sorted(axis.labelled, key=lambda spot: -spot[2]):
            taken.append(_place(axis, canvas.get_renderer(), spot, taken))


def _span(axis: Any, cost: float, quality: float, low: float, high: float) -> Any:
    """The box that a point and its interval cover, in pixels."""
    from matplotlib.transforms import Bbox

    (x, y), (_, bottom), (_, top) = axis.transData.transform([(cost, quality), (cost, low), (cost, high)])
    return Bbox.from_extents(x - 6, min(bottom, y - 6), x + 6, max(top, y + 6))


def _line(axis: Any, a: tuple[float, float], b: tuple[float, float]) -> Any:
    """The box that a horizontal or vertical line covers, in pixels."""
    from matplotlib.transforms import Bbox

    (x, y), (u, v) = axis.transData.transform([a, b])
    return Bbox.from_extents(min(x, u), min(y, v) - 1, max(x, u) + 1, max(y, v) + 1)


def _place(axis: Any, renderer: Any, spot: tuple[Any, ...], taken: Sequence[Any]) -> Any:
    """Tries places around a point, near ones first; returns the box that the label covers."""
    name, cost, quality, _, _, colour = spot
    text = axis.annotate(
        name,
        (cost, quality),
        xytext=(0, 0),
        textcoords="offset points",
        fontsize=8,
        color=colour,
        va="center",
        zorder=4,
    )
    tries = [
        (side * reach, rise, "left" if side > 0 else "right" if side < 0 else "center")
        for distance in range(9, 120, 8)
        for side, reach, rise in (
            (1, 9, distance - 9),
            (-1, 9, distance - 9),
            (1, 9, 9 - distance),
            (-1, 9, 9 - distance),
            (0, 0, distance + 3),
            (0, 0, -distance - 3),
        )
    ]
    best, least = None, float("inf")
    for x, y, side in tries:
        text.set_position((x, y))
        text.set_horizontalalignment(side)
        box = text.get_window_extent(renderer)
        outside = not (
            axis.bbox.x0 <= box.x0 and box.x1 <= axis.bbox.x1 and axis.bbox.y0 <= box.y0 <= box.y1 <= axis.bbox.y1
        )
        clashes = sum(box.overlaps(other) for other in taken) + 2 * outside
        if clashes < least:
            best, least = (x, y, side), clashes
        if not clashes:
            break
    assert best is not None
    text.set_position(best[:2])
    text.set_horizontalalignment(best[2])
    if abs(best[1]) > 20:
        axis.annotate(
            "",
            (cost, quality),
            xytext=(best[0] * 0.6, best[1] - (6 if best[1] > 0 else -6)),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "alpha": 0.7},
        )
    return text.get_window_extent(renderer)
