"""Prints the output of every command through one class.

Results go to stdout, everything else to stderr. In JSON mode stdout carries exactly one object. In quiet mode there are
no notes, hints and progress bars, but results and warnings.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ternarize_cli.cli.streams import tell, visible

__all__ = ["SCHEMA_VERSION", "Output", "duration", "megabytes"]

SCHEMA_VERSION = 1
_SECONDS_BETWEEN_LINES = 30
T = TypeVar("T")


def megabytes(count: float) -> str:
    """Writes a number of bytes in MB of 10^6 bytes, as disks and model cards do, or in GB: `15.40 MB`."""
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    """Writes a duration as `4.1 s`, and from 90 seconds on as `2.5 minutes`."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"


def _draws_on(stream: Any) -> bool:
    """Returns whether colours and bars may be drawn on a stream: it is a terminal, and NO_COLOR is not set."""
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


class Output:
    """Prints what a command has to say, in human, JSON or quiet mode.

    Args:
        json_mode: print the result as one JSON object on stdout, and no tables or text.
        quiet: print no notes, hints or progress bars.
    """

    def __init__(self, *, json_mode: bool = False, quiet: bool = False) -> None:
        self.json_mode = json_mode
        self.quiet = quiet

    def note(self, text: str) -> None:
        """Prints a line on stderr about what is going on, unless in quiet mode."""
        if not self.quiet:
            tell(text)

    def hint(self, text: str) -> None:
        """Prints on stderr what the user may want to do next, unless in quiet mode."""
        self.note(f"hint: {text}")

    def warn(self, text: str) -> None:
        """Prints a warning on stderr, in every mode."""
        tell(f"warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> None:
        """Prints a table on stdout, unless in JSON mode; the first column is left-aligned, the others right-aligned."""
        if self.json_mode:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        class Paper(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # `app` ends the command quietly

        table = Table(
            caption=caption or None,
            box=box.SIMPLE_HEAD,
        )
        table.caption_justify = "left"
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(visible(str(cell)) for cell in row))
        draws = _draws_on(sys.stdout)
        width = None if sys.stdout.isatty() else 120
        console = Paper(file=sys.stdout, width=width, force_terminal=draws, highlight=False, markup=False)
        console.print(visible(title), style="bold", soft_wrap=True)
        console.print(table)

    def text(self, text: str) -> None:
        """Prints a line of the result on stdout, unless in JSON mode."""
        if not self.json_mode:
            print(visible(text))

    def result(self, payload: dict[str, Any]) -> None:
        """Prints the result as one JSON object on stdout, in JSON mode only."""
        if self.json_mode:
            values = {"schema_version": SCHEMA_VERSION, **payload}
            text = json.dumps(values, ensure_ascii=False, allow_nan=False)
            try:
                text.encode(sys.stdout.encoding or "utf-8")
            except UnicodeEncodeError:  # stdout has no such characters, or a file's name is not UTF-8
                text = json.dumps(values, allow_nan=False)
            print(text)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """Yields `items`; on a terminal, draws a progress bar on stderr once two seconds have passed.

        If stderr is no terminal, such as the log of a server, prints a line every 30 seconds.

        Args:
            items: the items to yield.
            description: the text beside the bar.
            total: number of items; None takes the length of `items`, if it has one.
        """
        if self.quiet:
            yield from items
            return
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        if not _draws_on(sys.stderr):
            last = time.monotonic()
            for done, item in enumerate(items):
                if (now := time.monotonic()) - last >= _SECONDS_BETWEEN_LINES:
                    last = now
                    self.note(f"{description}: {done:,}" + ("" if total is None else f" of {total:,}"))
                yield item
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            Task,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            """Shows the items per second, also if the total is unknown."""

            def render(self, task: Task) -> Text:
                if not task.speed:
                    return Text("")
                return Text(f"{task.speed:,.0f}/s" if task.speed >= 2 else f"{1 / task.speed:,.1f} s each")

        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
            transient=True,
        )
        started, shown = time.monotonic(), False
        task = progress.add_task(description, total=total)
        try:
            for item in items:
                if not shown and time.monotonic() - started > 2:
                    progress.start()
                    shown = True
                yield item
                progress.advance(task)
        finally:
            if shown:
                progress.stop()

    @contextmanager
    def meter(self, description: str) -> Iterator[Callable[[float, str], None]]:
        """Yields a function `update(done, text)` that shows progress; `done` goes from 0 to 1.

        It draws a bar on a terminal, and otherwise prints a line every 30 seconds.
        """
        if self.quiet or not _draws_on(sys.stderr):
            last = time.monotonic()

            def line(done: float, text: str) -> None:
                nonlocal last
                if time.monotonic() - last >= _SECONDS_BETWEEN_LINES:
                    last = time.monotonic()
                    self.note(f"{description} {done:.0%} {text}")

            yield line
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[text]}"),
        )
        with Progress(*columns, console=Console(file=sys.stderr), transient=True) as progress:
            task = progress.add_task(description, total=1.0, text="")
            yield lambda done, text: progress.update(task, completed=done, text=text)

    @contextmanager
    def status(self, text: str) -> Iterator[None]:
        """Shows a spinner on stderr while the body runs, or prints one line if stderr is no terminal."""
        if self.quiet or not _draws_on(sys.stderr):
            self.note(f"{text} …")
            yield
            return
        from rich.console import Console

        with Console(file=sys.stderr).status(text):
            yield
