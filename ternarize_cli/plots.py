"""Figures: bars of text for the terminal, and files drawn by matplotlib (the extra `plot`).

A terminal bar is made of block characters that are an eighth of a cell apart, so 20 cells show 160 steps:

    0.250 ████████▊             4.4%
    0.375 █████████▌            4.8%

Figures are drawn without pyplot: no window, no global state, the same on a server.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternarize_cli import files
from ternarize_cli.errors import InputError, UnavailableError

if TYPE_CHECKING:
    from ternarize_cli.inspect import Histogram, Inspection
    from ternarize_cli.sweep import Sweep

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "bars",
    "check_plot",
    "histogram_bars",
    "new_figure",
    "plot_inspection",
    "plot_sweep",
    "plot_training",
    "require_matplotlib",
    "save_figure",
]

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_FORMATS = (".png", ".svg", ".pdf")
_MEASURES = {
    "error": "relative error of the weights",
    "zeros": "share of zero codes",
    "cosine": "mean cosine to the original",
    "sts": "STS, Spearman",
}
BLUE, ORANGE, GREEN, GREY = "#3b6ea8", "#d1712a", "#4a8f5c", "#8a8a8a"


def bars(rows: Sequence[tuple[str, float]], width: int) -> list[str]:
    """Lines of `width` characters: label, bar, and the value as a percentage. The largest value fills its bar.

    Args:
        rows: labels, and shares from 0 to 1.
        width: of the terminal, in characters.
    """
    side = max(len(label) for label, _ in rows)
    cells = max(4, width - side - 8)
    largest = max(value for _, value in rows) or 1.0
    lines = []
    for label, value in rows:
        eighths = max(round(8 * cells * value / largest), value > 0)  # what is there can be seen
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{label:>{side}} {bar:<{cells}} {value:>6.1%}")
    return lines


def histogram_bars(
    histogram: "Histogram", width: int, *, marks: Sequence[tuple[float, str]] = (), open_end: bool = False
) -> list[str]:
    """A histogram as bars, a line for each bin, labelled with the bin's lower edge.

    Args:
        histogram: merge it to as many bins as there should be lines.
        width: of the terminal, in characters.
        marks: edges in front of which a rule with a text is drawn.
        open_end: whether the last bin holds what is larger, too.
    """
    total = sum(histogram.counts) or 1
    digits = 3 if histogram.edges[-1] >= 0.1 else 6
    labels = [f"{edge:.{digits}f}" for edge in histogram.edges[:-1]]
    if open_end:
        labels[-1] = f"≥ {labels[-1]}"
    drawn = bars([(label, n / total) for label, n in zip(labels, histogram.counts, strict=True)], width)
    for value, text in sorted(marks, reverse=True):
        at = next((i for i, edge in enumerate(histogram.edges) if edge >= value * (1 - 1e-6)), len(drawn))
        if at < len(drawn):
            drawn.insert(at, f"{'─' * len(max(labels, key=len))} {text} ".ljust(width, "─"))
    return drawn


def check_plot(path: Path, *, force: bool) -> None:
    """Refuses a figure that could not be written, before any work is done.

    Raises:
        InputError: the name does not end in .png, .svg or .pdf.
        UnavailableError: matplotlib is not installed.
        OutputExistsError, OutputError: as `files.check_output`.
    """
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"--plot {path}: a figure's name ends in {', '.join(_FORMATS)}", hint="--plot figure.png")
    require_matplotlib("--plot")
    files.check_output(path, force=force, folder=False)


def require_matplotlib(option: str) -> None:
    """Refuses an option that draws where matplotlib is missing.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UnavailableError(f"{option} needs matplotlib", hint="pip install 'ternarize-cli[plot]'")


