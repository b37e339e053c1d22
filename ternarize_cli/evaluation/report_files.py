"""An evaluation as files: the page, the picture of quality against cost, JUnit XML, and a part of the model's card."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import Option

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison, Retention
    from ternarize_cli.evaluation.run import EvaluationReport

__all__ = ["EvaluationFiles"]


@dataclass(frozen=True)
class EvaluationFiles:
    """Which files an evaluation becomes; None: not written.

    Attributes:
        report: a page (.html) with tables and pictures.
        bench: a file of `bench --json`, read for the page, which shows its times as a table.
        plot: a picture (.png, .svg, .pdf) of quality against bytes and latency.
        junit: JUnit XML for continuous integration.
        card: write the scores into the model's card (README.md), where those of an earlier evaluation give way.
    """

    report: Annotated[Path | None, Option("One page with tables and pictures.", metavar="FILE.html")] = None
    bench: Annotated[
        Path | None, Option("Times of bench --json, shown as a table in --report.", metavar="FILE.json")
    ] = None
    plot: Annotated[Path | None, Option("Quality against bytes and latency.", metavar="FILE.png")] = None
    junit: Annotated[Path | None, Option("JUnit XML for CI.", metavar="FILE.xml")] = None
    card: Annotated[
        bool, Option("Write the scores into README.md of MODEL, a folder that convert, distill or pack wrote.")
    ] = False

    @property
    def need_costs(self) -> bool:
        """Whether a file shows time and memory, which then have to be measured."""
        return self.report is not None or self.plot is not None

    def check(self, model: str | Path, *, force: bool) -> None:
        """Checks that all files can be written, before any work is done.

        Args:
            model: the model that is evaluated.
            force: files that exist may be replaced.

        Raises:
            InputError: two of them are one file, a name does not end as it should, `bench` is no report of bench or has
                no page to be shown in, or `card` is set and the model is no folder that ternarize wrote.
            UnavailableError: matplotlib is not installed, which the page and the picture need.
            OutputExistsError, OutputError: a file exists and `force` is False, or can't be written.
        """
        from ternarize_cli.bench.report_comparison import times_table
        from ternarize_cli.compress import card
        from ternarize_cli.encoders import checkpoint
        from ternarize_cli.evaluation.page import check_page
        from ternarize_cli.measuring.figures import check_plot
        from ternarize_cli.storage.files import check_output

        paths = [path for path in (self.report, self.plot, self.junit) if path is not None]
        if len({path.expanduser().resolve() for path in paths}) < len(paths):
            raise InputError("--report, --plot and --junit name the same file", hint="a file for each")
        if self.bench is not None:
            if self.report is None:
                raise InputError("--bench is shown in a page, and none is written", hint="--report report.html")
            times_table(self.bench)
        if self.report is not None:
            check_page(self.report, force=force)
        if self.plot is not None:
            check_plot(self.plot, force=force)
        if self.junit is not None:
            check_output(self.junit, force=force, folder=False)
        if self.card:
            path = _card_of(model)
            if not (path.parent / "config.json").is_file() or checkpoint.artifact_of(path.parent) is None:
                raise InputError(
                    f"--card writes into the card of a model that ternarize made, and {model} is none",
                    hint="leave --card out, or evaluate the folder that convert, distill or pack wrote",
                )
            check_output(path, force=True, folder=False)
            if path.exists():
                card.read_text(path)

    def write(self, model: str | Path, found: "EvaluationReport", *, command: str, force: bool) -> list[Path]:
        """Writes the files and returns their paths.

        Args:
            model: the model that was evaluated.
            found: the evaluation.
            command: what was typed, for the page.
            force: replace files that exist.

        Raises:
            TernarizeError: as `check`.
        """
        from ternarize_cli.compress import card
        from ternarize_cli.evaluation.junit import write_junit
        from ternarize_cli.evaluation.report import plot_pareto, write_report

        if self.plot is not None:
            plot_pareto(self.plot, found.comparison, force=force)
        if self.report is not None:
            write_report(
                self.report,
                found.comparison,
                machine=found.machine,
                command=command,
                data=found.hashes,
                notes=found.notes,
                bench=self.bench,
                force=force,
            )
        if self.junit is not None:
            write_junit(self.junit, found.comparison, found.gates, missing=found.missing, force=force)
        paths = [path for path in (self.plot, self.report, self.junit) if path is not None]
        if self.card:
            paths.append(_card_of(model))
            card.write_scores(paths[-1], _scores(found.comparison))
        return paths


def _card_of(model: str | Path) -> Path:
    return Path(model).expanduser() / "README.md"


def _scores(comparison: "Comparison") -> str:
    """Writes the evaluated model's scores as a table of Markdown, beside the teacher's if there is one."""
    teacher = comparison.teacher
    columns = ["task", "metric", "size", "score", *([teacher.name, "kept", "95%"] if teacher else [])]
    rows = [columns, ["---"] * len(columns)]
    for task in comparison.tasks[0]:
        kept = [] if teacher is None else [_number(task.teacher), _percent(task.retention), _between(task)]
        rows.append([task.task, task.metric, f"{task.size:,}", _number(task.student), *kept])
    table = "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in rows)
    mean = comparison.mean_retention()
    return f"{table}\n" + (f"\nKept in the mean of the tasks: {mean:.1%}.\n" if mean is not None else "")


def _cell(text: str) -> str:
    """Escapes what a name may hold that means something in a table of Markdown."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*\[\]])", r"\\\1", text)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _between(task: "Retention") -> str:
    return "" if task.low is None or task.high is None else f"{task.low:.1%} to {task.high:.1%}"
