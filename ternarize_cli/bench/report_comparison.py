"""Compares reports of `bench --json`, such as those of two versions, two machines or two models.

Rows are matched by candidate and point: name, batch, tokens, the size of images, and the file of texts if there is one.
Each file is compared with the first. A ratio of two medians means something only if both were measured under equal
conditions, so every difference in conditions gives a warning.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ternarize_cli.bench.cells import Table, three_digits, timing
from ternarize_cli.bench.feeds import point_title
from ternarize_cli.errors import InputError, quoted, shown
from ternarize_cli.storage.bounds import parse_json, read_bytes

__all__ = ["Line", "ReportComparison", "compare", "comparison_table", "times_table"]

_NUMBERS = {"batch": int, "tokens": int, "median_ms": int | float, "p10_ms": int | float, "p90_ms": int | float}
_WORDS = ("lengths", "image", "encoded")
_LARGEST = 1e12
_FACTS = {
    "cpu": "the CPUs",
    "isa": "the instruction sets",
    "usable_cores": "the cores",
    "gpus": "the GPUs",
    "threads": "the threads",
}


@dataclass(frozen=True)
class Line:
    """One candidate at one point in all files.

    Attributes:
        name: name of the candidate.
        batch, tokens, lengths, image, encoded: the point, as in the first file that has it.
        median_ms: the median in each file, in milliseconds; None if a file lacks this row.
        speed_up: the first file's median divided by each file's, so above 1 is faster; None if one is missing.
        shown: median and spread in each file, for tables.
    """

    name: str
    batch: int
    tokens: int
    lengths: str | None
    image: str | None
    encoded: str | None
    median_ms: tuple[float | None, ...]
    speed_up: tuple[float | None, ...]
    shown: tuple[str, ...]


@dataclass(frozen=True)
class ReportComparison:
    """A comparison of reports: their files, their models, the lines, and warnings about the ratios."""

    files: tuple[str, ...]
    models: tuple[str, ...]
    lines: tuple[Line, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Converts to plain JSON values."""
        rows = [{key: value for key, value in asdict(line).items() if key != "shown"} for line in self.lines]
        return {"files": self.files, "models": self.models, "rows": rows, "warnings": self.warnings}


def compare(paths: Sequence[Path]) -> ReportComparison:
    """Reads and compares reports.

    Args:
        paths: two or more files written by `ternarize bench --json`; the others are compared with the first.

    Raises:
        InputError: there are fewer than two files, or a file can't be read or is no report.
    """
    if len(paths) < 2:
        raise InputError(
            f"--compare takes two or more reports, not {len(paths)}",
            hint="ternarize bench --compare before.json after.json",
        )
    return _compared(paths, [_read(path) for path in paths])


def times_table(path: Path) -> Table:
    """Makes the table of one report: median and spread of each candidate at each point; its caption has the machine.

    Raises:
        InputError: the file can't be read or is no report.
    """
    report = _read(path)
    table = comparison_table(_compared([path], [report]))
    machine = report["machine"]
    caption = f"Measured on {_told(machine.get('cpu'))}, {_told(machine.get('threads'))} threads."
    if report.get("neighbours"):
        caption += f" Busy neighbours beside all candidates: {_told(report['neighbours'])}."
    caption += " Other processes were busy: these times are not fit to be quoted." if report.get("busy") else ""
    return Table(table.title, [*table.columns[:2], "milliseconds"], table.rows, caption)


def _compared(paths: Sequence[Path], reports: Sequence[Mapping[str, Any]]) -> ReportComparison:
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for i, report in enumerate(reports):
        for row in report["rows"]:
            found.setdefault((row["name"], point_title(row)), {})[i] = row
    lines = [_line([rows.get(i) for i in range(len(paths))]) for rows in found.values()]
    warnings = _differences(paths, reports)
    warnings += [
        f"texts of {title} differ: {' and '.join(map(str, sorted(widths)))} tokens wide"
        for title, widths in _widths(reports).items()
        if len(widths) > 1
    ]
    if len(paths) > 1 and not any(value is not None for line in lines for value in line.speed_up[1:]):
        warnings.append(f"{paths[0]} shares no candidate at the same batch x tokens with the others")
    return ReportComparison(
        tuple(str(path) for path in paths),
        tuple(str(report.get("model", "")) for report in reports),
        tuple(lines),
        tuple(warnings),
    )


