"""Draws the README's picture, `docs/results/minilm-cpu.png`, from the numbers in `docs/results/minilm-cpu.json`.

    pip install matplotlib
    python docs/results/draw_minilm_cpu.py

Three panels share their rows, one for each way to run the model: bytes, speed, and what is left of the original's
search quality. The last one shows points with intervals on an axis that does not begin at zero, so it has no bars.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
DATA = HERE / "minilm-cpu.json"
PICTURE = HERE / "minilm-cpu.png"
_OURS, _THEIRS, _INK, _FAINT = "#1f6f8b", "#b8c4ca", "#22292d", "#6b777d"


def digest(data: dict[str, Any]) -> str:
    """The sha256 of the numbers, which the picture carries as its description: a test sees when it is out of date."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _bars(axes: Any, measure: dict[str, Any], rows: list[str]) -> None:
    values = [measure["values"][row]["value"] for row in rows]
    axes.barh(range(len(rows)), values, height=0.62, color=[_OURS if i == 0 else _THEIRS for i in range(len(rows))])
    for i, value in enumerate(values):
        bold = "bold" if i == 0 else "normal"
        axes.text(
            value + max(values) * 0.02, i, f"{value:,}", va="center_baseline", color=_INK, fontsize=10, fontweight=bold
        )
    axes.set_xlim(0, max(values) * 1.2)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _points(axes: Any, measure: dict[str, Any], rows: list[str]) -> None:
    for i, row in enumerate(rows):
        entry = measure["values"][row]
        colour = _OURS if i == 0 else "#8b989f"
        axes.plot([entry["low"], entry["high"]], [i, i], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([entry["value"]], [i], "o", color=colour, markersize=7)
        said = f"{entry['value']:.1f}%"
        bold = "bold" if i == 0 else "normal"
        axes.text(102.0, i, said, va="center_baseline", ha="left", color=_INK, fontsize=10, fontweight=bold)
    axes.axvline(100, color=_FAINT, linewidth=0.8, linestyle=(0, (3, 3)), zorder=0)
    axes.set_xlim(97.6, 103.6)
    axes.set_xticks([98, 100], ["98%", "100%"])
    axes.tick_params(axis="x", labelsize=9, colors=_FAINT, length=3)
    axes.spines["bottom"].set_color("#d5dcdf")


def draw(data: dict[str, Any], picture: Path) -> None:
    """Draws the panels size, speed and quality of `data` into the PNG file `picture`."""
    measures = {measure["name"]: measure for measure in data["measures"]}
    rows = list(measures["size"]["values"])
    plt.rcParams["font.family"] = "DejaVu Sans"
    figure, panels = plt.subplots(1, 3, figsize=(11, 3.5), sharey=True, width_ratios=[1, 1, 1])
    for axes, name in zip(panels, ("size", "speed", "quality"), strict=True):
        (_points if name == "quality" else _bars)(axes, measures[name], rows)
        title, _, rest = measures[name]["title"].partition(", ")
        axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", color=_INK, pad=22)
        arrow = "less is better" if measures[name]["better"] == "lower" else "more is better"
        axes.text(0, 1.035, f"{rest}; {arrow}", transform=axes.transAxes, fontsize=8.5, color=_FAINT)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(range(len(rows)), rows, fontsize=10.5, color=_INK)
    panels[0].get_yticklabels()[0].set_fontweight("bold")
    panels[0].get_yticklabels()[0].set_color(_OURS)
    panels[0].invert_yaxis()
    figure.text(0.012, 0.015, f"{data['title']}: {data['machine']}", fontsize=8, color=_FAINT)
    figure.subplots_adjust(left=0.15, right=0.99, top=0.8, bottom=0.14, wspace=0.14)
    figure.savefig(picture, dpi=160, metadata={"Software": None, "Description": digest(data)})
    plt.close(figure)


if __name__ == "__main__":
    draw(json.loads(DATA.read_text(encoding="utf-8")), PICTURE)