def plot_inspection(found: "Inspection", title: str, path: Path, *, force: bool = False) -> None:
    """Draws what `inspect` found: histograms, and error, codes and scales of each linear.

    Raises:
        InputError, UnavailableError, OutputExistsError, OutputError: as `check_plot`.
    """
    check_plot(path, force=force)
    linears = [m for m in found.modules if m.mean_abs is not None or m.codes is not None]
    ternary = [m for m in linears if m.codes is not None]
    rows = 2 if ternary else 1
    figure = new_figure(f"{title}: {found.stage}, {len(ternary or linears)} linears", width=11, height=1 + 3.6 * rows)
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    if not ternary:
        _magnitudes(axes[0], found)
        x = range(len(linears))
        axes[1].semilogy(x, [m.max_abs or None for m in linears], ".", color=ORANGE, label="max |w|")
        axes[1].semilogy(x, [m.mean_abs or None for m in linears], ".", color=BLUE, label="mean |w|")
        _by_layer(axes[1], "weights of each linear", "magnitude")
        axes[1].legend()
    else:
        x = range(len(ternary))
        _code_shares(axes[0], [m.codes or {} for m in ternary])
        low, mean, high = ([getattr(m, f"scale_{k}") for m in ternary] for k in ("min", "mean", "max"))
        axes[1].vlines(x, low, high, color=BLUE, alpha=0.45, linewidth=2, label="min to max")
        axes[1].plot(x, mean, ".", color=BLUE, label="mean")
        axes[1].set_yscale("log")
        _by_layer(axes[1], "scales of each linear", "scale")
        axes[1].legend()
        if found.magnitudes is not None:
            _magnitudes(axes[2], found)
            error = [m.error or 0.0 for m in ternary]
            axes[3].plot(x, error, ".-", color=ORANGE, linewidth=0.8)
            worst = max(x, key=lambda i: error[i])
            left = worst < len(ternary) / 2
            axes[3].annotate(
                ternary[worst].name,
                (worst, error[worst]),
                textcoords="offset points",
                xytext=(6 if left else -6, 4),
                ha="left" if left else "right",
                fontsize=7,
            )
            axes[3].set_ymargin(0.15)
            _by_layer(axes[3], "relative error of each linear, ‖W − s·c‖ / ‖W‖", "error")
        else:
            _zeros(axes[2], [m.zeros or 0.0 for m in ternary])
            _scales(axes[3], found)
    save_figure(figure, path, force=force)


