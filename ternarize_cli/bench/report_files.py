"""Writes a report to files: CSV, Markdown, and the page of `html`.

CSV has a line for each row of the report, which also describes its candidate and the machine, so that files of several
machines can be concatenated. Markdown has the tables that the terminal shows.
"""

import csv
import io
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ternarize_cli.bench.candidates import BACKEND
from ternarize_cli.bench.growth_figure import growth_figure
from ternarize_cli.bench.html import write_html
from ternarize_cli.bench.report import machine_line, tables
from ternarize_cli.bench.rows import Row
from ternarize_cli.bench.run import Report
from ternarize_cli.errors import InputError
from ternarize_cli.measuring import figures, page
from ternarize_cli.storage import files

__all__ = ["Outputs", "csv_text", "markdown_text"]

_OF_A_PROCESS = (
    *("load_ms", "cold_start_ms", "loaded_bytes", "model_bytes", "peak_bytes"),
    *("device_weights_bytes", "device_bytes", "device_peak_bytes", "device_reserved_bytes"),
)


def csv_text(report: Report) -> str:
    """Formats the report as CSV, with a header; values that were not measured are empty."""
    columns = ["model", *(field.name for field in fields(Row)), "disk_bytes", "linear_bytes", *_OF_A_PROCESS]
    columns += ["device", "cpu", "cores", "threads", "busy"]
    forms = {form.name: form for form in report.storage}
    memory = {entry.name: asdict(entry) for entry in report.memory}
    machine = {
        "cpu": report.machine["cpu"],
        "cores": report.machine["usable_cores"],
        "threads": report.machine["threads"],
        "busy": report.busy,
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


def markdown_text(report: Report, command: str) -> str:
    """Formats the report's tables, the command and the machine as Markdown."""
    parts = []
    for table in tables(report):
        lines = [table.columns, [":--", *["--:"] * (len(table.columns) - 1)], *table.rows]
        drawn = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
        parts += [f"### {table.title}", "\n".join(drawn), table.caption]
    parts += [*report.notes, machine_line(report.machine), f"```console\n$ {command}\n```"]
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Outputs:
    """The files to which a report is written; None writes no such file. `force` replaces existing files."""

    csv: Path | None = None
    markdown: Path | None = None
    html: Path | None = None
    plot: Path | None = None
    force: bool = False

    @property
    def by_option(self) -> dict[str, Path]:
        """The wanted files: a dict from command-line option to path."""
        given = {"--csv": self.csv, "--markdown": self.markdown, "--html": self.html, "--plot": self.plot}
        return {option: path for option, path in given.items() if path is not None}

    def check(self) -> None:
        """Refuses files that could not be written, before any work is done.

        Raises:
            InputError: two outputs are one file, or a name does not end as it should.
            UnavailableError: matplotlib is not installed.
            OutputExistsError: a file exists, and `force` is false.
            OutputError: a file can't be written.
        """
        seen: dict[Path, str] = {}
        for option, path in self.by_option.items():
            if (other := seen.setdefault(path.resolve(), option)) != option:
                raise InputError(
                    f"{other} and {option} name the same file, {path}", hint="name a separate file for each"
                )
            files.check_output(path, force=self.force, folder=False)
        if self.html is not None:
            page.check_page(self.html, "--html", force=self.force)
        if self.plot is not None:
            figures.check_plot(self.plot, force=self.force)

    def write(self, report: Report, command: str) -> list[Path]:
        """Writes all files, and returns their paths.

        Args:
            report: the report.
            command: the command line as it was typed.

        Raises:
            TernarizeError: a file can't be written (see `check`).
        """
        if self.csv is not None:
            _write(self.csv, csv_text(report), self.force)
        if self.markdown is not None:
            _write(self.markdown, markdown_text(report, command), self.force)
        if self.html is not None:
            write_html(self.html, report, command, force=self.force)
        if self.plot is not None:
            figures.save_figure(growth_figure(report), self.plot, force=self.force)
        return list(self.by_option.values())


def _write(path: Path, text: str, force: bool) -> None:
    with files.atomic_file(path, force=force) as partial:
        partial.write_text(text, encoding="utf-8")
