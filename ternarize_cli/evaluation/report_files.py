"""An evaluation as files: the page, the picture of quality against cost, JUnit XML, and scores in the model's card."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ternarize_cli.errors import InputError
from ternarize_cli.storage.command_option import Option

if TYPE_CHECKING:
    from ternarize_cli.evaluation.run import EvaluationReport

__all__ = ["EvaluationFiles", "write_card"]


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

    def check(self, model: str | Path, *, force: bool, inputs: Sequence[Path] = ()) -> None:
        """Checks that all files can be written, before any work is done.

        Args:
            model: the model that is evaluated.
            force: files that exist may be replaced.
            inputs: files and folders that are read, which no file may replace.

        Raises:
            InputError: a file would replace an input, two of them are one file, a name does not end as it should,
                `bench` is no report of bench or has no page to be shown in, or `card` is set and the model is no folder
                that ternarize wrote.
            UnavailableError: matplotlib is not installed, which the page and the picture need.
            OutputExistsError, OutputError: a file exists and `force` is False, or can't be written.
        """
        from ternarize_cli.bench.report_comparison import times_table
        from ternarize_cli.compress.card_file import read_text
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
            check_page(self.report, force=force, inputs=inputs)
        if self.plot is not None:
            check_plot(self.plot, force=force, inputs=inputs)
        if self.junit is not None:
            check_output(self.junit, force=force, inputs=inputs, folder=False)
        if self.card:
            path = _card_of(model)
            if not (path.parent / "config.json").is_file() or checkpoint.artifact_of(path.parent) is None:
                raise InputError(
                    f"--card writes into the card of a model that ternarize made, and {model} is none",
                    hint="leave --card out, or evaluate the folder that convert, distill or pack wrote",
                )
            check_output(path, force=True, folder=False)
            if path.exists():
                read_text(path)

    def write(
        self,
        model: str | Path,
        found: "EvaluationReport",
        *,
        command: str,
        force: bool,
        warn: Callable[[str], None] = lambda text: None,
    ) -> list[Path]:
        """Writes the files and returns their paths.

        Args:
            model: the model that was evaluated.
            found: the evaluation.
            command: what was typed, for the page.
            force: replace files that exist.
            warn: is told if the metadata of the card can't be read, and only its text gets the scores.

        Raises:
            TernarizeError: as `check`.
        """
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
            paths.append(write_card(Path(model).expanduser(), found, warn))
        return paths


def write_card(model: Path, found: "EvaluationReport", warn: Callable[[str], None]) -> Path:
    """Writes the scores of an evaluation into the card of a model's folder; returns the card.

    Args:
        model: the folder.
        found: the evaluation.
        warn: is told if the metadata of the card can't be read, and only its text gets the scores.

    Raises:
        InputError: the card is longer than 4 MB, or no text in UTF-8.
        OutputError: the card can't be written.
    """
    from ternarize_cli.compress.card import task_of
    from ternarize_cli.compress.card_scores import write_scores
    from ternarize_cli.evaluation.card_results import results_of, table_of

    path, comparison = _card_of(model), found.comparison
    results = results_of(comparison, found.hashes, task_of(model))
    if not write_scores(path, table_of(comparison), results, name=comparison.students[0].name):
        warn(f"the metadata of {path} can't be read, and stay as they are: the scores are in its text only")
    return path


def _card_of(model: str | Path) -> Path:
    return Path(model).expanduser() / "README.md"
