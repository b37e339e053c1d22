"""JUnit XML of an evaluation, parsed back; and gates, which are about the first of several students."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from ternarize_cli.errors import GateMissedError, OutputExistsError
from ternarize_cli.evaluation.compare import Comparison, Evaluation, Retention
from ternarize_cli.evaluation.gates import check, missed, parse_gates
from ternarize_cli.evaluation.hub_data import Missing
from ternarize_cli.evaluation.junit import write_junit

TEACHER = Evaluation("teacher", "c0ffee", 4000, ())


def kept(task: str, teacher: float | None, student: float, **bounds: float) -> Retention:
    ratio = student / teacher if teacher is not None and teacher > 0 else None
    return Retention(task, "accuracy", 9, teacher, student, ratio, **bounds)


def two_students(name: str = "student") -> Comparison:
    students = Evaluation(name, "beef", 250, (), 1.5, 1 << 20), Evaluation("rival", "cafe", 1000, ())
    tasks = (
        (kept("a", 0.8, 0.76, low=0.9, high=0.99), kept("b", 0.5, 0.5), kept("c", 0.0, 0.1)),
        (kept("a", 0.8, 0.4), kept("b", 0.5, 0.1), kept("c", 0.0, 0.0)),
    )
    return Comparison(students, TEACHER, tasks, ((0.91, 0.97), None))


def read(path: Path) -> ElementTree.Element:
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    (suite,) = root
    for name, found in (("tests", "testcase"), ("failures", "testcase/failure"), ("skipped", "testcase/skipped")):
        assert root.get(name) == suite.get(name) == str(len(suite.findall(found)))
    return suite


def properties(element: ElementTree.Element) -> dict[str | None, str | None]:
    return {p.get("name"): p.get("value") for p in element.findall("properties/property")}


def test_scores_and_gates_are_test_cases(tmp_path: Path) -> None:
    gates = parse_gates(["a=0.99", "b=1", "0.9"], ["a", "b", "c"])
    write_junit(tmp_path / "junit.xml", two_students(), gates)
    suite = read(tmp_path / "junit.xml")
    cases = {(case.get("classname"), case.get("name")): case for case in suite.findall("testcase")}
    assert list(cases) == [
        *((who, task) for who in ("student", "rival") for task in "abc"),
        *(("gates", name) for name in ("a ≥ 0.99", "b ≥ 1", "mean ≥ 0.9")),
    ]
    assert properties(cases["student", "a"]) == {
        "metric": "accuracy",
        "size": "9",
        "teacher": "0.8",
        "student": "0.76",
        "retention": "0.95",
        "low": "0.9",
        "high": "0.99",
        "weights_bytes": "250",
        "latency_ms": "1.5",
        "memory_bytes": "1048576",
    }
    assert "retention 0.95" in (cases["student", "a"].findtext("system-out") or "")
    assert cases["student", "c"].find("skipped").get("message").startswith("the teacher scores 0,")
    assert properties(suite) == {
        "model": "student",
        "model_content_hash": "beef",
        "model_weights_bytes": "250",
        "teacher": "teacher",
        "teacher_content_hash": "c0ffee",
        "teacher_weights_bytes": "4000",
        "mean_retention_low": "0.91",
        "mean_retention_high": "0.97",
    }
    failures = {name: case.find("failure") for (_, name), case in cases.items()}
    assert failures.pop("a ≥ 0.99").get("message") == "the retention on a is 0.95, below 0.99"
    assert "undefined (the teacher scores 0 on c)" in failures.pop("mean ≥ 0.9").get("message")
    assert set(failures.values()) == {None}


def test_gates_are_about_the_first_student() -> None:
    comparison = two_students()
    check(parse_gates(["a=0.95", "b=1"], ["a", "b", "c"]), comparison)
    gates = parse_gates(["a=0.96", "b=1"], ["a", "b", "c"])
    assert missed(gates, comparison) == {gates[0]: "the retention on a is 0.95, below 0.96"}
    with pytest.raises(GateMissedError, match=r"the retention on a is 0\.95, below 0\.96"):
        check(gates, comparison)


def test_a_task_that_was_not_scored_misses_its_gate_and_is_skipped(tmp_path: Path) -> None:
    gates = parse_gates(["d=0.9"], ["a", "b", "c", "d"])
    missing = [Missing("d", "mteb/d", "its data are not here", "bring them")]
    write_junit(tmp_path / "junit.xml", two_students(), gates, missing=missing)
    suite = read(tmp_path / "junit.xml")
    assert [s.get("message") for s in suite.iter("skipped")][-1] == "its data are not here; bring them"
    assert [f.get("message") for f in suite.iter("failure")] == ["the retention on d is undefined (nothing was scored)"]


def test_one_model_without_a_teacher_has_scores_only(tmp_path: Path) -> None:
    alone = Comparison((Evaluation("one", "beef", 250, ()),), None, ((kept("a", None, 0.7, low=0.6, high=0.8),),))
    write_junit(tmp_path / "junit.xml", alone)
    suite = read(tmp_path / "junit.xml")
    assert (suite.get("tests"), suite.get("skipped")) == ("1", "0")
    found = properties(suite.find("testcase"))
    assert (found["student"], found["low"], "retention" in found, "teacher" in found) == ("0.7", "0.6", False, False)


@pytest.mark.parametrize("name", ['a <b> & "c"', "nul\0 bell\a", "lone \udce9", "line\nbreak", "模型 👍", "]]>"])
def test_any_model_name_makes_valid_xml(tmp_path: Path, name: str) -> None:
    write_junit(tmp_path / "junit.xml", two_students(name))
    found = properties(read(tmp_path / "junit.xml"))["model"]
    assert found == name.translate(dict.fromkeys((0, 7, 0xDCE9), "\N{REPLACEMENT CHARACTER}"))


def test_a_file_that_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        write_junit(path, two_students())
    assert path.read_text() == "mine"
    write_junit(path, two_students(), force=True)
    assert read(path).get("tests") == "6"
    assert [p.name for p in tmp_path.iterdir()] == ["junit.xml"]
