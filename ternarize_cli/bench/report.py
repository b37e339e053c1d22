"""A benchmark's report as tables for people: titles, columns, rows and captions, ready to print."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ternarize_cli.bench.candidates import BACKEND, RIVAL
from ternarize_cli.bench.run import Report, Row

__all__ = ["Table", "latency_table", "machine_line", "size_table"]


@dataclass(frozen=True)
class Table:
    """What a table printer takes."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def latency_table(report: Report) -> Table:
    """One line per point, one column per candidate: median and spread, with the best backend against the best rival."""
    names = list(dict.fromkeys(row.name for row in report.rows))
    titles = [_title(next(row for row in report.rows if row.name == name)) for name in names]
    compared = any(row.kind == RIVAL for row in report.rows)
    columns = ["batch x tokens", *titles, "tokens/s", *(["speed-up"] if compared else [])]
    points = list(dict.fromkeys((row.batch, row.tokens) for row in report.rows))
    lines = []
    for point in points:
        rows = {row.name: row for row in report.rows if (row.batch, row.tokens) == point}
        best = min((row for row in rows.values() if row.kind == BACKEND), key=lambda row: row.median_ms)
        line = [f"{point[0]} x {point[1]}", *(_milliseconds(rows[name]) for name in names), f"{best.tokens_per_s:,.0f}"]
        lines.append(line + ([f"{best.ratio:.2f}x"] if compared else []))
    caption = "tokens/s: the fastest backend's." + (" speed-up: the fastest rival's time over it." if compared else "")
    title = f"{report.model} on {report.device}: milliseconds per forward pass, median (10th to 90th percentile)"
    return Table(title, columns, lines, caption)


def size_table(report: Report) -> Table:
    """One line per candidate: bytes on disk, bytes of the linears, peak memory, distance from `reference`."""
    forms = {form.name: form for form in report.storage}
    memory = {entry.name: entry for entry in report.memory}
    columns = ["", "on disk", "its linears", *(["peak memory", "the model's part"] if memory else []), "relative L2"]
    lines = []
    for name, kind in dict.fromkeys((row.name, row.kind) for row in report.rows):
        form = forms.get("packed" if kind == BACKEND else name)
        line = [name, *((_megabytes(form.bytes), _megabytes(form.linear_bytes)) if form else ("", ""))]
        if memory:
            line += [_megabytes(memory[name].peak_bytes), _megabytes(memory[name].model_bytes)]
        distances = [row.relative_l2 for row in report.rows if row.name == name and row.relative_l2 is not None]
        lines.append([*line, f"{max(distances):.1e}" if distances else ""])
    computed = [
        form.name for form in report.storage if form.computed and form.name in {row.name for row in report.rows}
    ]
    parts = [f"on disk computed, not a file: {', '.join(computed)}."] if computed else []
    parts += ["peak memory: one process each, at the largest point."] if memory else []
    parts += ["relative L2: distance from the output of reference."]
    return Table("megabytes (10^6 bytes)", columns, lines, " ".join(parts))


def machine_line(machine: dict[str, Any]) -> str:
    """The machine of a report in one line."""
    versions = machine["versions"]
    parts = [
        f"{machine['cpu']}, {machine['usable_cores']} cores ({' '.join(machine['isa']) or machine['torch_isa']})",
        *(f"{gpu['name']} ({gpu['capability']})" for gpu in machine["gpus"]),
        f"{machine['memory_bytes'] / 1e9:.0f} GB",
        machine["os"],
        f"{machine['threads']} threads",
        ", ".join(f"{name} {versions[name]}" for name in ("ternarize", "torch", "transformers", "python")),
    ]
    return "; ".join(parts)


def _title(row: Row) -> str:
    return row.name if row.name == row.ran else f"{row.name} ({row.ran})"


def _milliseconds(row: Row) -> str:
    return f"{_three_digits(row.median_ms)} ({_three_digits(row.p10_ms)}-{_three_digits(row.p90_ms)})"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f}"
