"""Writes a comparison as JUnit XML, which GitLab CI, Jenkins and report actions of GitHub show with a build's tests.

    testsuite                  the evaluation; properties: the evaluated model, its teacher, the mean retention
    testcase STUDENT / TASK    a score of a student; skipped if its retention is undefined
    testcase gates / GATE      a gate; a failure names the retention and the gate

Each score's properties are its numbers: teacher, student, retention, the bounds of its 95% interval, the score and the
retention with the teacher's index, bytes. Tools do
not agree on one schema of JUnit; this is the form that pytest writes, which all of them read.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from ternarize_cli.evaluation.gates import Gate, missed
from ternarize_cli.storage.files import atomic_file

if TYPE_CHECKING:
    from ternarize_cli.evaluation.compare import Comparison, Evaluation, Retention
    from ternarize_cli.evaluation.hub_data import Missing

__all__ = ["write_junit"]

_UNWRITABLE = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 can't hold (section 2.2, Char)."""


def write_junit(
    path: Path,
    comparison: "Comparison",
    gates: Sequence[Gate] = (),
    *,
    missing: Sequence["Missing"] = (),
    force: bool = False,
) -> None:
    """Writes scores and gates as one test suite, atomically.

    Args:
        path: the file.
        comparison: the scores of one student or more.
        gates: the gates for the first student.
        missing: tasks that could not be scored; each becomes a skipped test.
        force: replace an existing file.

    Raises:
        OutputExistsError: the file exists, and `force` is false.
        OutputError: the file can't be written.
    """
    first, teacher = comparison.students[0], comparison.teacher
    suite = ElementTree.Element("testsuite", name=_written(f"ternarize eval {first.name}"))
    low, high = comparison.interval() or (None, None)
    _properties(
        suite,
        {
            "model": first.name,
            "model_content_hash": first.content_hash,
            "model_weights_bytes": first.weights_bytes,
            "teacher": teacher.name if teacher else None,
            "teacher_content_hash": teacher.content_hash if teacher else None,
            "teacher_weights_bytes": teacher.weights_bytes if teacher else None,
            "mean_retention": comparison.mean_retention() if teacher else None,
            "mean_retention_low": low,
            "mean_retention_high": high,
            "mean_index_retention": comparison.mean_index_retention(),
        },
    )
    for student, tasks in zip(comparison.students, comparison.tasks, strict=True):
        for task in tasks:
            _score(suite, student, task, compared=teacher is not None)
    for left_out in missing:
        _skip(_case(suite, first.name, left_out.task), f"{left_out.reason}; {left_out.how}")
    failures = missed(gates, comparison, [gap.task for gap in missing])
    for gate in gates:
        case = _case(suite, "gates", f"{gate.task or 'mean'} ≥ {gate.minimum:g}")
        if gate in failures:
            ElementTree.SubElement(case, "failure", message=_written(failures[gate]), type="GateMissedError")
    counts = {
        "tests": str(len(suite.findall("testcase"))),
        "failures": str(len(failures)),
        "errors": "0",
        "skipped": str(len(suite.findall("testcase/skipped"))),
        "time": "0",
    }
    root = ElementTree.Element("testsuites", counts)
    suite.attrib.update(counts)
    root.append(suite)
    ElementTree.indent(root)
    with atomic_file(path, force=force) as partial:
        ElementTree.ElementTree(root).write(partial, encoding="utf-8", xml_declaration=True)


def _score(suite: ElementTree.Element, student: "Evaluation", task: "Retention", *, compared: bool) -> None:
    case = _case(suite, student.name, task.task)
    numbers = {
        "metric": task.metric,
        "size": task.size,
        "teacher": task.teacher,
        "student": task.student,
        "retention": task.retention,
        "low": task.low,
        "high": task.high,
        "index_score": task.index.score if task.index else None,
        "index_retention": task.index.retention if task.index else None,
        "weights_bytes": student.weights_bytes,
        "latency_ms": student.latency_ms,
        "memory_bytes": student.memory_bytes,
    }
    _properties(case, numbers)
    if compared and task.retention is None:
        _skip(case, f"the teacher scores {_text(task.teacher)}, so the retention is undefined")
    said = ", ".join(f"{name} {_text(value)}" for name, value in numbers.items() if value is not None)
    ElementTree.SubElement(case, "system-out").text = _written(said)


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", classname=_written(group), name=_written(name), time="0")


def _skip(case: ElementTree.Element, reason: str) -> None:
    ElementTree.SubElement(case, "skipped", message=_written(reason))


def _properties(element: ElementTree.Element, values: Mapping[str, object]) -> None:
    properties = ElementTree.SubElement(element, "properties")
    for name, value in values.items():
        if value is not None:
            ElementTree.SubElement(properties, "property", name=name, value=_written(_text(value)))


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _written(text: str) -> str:
    return _UNWRITABLE.sub("\N{REPLACEMENT CHARACTER}", text)
