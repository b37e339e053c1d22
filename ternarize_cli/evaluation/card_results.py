"""Writes an evaluation for a model's card: a table of Markdown for readers, and results for the hub's metadata."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ternarize_cli.compress.card import cell
from ternarize_cli.compress.card_scores import TOOL
from ternarize_cli.evaluation.existing_index import ExistingIndex

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

    from ternarize_cli.evaluation.compare import Comparison, Retention

__all__ = ["results_of", "table_of"]

_DIGITS = 4


def table_of(comparison: "Comparison") -> str:
    """Writes the evaluated model's scores as a table of Markdown, beside the teacher's if there is one."""
    teacher = comparison.teacher
    indexed = any(task.index for task in comparison.tasks[0])
    columns = ["task", "metric", "size", "score", *([teacher.name, "kept", "95%"] if teacher else [])]
    columns += ["kept with its index", "95%"] if indexed else []
    rows = [[cell(name) for name in columns], ["---", "---", *["---:"] * (len(columns) - 2)]]
    for task in comparison.tasks[0]:
        kept = [] if teacher is None else [_number(task.teacher), _percent(task.retention), _between(task)]
        index = task.index or ExistingIndex(of_documents=True)
        kept += [_percent(index.retention), _between(index)] if indexed else []
        rows.append([cell(task.task), cell(task.metric), f"{task.size:,}", _number(task.student), *kept])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if (mean := comparison.mean_retention()) is not None:
        bounds = comparison.interval()
        inside = "" if bounds is None else f" (95%: {bounds[0]:.1%} to {bounds[1]:.1%})"
        lines += ["", f"Kept in the mean of the tasks: **{mean:.1%}**{inside}."]
    if teacher is not None:
        lines += [
            "",
            f"Kept: the score over that of `{teacher.name.replace('`', '')}` on the same data. Intervals are of a "
            "paired bootstrap over the items.",
        ]
    if indexed:
        lines += ["", "With its index: queries by this model, documents as the original encoded them."]
    return "\n".join(lines)


def results_of(comparison: "Comparison", hashes: Mapping[str, str], task_type: str) -> "list[EvalResult]":
    """Makes the evaluated model's scores for `model-index`.

    Args:
        comparison: the scores.
        hashes: task → sha256 of its data.
        task_type: what the model is for, in the hub's words.
    """
    from huggingface_hub import EvalResult

    made = []
    for task in comparison.tasks[0]:
        known: dict[str, Any] = {"teacher": task.teacher, "retention": task.retention}
        if task.teacher is not None and task.low is not None and task.high is not None:
            known["retention_interval"] = [task.low, task.high]
        if task.index is not None:
            known["index_retention"] = task.index.retention
            if task.index.low is not None and task.index.high is not None:
                known["index_retention_interval"] = [task.index.low, task.index.high]
        rounded = {key: _rounded(value) for key, value in known.items() if value is not None}
        made.append(
            EvalResult(
                task_type=task_type,
                dataset_type=re.sub(r"[^A-Za-z0-9._/-]+", "-", task.task).strip("-") or "data",
                dataset_name=task.task,
                dataset_revision=hashes.get(task.task),
                metric_type=task.metric,
                metric_value=_rounded(task.student),
                metric_args={**TOOL, "size": task.size, **rounded},
            )
        )
    return made


def _rounded(value: Any) -> Any:
    return [_rounded(one) for one in value] if isinstance(value, list) else round(float(value), _DIGITS)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.{_DIGITS}f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _between(kept: "Retention | ExistingIndex") -> str:
    return "" if kept.low is None or kept.high is None else f"{kept.low:.1%} to {kept.high:.1%}"