def plot_sweep(sweep: "Sweep", title: str, path: Path, *, force: bool = False) -> None:
    """Draws a beta sweep: a panel for each measure, beta along x, the rule "optimal" as a line across.

    Raises:
        InputError, UnavailableError, OutputExistsError, OutputError: as `check_plot`.
    """
    check_plot(path, force=force)
    shown = sweep.measures
    columns = 2
    height = 1 + 3.4 * -(-len(shown) // columns)
    figure = new_figure(f"{title}: absmean over beta, one scale per {sweep.granularity}", width=10, height=height)
    axes = figure.subplots(-(-len(shown) // columns), columns, squeeze=False).flatten()
    for axis, key in zip(axes, shown, strict=False):
        betas = [row.beta for row in sweep.absmean]
        values = [getattr(row, key) for row in sweep.absmean]
        axis.plot(betas, values, "o-", color=BLUE, label="absmean")
        if getattr(sweep.optimal, key) is not None:
            axis.axhline(getattr(sweep.optimal, key), color=ORANGE, linestyle="--", label="optimal")
        if key == "sts" and sweep.teacher_sts is not None:
            axis.axhline(sweep.teacher_sts, color=GREY, linestyle=":", label="original")
        best = sweep.best(key)
        if best is not None:
            label = f"best beta: {best.beta:g}"
            axis.plot([best.beta], [getattr(best, key)], "*", color=GREEN, markersize=16, label=label)
        axis.set_title(_MEASURES[key], fontsize=10)
        axis.set_xlabel("beta")
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8)
    for axis in axes[len(shown) :]:
        axis.remove()
    save_figure(figure, path, force=force)


def plot_training(readings: Sequence[Mapping[str, Any]], title: str, path: Path, *, force: bool = False) -> None:
    """Draws the readings of a metrics.jsonl: each part of the loss, and what held-out data shows, over the steps.

    Raises:
        InputError, UnavailableError, OutputExistsError, OutputError: as `check_plot`.
    """
    check_plot(path, force=force)
    figure = new_figure(f"{title}: distillation", width=10, height=4)
    losses, held = figure.subplots(1, 2)
    for name in readings[-1]["losses"] if readings else ():
        losses.plot([r["step"] for r in readings], [r["losses"][name] for r in readings], label=name)
    losses.set_yscale("log")
    losses.set_title("parts of the loss, smoothed", fontsize=10)
    before = [None, *(r["cosine"] for r in readings)]
    looked = [r for r, old in zip(readings, before, strict=False) if r["cosine"] not in (None, old)]
    for name, colour in (("cosine", BLUE), ("agreement", ORANGE)):
        held.plot([r["step"] for r in looked], [r[name] for r in looked], "o-", color=colour, label=name)
    held.set_title("held-out data: cosine to the teacher, agreement of similarities", fontsize=10)
    for axis in (losses, held):
        axis.set_xlabel("step")
        axis.grid(alpha=0.25)
        if axis.lines:
            axis.legend(fontsize=8)
    save_figure(figure, path, force=force)


def new_figure(title: str, *, width: float, height: float) -> Any:
    """An empty matplotlib figure, its size in inches; axes find their own places."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def save_figure(figure: Any, path: Path, *, force: bool) -> None:
    """Writes a figure in the format that the path ends in."""
    with files.atomic_file(path, force=force) as partial:
        figure.savefig(partial, format=path.suffix.lower()[1:], dpi=130)


def _by_layer(axis: Any, title: str, unit: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("linear, in the model's order")
    axis.set_ylabel(unit)
    axis.grid(alpha=0.25)


def _magnitudes(axis: Any, found: "Inspection") -> None:
    histogram = found.magnitudes
    assert histogram is not None
    total = sum(histogram.counts)
    widths = [b - a for a, b in zip(histogram.edges, histogram.edges[1:], strict=False)]
    axis.bar(histogram.edges[:-1], [n / total for n in histogram.counts], widths, align="edge", color=BLUE)
    for i, threshold in enumerate(found.thresholds):
        axis.axvline(threshold, color=ORANGE, linestyle="--", label="threshold" if i == 0 else None)
    if found.artifact is None:
        for beta in (1, 2, 3):
            axis.axvline(beta / 2, color=ORANGE, linestyle="--", linewidth=1)
            axis.text(beta / 2, 0.99, f" β {beta}", color=ORANGE, va="top", transform=axis.get_xaxis_transform())
    elif found.thresholds:
        axis.legend()
    unit = "|w| / scale" if found.artifact else "|w| / mean |w| of its matrix"
    axis.set_title(f"all weights: {unit}" + ("" if found.artifact else ", and absmean's thresholds"), fontsize=10)
    axis.set_xlabel(f"{unit} (the last bar holds all above)")
    axis.set_ylabel("share of weights")
    axis.set_xlim(0, histogram.edges[-1])


def _code_shares(axis: Any, shares: Sequence[dict[int, float]]) -> None:
    from matplotlib import colormaps

    codes = sorted(shares[0])
    below = [0.0] * len(shares)
    for code in codes:
        heights = [layer[code] for layer in shares]
        place = codes.index(code) / max(1, len(codes) - 1)
        colour = "#dddddd" if code == 0 else colormaps["coolwarm"](place)
        axis.bar(range(len(shares)), heights, 1.0, below, color=colour, label=f"{code:+d}" if code else "0")
        below = [a + b for a, b in zip(below, heights, strict=True)]
    axis.set_ylim(0, 1)
    axis.set_xlim(-0.5, len(shares) - 0.5)
    _by_layer(axis, "codes of each linear", "share")
    if len(codes) <= 4:
        axis.legend(loc="center right", reverse=True)


def _zeros(axis: Any, zeros: Sequence[float]) -> None:
    axis.plot(range(len(zeros)), zeros, ".-", color=ORANGE, linewidth=0.8)
    _by_layer(axis, "zeros of each linear", "share of zero codes")


def _scales(axis: Any, found: "Inspection") -> None:
    histogram = found.scales
    if histogram is not None:
        widths = [b - a for a, b in zip(histogram.edges, histogram.edges[1:], strict=False)]
        axis.bar(histogram.edges[:-1], histogram.counts, widths, align="edge", color=BLUE, edgecolor="white")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title("all scales", fontsize=10)
    axis.set_xlabel("scale")
    axis.set_ylabel("how many")
