"""Draws bars of text for the terminal, and figures with matplotlib (the extra `plot`).

A terminal bar is made of block characters in steps of an eighth of a cell, so 20 cells show 160 steps:

    0.250 ████████▊             4.4%
    0.375 █████████▌            4.8%

Figures are drawn without pyplot, so there is no window and no global state, and they need no display.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.storage import files

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "ORANGE",
    "bars",
    "check_plot",
    "new_figure",
    "require_matplotlib",
    "save_figure",
]

_EIGHTHS = " ▏▎▍▌▋▊▉█"
_FORMATS = (".png", ".svg", ".pdf")
BLUE, ORANGE, GREEN, GREY = "#3b6ea8", "#d1712a", "#4a8f5c", "#8a8a8a"


def bars(rows: Sequence[tuple[str, float]], width: int) -> list[str]:
    """Draws lines of `width` characters: label, bar, and the value in percent. The largest value fills its bar.

    Args:
        rows: labels, and shares from 0 to 1.
        width: width of the terminal, in characters.
    """
    side = max(len(label) for label, _ in rows)
    cells = max(4, width - side - 8)
    largest = max(value for _, value in rows) or 1.0
    lines = []
    for label, value in rows:
        eighths = max(round(8 * cells * value / largest), value > 0)  # a value above 0 is always visible
        bar = "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()
        lines.append(f"{label:>{side}} {bar:<{cells}} {value:>6.1%}")
    return lines


def check_plot(path: Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuses a figure that could not be written, before any work is done.

    Raises:
        InputError: the name does not end in .png, .svg or .pdf, or the figure would replace one of `inputs`.
        UnavailableError: matplotlib is not installed.
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
    """
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"--plot {path}: a figure's name ends in {', '.join(_FORMATS)}", hint="--plot figure.png")
    require_matplotlib("--plot")
    files.check_output(path, force=force, inputs=inputs, folder=False)


def require_matplotlib(option: str) -> None:
    """Checks that matplotlib, which `option` needs, is installed.

    Raises:
        UnavailableError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UnavailableError(f"{option} needs matplotlib", hint="pip install 'ternarize-cli[plot]'")


def new_figure(title: str, *, width: float, height: float) -> Any:
    """Makes an empty matplotlib figure; width and height are in inches, and axes are laid out automatically."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def save_figure(figure: Any, path: Path, *, force: bool) -> None:
    """Writes a figure in the format that the suffix of the path names."""
    with files.atomic_file(path, force=force) as partial:
        figure.savefig(partial, format=path.suffix.lower()[1:], dpi=130)
