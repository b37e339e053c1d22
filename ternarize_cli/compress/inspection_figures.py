"""Figures of `inspect`: histograms as bars of text, and a page of panels as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternarize_cli.errors import counted
from ternarize_cli.measuring.figures import BLUE, ORANGE, bars, check_plot, new_figure, save_figure

if TYPE_CHECKING:
    from ternarize_cli.compress.inspection import Histogram, Inspection

__all__ = ["histogram_bars", "plot_inspection"]


def histogram_bars(
    histogram: "Histogram", width: int, *, marks: Sequence[tuple[float, str]] = (), open_end: bool = False
) -> list[str]:
    """Draws a histogram as lines of text: a bar for each bin, labelled with the bin's lower edge.

    Args:
        histogram: what to draw, merged to as many bins as there should be lines.
        width: width of the terminal in characters.
        marks: values in front of whose bins a line is drawn, each with the text on that line.
        open_end: whether the last bin also counts larger values.
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


def plot_inspection(found: "Inspection", title: str, path: Path, *, force: bool = False) -> None:
    """Draws what `inspect` found to a file: histograms, and error, codes and scales of each linear.

    Raises:
        InputError: the name of the file does not end in .png, .svg or .pdf.
        UnavailableError: matplotlib is not installed.
        OutputError, OutputExistsError: the file can't be written, or exists and `force` is false.
    """
    check_plot(path, force=force)
    linears = [m for m in found.modules if m.mean_abs is not None or m.codes is not None]
    ternary = [m for m in linears if m.codes is not None]
    rows = 2 if ternary else 1
    figure = new_figure(
        f"{title}: {found.stage}, {counted(len(ternary or linears), 'linear')}", width=11, height=1 + 3.6 * rows
    )
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
