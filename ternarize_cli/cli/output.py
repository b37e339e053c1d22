"""The one object through which every command speaks.

Data goes to stdout, everything else to stderr. In JSON mode stdout carries exactly one object; in quiet mode notes
and bars are silent, results and warnings are not.
"""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from ternarize_cli.cli.streams import tell, visible

__all__ = ["SCHEMA_VERSION", "Output", "counted", "duration", "megabytes"]

SCHEMA_VERSION = 1
T = TypeVar("T")


def megabytes(count: float) -> str:
    """`15400000` → `15.40 MB` (10^6 bytes, as disks and model cards count)."""
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def counted(count: int, noun: str) -> str:
    """`1 shard`, `1,200 shards`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """`4.1 s`, and from a minute and a half on `2.5 minutes`."""
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"


class Output:
    """Human, JSON and quiet modes of a command.

    Args:
        json_mode: print the result as one JSON object on stdout.
        quiet: no notes, hints or progress bars.
    """

    def __init__(self, *, json_mode: bool = False, quiet: bool = False) -> None:
        self.json_mode = json_mode
        self.quiet = quiet

    def note(self, text: str) -> None:
        """A line on stderr about what is going on."""
        if not self.quiet:
            tell(text)

    def hint(self, text: str) -> None:
        """What the user may want to do next, on stderr."""
        self.note(f"hint: {text}")

    def warn(self, text: str) -> None:
        """Something the user must know, on stderr, in every mode."""
        tell(f"warning: {text}")

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str = "") -> None:
        """A table on stdout; the first column is left-aligned, the others right-aligned. Silent in JSON mode."""
        if self.json_mode:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table

        class Paper(Console):
            def on_broken_pipe(self) -> None:
                raise BrokenPipeError  # the application knows what to do

        table = Table(
            caption=caption or None,
            box=box.SIMPLE_HEAD,
        )
        table.caption_justify = "left"
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(visible(str(cell)) for cell in row))
        console = Paper(file=sys.stdout, width=None if sys.stdout.isatty() else 120, highlight=False, markup=False)
        console.print(visible(title), style="bold", soft_wrap=True)
        console.print(table)

    def text(self, text: str) -> None:
        """A line of the result on stdout. Silent in JSON mode."""
        if not self.json_mode:
            print(visible(text))

    def result(self, payload: dict[str, Any]) -> None:
        """The machine-readable result: printed in JSON mode only."""
        if self.json_mode:
            values = {"schema_version": SCHEMA_VERSION, **payload}
            text = json.dumps(values, ensure_ascii=False, allow_nan=False)
            try:
                text.encode(sys.stdout.encoding or "utf-8")
            except UnicodeEncodeError:  # stdout has no such characters, or a file's name is not UTF-8
                text = json.dumps(values, allow_nan=False)
            print(text)

    def track(self, items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """A progress bar on stderr for `items`, drawn on a terminal once two seconds have passed."""
        if self.quiet or not sys.stderr.isatty():
            yield from items
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
            """Items a second, which says how fast it goes where it can't be said how far."""

            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:,.0f}/s" if task.speed else "")

        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
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
        """Yields `update(done, text)`, `done` from 0 to 1: a bar on a terminal, a line every 30 seconds elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            last = time.monotonic()

            def line(done: float, text: str) -> None:
                nonlocal last
                if time.monotonic() - last >= 30:
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
        """A spinner on stderr while the body runs; a plain line where there is no terminal."""
        if self.quiet or not sys.stderr.isatty():
            self.note(f"{text} …")
            yield
            return
        from rich.console import Console

        with Console(file=sys.stderr).status(text):
            yield
