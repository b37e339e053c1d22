"""What the tables of reports are made of: names of points and candidates, and numbers as people read them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ternarize_cli.bench.rows import Row

__all__ = ["Table", "megabytes", "point_title", "points", "three_digits", "timing", "title_of"]


@dataclass(frozen=True)
class Table:
    """What a table printer takes."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


def points(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """The rows of each point by the candidates' names, under the points' titles and in their order."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        found.setdefault(point_title(vars(row)), {})[row.name] = row
    return found


def point_title(row: Mapping[str, Any]) -> str:
    """What a row measured, given its fields: `8 x 128`, `8 x 224x224`, `8 x lengths of texts.txt`, or texts encoded."""
    if row.get("encoded"):
        return f"{row['encoded']}, batches of {row['batch']}"
    what = f"lengths of {row['lengths']}" if row.get("lengths") else row.get("image") or row["tokens"]
    return f"{row['batch']} x {what}"


def title_of(row: Row) -> str:
    """A candidate's name, with what really ran behind it."""
    return row.name if row.name == row.ran else f"{row.name} ({row.ran})"


def timing(row: Mapping[str, Any]) -> str:
    """Median and spread of a row, given its fields, in milliseconds: `11.2 (10.9-12.0)`."""
    return f"{three_digits(row['median_ms'])} ({three_digits(row['p10_ms'])}-{three_digits(row['p90_ms'])})"


def three_digits(value: float) -> str:
    """A number as people read it: `123`, `12.3`, `1.23`."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def megabytes(count: int) -> str:
    """Bytes as megabytes: `1,234.5`."""
    return f"{count / 1e6:,.1f}"