def comparison_table(comparison: ReportComparison) -> Table:
    """Makes the table with a line per candidate and point: median and spread in each file, and the speed-up."""
    names = _short_names(comparison.files)
    columns = ["", "batch x tokens", names[0]]
    for name in names[1:]:
        columns += [name, "speed-up"]
    lines = []
    for line in comparison.lines:
        cells = [line.name, point_title(vars(line)), line.shown[0]]
        for time, ratio in zip(line.shown[1:], line.speed_up[1:], strict=True):
            cells += [time, "" if ratio is None else f"{three_digits(ratio)}x"]
        lines.append(cells)
    titles = [f"{name}: {model}" for name, model in zip(names, comparison.models, strict=True)]
    title = comparison.models[0] if len(set(comparison.models)) == 1 else ", ".join(titles)
    caption = f"speed-up: the median of {names[0]} over it, so above 1 is faster."
    return Table(f"{title}: milliseconds per forward pass, median (10th to 90th percentile)", columns, lines, caption)


def _read(path: Path) -> dict[str, Any]:
    hint = f"ternarize bench MODEL --json > {quoted(path)} writes one"
    content = read_bytes(path, error=InputError)
    report: dict[str, Any] = parse_json(content, f"{path} is no report of bench: it", error=InputError, hint=hint)
    rows = report.get("rows") if isinstance(report, dict) else None
    if not isinstance(rows, list) or not rows or not isinstance(report.get("machine"), dict):
        raise InputError(f"{path} is no report of bench: it has no rows and machine", hint=hint)
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise InputError(f"{path} is no report of bench: row {number} has no name", hint=hint)
        for key, kind in _NUMBERS.items():
            value = row.get(key)
            if not isinstance(value, kind) or isinstance(value, bool) or not 0 <= value <= _LARGEST:  # NaN is not
                raise InputError(
                    f"{path} is no report of bench: row {number} has no {key}, but {shown(value)}", hint=hint
                )
        for key in _WORDS:
            if not isinstance(row.get(key), str | None):
                raise InputError(
                    f"{path} is no report of bench: row {number} has the {key} {shown(row[key])}", hint=hint
                )
    return report


def _line(rows: Sequence[Mapping[str, Any] | None]) -> Line:
    some = next(row for row in rows if row is not None)
    medians = [None if row is None else float(row["median_ms"]) for row in rows]
    first = medians[0]
    return Line(
        some["name"],
        some["batch"],
        some["tokens"],
        some.get("lengths"),
        some.get("image"),
        some.get("encoded"),
        tuple(medians),
        tuple(None if first is None or not ms else round(first / ms, 4) for ms in medians),
        tuple("" if row is None else timing(row) for row in rows),
    )


def _differences(paths: Sequence[Path], reports: Sequence[Mapping[str, Any]]) -> list[str]:
    """Finds differences that make times of two files incomparable, as a sentence each."""
    found = []
    first = reports[0]["machine"]
    for path, report in zip(paths[1:], reports[1:], strict=True):
        other = report["machine"]
        for key, what in _FACTS.items():
            if first.get(key) != other.get(key):
                found.append(f"{what} differ: {_told(first.get(key))} in {paths[0]}, {_told(other.get(key))} in {path}")
        ours, theirs = (each.get("neighbours") or 0 for each in (reports[0], report))  # earlier reports name none
        if ours != theirs:
            found.append(f"the busy neighbours differ: {_told(ours)} in {paths[0]}, {_told(theirs)} in {path}")
    found += [
        f"the machine was busy when {path} was measured"
        for path, report in zip(paths, reports, strict=True)
        if report.get("busy")
    ]
    return found


def _widths(reports: Sequence[Mapping[str, Any]]) -> dict[str, set[int]]:
    """Finds the mean padded lengths of batches, in tokens, for each padded point."""
    found: dict[str, set[int]] = {}
    for row in (row for report in reports for row in report["rows"] if row.get("lengths")):
        found.setdefault(point_title(row), set()).add(row["tokens"])
    return found


def _told(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(str(v.get("name", v)) if isinstance(v, dict) else str(v) for v in value) or "none"
    return "unknown" if value is None else str(value)


def _short_names(files: Sequence[str]) -> list[str]:
    """Shortens paths to file names if these differ."""
    names = [Path(file).name for file in files]
    return names if len(set(names)) == len(names) else list(files)
