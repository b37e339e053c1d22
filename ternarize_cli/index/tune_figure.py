"""Draws the recall of an index over its speed."""

from pathlib import Path

from ternarize_cli.errors import counted
from ternarize_cli.index.tune import TuneReport
from ternarize_cli.measuring import figures

__all__ = ["plot_tuning"]


def plot_tuning(report: TuneReport, target: float, path: Path, *, force: bool = False) -> None:
    """Draws recall@k over queries per second, with a point for each setting; needs the extra `plot`.

    Raises:
        UnavailableError: matplotlib is not installed.
        OutputError: the file exists and `force` is false, or it can't be written.
    """
    figure = figures.new_figure(f"{report.info.factory}, {counted(report.info.count, 'vector')}", width=7, height=4.5)
    axis = figure.subplots()
    axis.scatter([m.per_second for m in report.measured], [m.recall for m in report.measured], s=18)
    axis.scatter([report.chosen.per_second], [report.chosen.recall], s=80, facecolors="none", edgecolors="tab:red")
    axis.axhline(target, linewidth=0.8, linestyle="--", color="grey")
    axis.set_xscale("log")
    axis.set_xlabel(f"queries per second, {counted(report.threads, 'thread')}")
    axis.set_ylabel(f"recall@{report.k}")
    figures.save_figure(figure, path, force=force)
