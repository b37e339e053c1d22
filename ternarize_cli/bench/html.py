"""Writes a benchmark as one HTML page: a picture of all times, the tables, and the machine.

The picture has a panel for each point and a bar for each candidate, all from zero, with the 10th to 90th percentile as
a line, which shows whether a difference is smaller than the spread.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any

from ternarize_cli.bench.candidates import BACKEND
from ternarize_cli.bench.cells import Table, points, three_digits
from ternarize_cli.bench.report import machine_line, tables
from ternarize_cli.bench.rows import BenchRow
from ternarize_cli.bench.run import BenchReport
from ternarize_cli.measuring import page
from ternarize_cli.measuring.figures import BLUE, GREY, ORANGE, new_figure

__all__ = ["latency_figure", "write_html"]

_ACROSS = 2
_LEGEND = (
    "Median milliseconds of a forward pass (with --text: of all texts); the line is the 10th to 90th percentile. "
    "Orange: backends on the packed model. Blue: rivals on the full-precision model. The fastest "
    "of each is opaque. Shorter is better."
)


def write_html(path: Path, report: BenchReport, command: str, *, force: bool = False) -> None:
    """Writes the page of a benchmark.

    Args:
        path: the file, whose name ends in .html.
        report: the report of the benchmark.
        command: the command line as it was typed.
        force: replace an existing file.

    Raises:
        InputError: the name does not end in .html.
        UnavailableError: matplotlib is not installed.
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
    """
    page.check_page(path, "--html", force=force)
    parts = [
        f'<p class="soft">{escape(report.device)}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC</p>',
        _cards(report),
        f"<figure>{page.picture(latency_figure(report))}<figcaption>{_LEGEND}</figcaption></figure>",
    ]
    if report.busy:
        parts.insert(0, "<p><b>Other processes were busy: these times are not fit to be quoted.</b></p>")
    for table in tables(report):
        title = table.title[0].upper() + table.title[1:]
        parts += [f"<h2>{escape(title)}</h2>", _table(table)]
    parts += ["<h2>How this was measured</h2>", f"<pre>{escape(command)}</pre>"]
    parts += [f"<p>{escape(note)}</p>" for note in report.notes]
    parts.append(_machine(report.machine))
    page.write_page(path, f"Benchmark of {report.model}", parts, force=force)


def latency_figure(report: BenchReport) -> Any:
    """Draws a matplotlib figure of all times, with a panel for each point, in the order of the report."""
    panels = points(report.rows)
    candidates = len(next(iter(panels.values())))
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = new_figure("", width=5.5 * across, height=down * (0.9 + 0.3 * candidates))
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for axis, (title, rows) in zip(axes, panels.items(), strict=False):
        _panel(axis, title, list(rows.values()))
    for axis in axes[len(panels) :]:
        axis.remove()
    return figure


def _panel(axis: Any, title: str, rows: Sequence[BenchRow]) -> None:
    best = {kind: min(r.median_ms for r in rows if r.kind == kind) for kind in {r.kind for r in rows}}
    longest = max(row.p90_ms for row in rows)
    for i, row in enumerate(rows):
        colour = ORANGE if row.kind == BACKEND else BLUE
        axis.barh(i, row.median_ms, color=colour, alpha=1.0 if row.median_ms == best[row.kind] else 0.5, height=0.7)
        axis.hlines(i, row.p10_ms, row.p90_ms, color=GREY, linewidth=1.6)
        end = max(row.median_ms, row.p90_ms) + 0.015 * longest
        axis.text(end, i, three_digits(row.median_ms), va="center", fontsize=8)
    axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12 * longest)
    axis.set_title(title, fontsize=10, loc="left")
    axis.tick_params(axis="x", labelsize=8)
    axis.xaxis.set_major_formatter("{x:g} ms")
    axis.spines[["top", "right"]].set_visible(False)


def _cards(report: BenchReport) -> str:
    """Makes cards: the factor of file sizes, the speed of the best backend over all points, and the least memory."""
    forms = {form.name: form for form in report.storage}
    shown = [(f"{forms['torch-fp32'].bytes / forms['packed'].bytes:.1f}×", "smaller files than in fp32")]
    ratios = [
        max(r.ratio for r in rows.values() if r.kind == BACKEND and r.ratio is not None)
        for rows in points(report.rows).values()
        if any(r.ratio is not None for r in rows.values())
    ]
    if ratios and not report.busy:
        text = f"{min(ratios):.2f}×" if len(ratios) == 1 else f"{min(ratios):.2f} to {max(ratios):.2f}×"
        shown.append((text, "the speed of the fastest rival"))
    if report.memory:
        least = min(entry.model_bytes for entry in report.memory if entry.kind == BACKEND)
        shown.append((f"{least / 1e6:,.0f} MB", "peak memory beyond the imports, the smallest backend's"))
    return page.cards(shown)


def _table(table: Table) -> str:
    rows = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in table.rows]
    return page.table(table.columns, rows, table.caption)


def _machine(machine: Mapping[str, Any]) -> str:
    """Makes the line about the machine, and a list of the load around the measurement."""
    load = {
        "load before": ", ".join(f"{value:.2f}" for value in machine["load_before"]),
        "load after": ", ".join(f"{value:.2f}" for value in machine["load_after"]),
        "others before": f"{machine['others_percent_before']:.0f}% of a core",
        "others during": f"{machine['others_percent_during']:.0f}% of a core",
    }
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in load.items())
    return f"<p>{escape(machine_line(dict(machine)))}</p><dl>{listed}</dl>"
