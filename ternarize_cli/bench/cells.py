"""Formats the cells of tables in reports: names of points and candidates, and rounded numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ternarize_cli.bench.feeds import point_title
from ternarize_cli.bench.rows import BenchRow

__all__ = ["Table", "megabytes", "points", "three_digits", "timing", "title_of"]


@dataclass(frozen=True)
class Table:
    """A table to print: title, columns, rows and caption."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def points(rows: Sequence[BenchRow]) -> dict[str, dict[str, BenchRow]]:
    """Groups rows: a dict from each point's title to a dict from candidates' names to rows, in the report's order."""
    found: dict[str, dict[str, BenchRow]] = {}
    for row in rows:
        found.setdefault(point_title(vars(row)), {})[row.name] = row
    return found


def title_of(row: BenchRow) -> str:
    """A candidate's name, followed by the backend that ran, if that is another."""
    return row.name if row.name == row.ran else f"{row.name} ({row.ran})"


def timing(row: Mapping[str, Any]) -> str:
    """Formats median and percentiles of a row's fields in milliseconds: `11.2 (10.9-12.0)`."""
    return f"{three_digits(row['median_ms'])} ({three_digits(row['p10_ms'])}-{three_digits(row['p90_ms'])})"


def three_digits(value: float) -> str:
    """Formats a number with three digits: `123`, `12.3`, `1.23`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def megabytes(count: int) -> str:
    """Formats bytes in megabytes (10^6 bytes): `1,234.5`."""
    return f"{count / 1e6:,.1f}"
