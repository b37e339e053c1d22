"""Writes an HTML page about an evaluation, and its picture as a file.

The page (`page`) is a single file without links to others. Its numbers can be checked: it names the machine,
the command, and the hashes of data and models.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ternarize_cli.bench.report import machine_line
from ternarize_cli.bench.report_comparison import times_table
from ternarize_cli.errors import counted
from ternarize_cli.evaluation import page
from ternarize_cli.evaluation.pareto import pareto_figure
from ternarize_cli.measuring import figures

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison, Evaluation, Retention

__all__ = ["plot_pareto", "write_report"]

_WHISKER = 110, 14
"""Width and height of the picture of an interval, in pixels."""


def plot_pareto(path: Path, comparison: "Comparison", *, force: bool = False) -> None:
    """Draws quality against bytes and latency (`pareto`) into a .png, .svg or .pdf.

    Raises:
        InputError: the name does not end in .png, .svg or .pdf.
        UnavailableError: matplotlib is not installed.
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
    """
    figures.check_plot(path, force=force)
    figures.save_figure(pareto_figure(comparison, _title(comparison)), path, force=force)


def write_report(
    path: Path,
    comparison: "Comparison",
    *,
    machine: Mapping[str, Any],
    command: str,
    data: Mapping[str, str],
    notes: Sequence[str] = (),
    bench: Path | None = None,
    force: bool = False,
) -> None:
    """Writes the page of an evaluation.

    Args:
        path: the file, whose name ends in .html.
        comparison: models, scores and intervals.
        machine: facts about the machine (`measuring.machine.facts`).
        command: the command line as it was typed.
        data: for each task, the sha256 or revision of its data.
        notes: sentences for the reader, such as how rivals were made.
        bench: a file of `bench --json`, whose times become a table.
        force: replace an existing file.

    Raises:
        InputError: the name does not end in .html, or `bench` is no report of bench.
        UnavailableError: matplotlib is not installed.
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
    """
    page.check_page(path, force=force)
    title = _title(comparison)
    parts = [
        f'<p class="soft">{_subtitle(comparison)}</p>',
        _cards(comparison),
        "<h2>Quality against cost</h2>",
        f"<figure>{page.picture(pareto_figure(comparison, ''))}<figcaption>{_LEGEND}</figcaption></figure>",
        "<h2>Models</h2>",
        _models(comparison),
        "<h2>Tasks</h2>",
        _tasks(comparison),
        *_indexes(comparison),
        *([] if bench is None else _times(bench)),
        *(["<h2>Notes</h2>", "<ul>", *(f"<li>{escape(note)}</li>" for note in notes), "</ul>"] if notes else []),
        "<h2>How this was measured</h2>",
        f"<pre>{escape(command)}</pre>",
        f"<p>{escape(machine_line(dict(machine)))}</p>",
        _hashes(comparison, data),
    ]
    page.write_page(path, title, parts, force=force)


_LEGEND = (
    "Star: the model in question. Square: the teacher. Green: no other model is both as good and as cheap. Grey: one "
    "is. Bars: 95% interval of the mean."
)
_EXPLAINED = (
    "Kept: the model's score over the teacher's. In brackets the 95% interval, by a bootstrap that draws the same "
    "items for both."
)
_INDEXED = "Queries (first sentences) by the model, documents (second sentences) by the teacher."


def _title(comparison: "Comparison") -> str:
    names = [student.name for student in comparison.students]
    if comparison.teacher is None:
        return "Evaluation of " + ", ".join(names)
    return f"What {names[0]} keeps of {comparison.teacher.name}"


def _subtitle(comparison: "Comparison") -> str:
    tasks = counted(len(comparison.tasks[0]), "task")
    models = counted(len(comparison.students) + bool(comparison.teacher), "model")
    return f"{tasks}, {models}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def _cards(comparison: "Comparison") -> str:
    student, teacher = comparison.students[0], comparison.teacher
    kept = comparison.mean_retention(0)
    if teacher is None or kept is None:
        return ""
    interval = comparison.interval()
    shown = [(_percent(kept), f"of the teacher's quality kept{_brackets(interval)}")]
    if student.weights_bytes:
        shown.append((f"{teacher.weights_bytes / student.weights_bytes:.1f}×", "smaller weights"))
    if student.latency_ms and teacher.latency_ms:
        ratio = teacher.latency_ms / student.latency_ms
        shown.append(
            (f"{max(ratio, 1 / ratio):.2f}×", "faster than the teacher" if ratio >= 1 else "slower than the teacher")
        )
    return page.cards(shown)


def _models(comparison: "Comparison") -> str:
    everyone = [*([comparison.teacher] if comparison.teacher else []), *comparison.students]
    timed = any(model.latency_ms is not None for model in everyone)
    weighed = any(model.memory_bytes is not None for model in everyone)
    columns = ["model", *(["kept, mean", ""] if comparison.teacher else []), "weights"]
    columns += (["8 items"] if timed else []) + (["memory"] if weighed else [])
    scale = _scale(comparison)
    rows = []
    for i, model in enumerate(everyone, start=-1 if comparison.teacher else 0):
        cells = [f'<td title="{escape(model.content_hash)}">{escape(model.name)}</td>']
        if comparison.teacher:
            kept, interval = (1.0, None) if i < 0 else (comparison.mean_retention(i), comparison.interval(i))
            cells += [_kept(kept, interval), f"<td>{_whisker(kept, interval, scale)}</td>"]
        cells.append(f"<td>{_megabytes(model.weights_bytes)}</td>")
        if timed:
            cells.append("<td></td>" if model.latency_ms is None else f"<td>{model.latency_ms:.1f} ms</td>")
        if weighed:
            cells.append("<td></td>" if model.memory_bytes is None else f"<td>{_megabytes(model.memory_bytes)}</td>")
        role = {-1: ' class="teacher"', 0: ' class="student"'}.get(i, "")
        rows.append(f"<tr{role}>{''.join(cells)}</tr>")
    return page.table(columns, rows, _EXPLAINED if comparison.teacher else "")


def _tasks(comparison: "Comparison") -> str:
    """Makes the table with a row for each task and a column for each model: score and retention."""
    teacher = comparison.teacher
    columns = ["task", "metric", "items", *([teacher.name] if teacher else []), *(s.name for s in comparison.students)]
    rows = []
    for number, task in enumerate(comparison.tasks[0]):
        cells = [f"<td>{escape(task.task)}</td><td>{escape(task.metric)}</td><td>{task.size:,}</td>"]
        if teacher:
            cells.append(f"<td>{teacher.scores[number].value:.4f}</td>")
        cells += [_score(of[number]) for of in comparison.tasks]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    caption = "Scores; below them what is kept of the teacher's." if teacher else "Scores, with their 95% intervals."
    return page.table(columns, rows, caption)


def _indexes(comparison: "Comparison") -> list[str]:
    """Makes the heading and the table of the students' queries in the teacher's documents; nothing without numbers."""
    rows = []
    for student, tasks in zip(comparison.students, comparison.tasks, strict=True):
        for task in tasks:
            found = task.index
            if found is None or found.score is None:
                continue
            bounds = None if found.low is None or found.high is None else (found.low, found.high)
            cells = [f"<td>{escape(student.name)}</td><td>{escape(task.task)}</td><td>{found.score:.4f}</td>"]
            cells.append(_kept(found.retention, bounds))
            numbers = (found.query_cosine, found.document_cosine, found.overlap)
            cells += ["<td></td>" if number is None else f"<td>{number:.4f}</td>" for number in numbers]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    columns = ["model", "task", "score", "kept", "cosine, queries", "documents", "overlap@10"]
    return ["<h2>With the teacher's index</h2>", page.table(columns, rows, _INDEXED)] if rows else []


def _times(bench: Path) -> list[str]:
    """Makes the heading and the table of a report of bench."""
    table = times_table(bench)
    rows = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows]
    return [f"<h2>Speed of {escape(table.title)}</h2>", page.table(table.columns, rows, table.caption)]


def _score(task: "Retention") -> str:
    bounds = None if task.low is None or task.high is None else (task.low, task.high)
    if task.teacher is None:
        below = "" if bounds is None else f"<br><small>[{bounds[0]:.4f}, {bounds[1]:.4f}]</small>"
    elif task.retention is None:
        below = "<br><small>undefined</small>"
    else:
        below = f"<br><small>{_percent(task.retention)}{_brackets(bounds)}</small>"
    return f"<td>{task.student:.4f}{below}</td>"


def _kept(kept: float | None, interval: tuple[float, float] | None) -> str:
    return "<td>undefined</td>" if kept is None else f"<td>{_percent(kept)} <small>{_brackets(interval)}</small></td>"


def _scale(comparison: "Comparison") -> tuple[float, float]:
    """Finds the least and the greatest quality that a whisker has to show."""
    found = [1.0]
    for i in range(len(comparison.students)):
        found += [v for v in (comparison.mean_retention(i), *(comparison.interval(i) or ())) if v is not None]
    return min(found), max(found)


def _whisker(kept: float | None, interval: tuple[float, float] | None, scale: tuple[float, float]) -> str:
    """Draws an SVG: a dot with its interval, and a line at the teacher."""
    width, height = _WHISKER
    low, high = scale
    if kept is None or high == low:
        return ""

    def x(value: float) -> str:
        return f"{5 + (width - 10) * (value - low) / (high - low):.1f}"

    middle = height / 2
    bar = (
        f'<line x1="{x(interval[0])}" x2="{x(interval[1])}" y1="{middle}" y2="{middle}" stroke="currentColor" '
        'stroke-width="2"/>'
        if interval
        else ""
    )
    return (
        f'<svg class="whisker" width="{width}" height="{height}" role="img" aria-label="{_percent(kept)}">'
        f'<line x1="{x(1.0)}" x2="{x(1.0)}" y1="0" y2="{height}" stroke="currentColor" stroke-dasharray="2 2"/>{bar}'
        f'<circle cx="{x(kept)}" cy="{middle}" r="4" fill="var(--text)"/></svg>'
    )


def _hashes(comparison: "Comparison", data: Mapping[str, str]) -> str:
    models: list[Evaluation] = [*([comparison.teacher] if comparison.teacher else []), *comparison.students]
    entries = [(model.name, model.content_hash) for model in models] + list(data.items())
    listed = "".join(f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in entries)
    return f'<p class="soft">sha256 of models and data:</p><dl>{listed}</dl>'


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def _brackets(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
