"""Writes a report to files: CSV and Markdown.

CSV has a line for each row of the report, which also describes its candidate and the machine, so that files of several
machines can be concatenated. Markdown has the tables that the terminal shows.
"""

import csv
import io
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ternarize_cli.bench.candidates import BACKEND
from ternarize_cli.bench.options import BenchFiles
from ternarize_cli.bench.report import machine_line, tables
from ternarize_cli.bench.rows import BenchRow
from ternarize_cli.bench.run import BenchReport
from ternarize_cli.storage import files

__all__ = ["csv_text", "markdown_text", "write_files"]

_OF_A_PROCESS = (
    *("load_ms", "cold_start_ms", "loaded_bytes", "model_bytes", "peak_bytes"),
    *("device_weights_bytes", "device_bytes", "device_peak_bytes", "device_reserved_bytes"),
)


def csv_text(report: BenchReport) -> str:
    """Formats the report as CSV, with a header; values that were not measured are empty."""
    columns = ["model", *(field.name for field in fields(BenchRow)), "disk_bytes", "linear_bytes", *_OF_A_PROCESS]
    columns += ["device", "cpu", "cores", "threads", "busy", "neighbours"]
    forms = {form.name: form for form in report.storage}
    memory = {entry.name: asdict(entry) for entry in report.memory}
    machine = {
        "cpu": report.machine["cpu"],
        "cores": report.machine["usable_cores"],
        "threads": report.machine["threads"],
        "busy": report.busy,
        "neighbours": report.neighbours,
    }
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    for row in report.rows:
        line: dict[str, Any] = {"model": report.model, "device": report.device, **asdict(row), **machine}
        if form := forms.get("packed" if row.kind == BACKEND else row.name):
            line |= {"disk_bytes": form.bytes, "linear_bytes": form.linear_bytes}
        line |= {key: memory[row.name][key] for key in _OF_A_PROCESS if row.name in memory}
        writer.writerow(line)
    return buffer.getvalue()


def markdown_text(report: BenchReport, command: str) -> str:
    """Formats the report's tables, the command and the machine as Markdown."""
    parts = []
    for table in tables(report):
        lines = [table.columns, [":--", *["--:"] * (len(table.columns) - 1)], *table.rows]
        drawn = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        parts += [f"### {table.title}", "\n".join(drawn), table.caption]
    parts += [*report.notes, machine_line(report.machine), f"```console\n$ {command}\n```"]
    return "\n\n".join(parts) + "\n"


def write_files(wanted: BenchFiles, report: BenchReport, command: str, *, force: bool = False) -> list[Path]:
    """Writes the files that were asked for and returns their paths.

    Args:
        wanted: which files, checked by `BenchFiles.check` before the measurement.
        report: what was measured.
        command: what was typed.
        force: replace files that exist.

    Raises:
        OutputExistsError, OutputError: a file exists and `force` is False, or can't be written.
    """
    if wanted.csv is not None:
        _write(wanted.csv, csv_text(report), force)
    if wanted.markdown is not None:
        _write(wanted.markdown, markdown_text(report, command), force)
    return list(wanted.by_option.values())


def _write(path: Path, text: str, force: bool) -> None:
    with files.atomic_file(path, force=force) as partial:
        partial.write_text(text, encoding="utf-8")
