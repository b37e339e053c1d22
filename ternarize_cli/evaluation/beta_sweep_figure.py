"""Draws the figure of a beta sweep."""

from pathlib import Path
from typing import TYPE_CHECKING

from ternarize_cli.measuring.figures import BLUE, GREEN, GREY, ORANGE, check_plot, new_figure, save_figure

if TYPE_CHECKING:
    from ternarize_cli.evaluation.beta_sweep import Sweep

__all__ = ["plot_sweep"]

_MEASURES = {
    "error": "relative error of the weights",
    "zeros": "share of zero codes",
    "cosine": "mean cosine to the original",
    "sts": "STS, Spearman",
}


def plot_sweep(sweep: "Sweep", title: str, path: Path, *, force: bool = False) -> None:
    """Draws a beta sweep: a panel for each measure, over beta, with the rule "optimal" as a horizontal line.

    Raises:
        InputError: the name of the figure does not end in .png, .svg or .pdf.
        UnavailableError: matplotlib is not installed.
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
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
