"""Quality gates: least retentions, below which a job of continuous integration fails.

`--min-retention 0.98` is a gate for the mean over all tasks, `--min-retention TASK=0.97` for one task, and
`--min-retention index=0.99` for the student's queries in the teacher's documents, the mean over retrieval tasks. A task
named `index` leaves no room for this gate: it is refused then, until the task has another name. Gates apply to the
evaluated model, the first student of a comparison, not to the models that it is compared with. An undefined retention
misses every gate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ternarize_cli.errors import GateMissedError, InputError, counted

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison

__all__ = ["INDEX", "Gate", "check", "missed", "parse_gates"]

INDEX = "index"
"""What stands before the `=` of a gate for the student's queries in the teacher's documents."""


@dataclass(frozen=True)
class Gate:
    """The least accepted retention of a task, of the mean if `task` is None, or with the teacher's index if INDEX."""

    task: str | None
    minimum: float


def parse_gates(
    texts: Sequence[str], tasks: Sequence[str] | None = None, retrieval: Sequence[str] = ()
) -> tuple[Gate, ...]:
    """Reads `VALUE`, `TASK=VALUE` and `index=VALUE`.

    Args:
        texts: the gates as the user wrote them.
        tasks: names of the tasks that will run; None: they are not known yet, and not checked.
        retrieval: names of those of them that are retrieval from files, without noisy ones.

    Raises:
        InputError: a value is not between 0 and 1, a task is unknown, or a gate is given twice; or a gate is for the
            teacher's index, and no task is retrieval from files, or a task is named `index`.
    """
    gates: dict[str | None, Gate] = {}
    for text in texts:
        name, separator, value = text.rpartition("=")
        task = name if separator else None
        if task == INDEX and tasks is not None:
            _check_index(text, tasks, retrieval)
        elif task is not None and tasks is not None and task not in tasks:
            raise InputError(f"--min-retention {text}: there is no task {task!r}", hint=f"tasks: {', '.join(tasks)}")
        try:
            minimum = float(value)
        except ValueError:
            minimum = float("nan")
        if not 0 < minimum <= 1:
            raise InputError(
                f"--min-retention {text}: {value!r} is not a number above 0 and at most 1",
                hint="give a fraction of the teacher's score: --min-retention 0.98",
            )
        if task in gates:
            raise InputError(f"--min-retention is given twice for {'the mean' if task is None else task}")
        gates[task] = Gate(task, minimum)
    return tuple(gates.values())


def _check_index(text: str, tasks: Sequence[str], retrieval: Sequence[str]) -> None:
    if INDEX in tasks:
        raise InputError(
            f"--min-retention {text}: there is a task named {INDEX!r}, and this is also the name of the gate for the "
            "teacher's index",
            hint="rename the task's file or folder, or name it in a task file (--task-file, name = …)",
        )
    if not retrieval:
        raise InputError(
            f"--min-retention {text} is about queries in the teacher's index, and no task is retrieval from files",
            hint="--retrieval DIR, a folder of corpus.jsonl and queries.jsonl",
        )


def missed(gates: Sequence[Gate], comparison: "Comparison", unscored: Sequence[str] = ()) -> dict[Gate, str]:
    """Finds the gates that the first student misses, each with a clause that names the retention.

    A gate for the mean is also missed if the data of some tasks (`unscored`) were missing.
    """
    found = {}
    for gate in gates:
        tasks = [task for task in comparison.tasks[0] if gate.task in (None, task.task)]
        if gate.task is None and unscored:
            found[gate] = f"the mean retention lacks {counted(len(unscored), 'task')}: {', '.join(unscored)}"
            continue
        if gate.task == INDEX:
            if clause := _missed_index(gate, comparison):
                found[gate] = clause
            continue
        retention = comparison.mean_retention() if gate.task is None else next((t.retention for t in tasks), None)
        subject = "the mean retention" if gate.task is None else f"the retention on {gate.task}"
        if retention is None:
            undefined = [f"the teacher scores {t.teacher:.4g} on {t.task}" for t in tasks if t.retention is None]
            found[gate] = f"{subject} is undefined ({', '.join(undefined) or 'nothing was scored'})"
        elif retention < gate.minimum:
            found[gate] = f"{subject} is {retention:.6g}, below {gate.minimum:g}"
    return found


def _missed_index(gate: Gate, comparison: "Comparison") -> str | None:
    subject, retention = "the retention with the teacher's index", comparison.mean_index_retention()
    if retention is None:
        indexes = [(task.task, task.index) for task in comparison.tasks[0] if task.task not in comparison.noisy]
        why = [
            f"{name}: {index.reason or 'the teacher finds no relevant document'}"
            for name, index in indexes
            if index is not None and index.of_documents and index.retention is None
        ]
        return f"{subject} is undefined ({', '.join(why)})"
    return f"{subject} is {retention:.6g}, below {gate.minimum:g}" if retention < gate.minimum else None


def check(gates: Sequence[Gate], comparison: "Comparison", unscored: Sequence[str] = ()) -> None:
    """Checks that the first student passes every gate.

    Raises:
        GateMissedError: a gate was missed; the message names each, with its retention.
    """
    if clauses := missed(gates, comparison, unscored).values():
        raise GateMissedError("quality gate missed: " + "; ".join(clauses))
