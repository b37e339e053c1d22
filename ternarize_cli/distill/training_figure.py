"""Draws the figure of a training run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ternarize_cli.measuring.figures import BLUE, ORANGE, check_plot, new_figure, save_figure

__all__ = ["plot_training"]


def plot_training(readings: Sequence[Mapping[str, Any]], title: str, path: Path, *, force: bool = False) -> None:
    """Draws the readings of a metrics.jsonl: each part of the loss, and the held-out metrics, over the steps.

    Raises:
        InputError: the name of the figure does not end in .png, .svg or .pdf.
        UnavailableError: matplotlib is not installed.
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
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
