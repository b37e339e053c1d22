"""The report and the Pareto plot: what they say is what was found, and they need nothing but themselves."""

import importlib.util
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ternarize_cli.errors import InputError, OutputExistsError, UnavailableError
from ternarize_cli.evaluation.compare import Comparison, Evaluation, compare
from ternarize_cli.evaluation.page import check_page
from ternarize_cli.evaluation.pareto import frontier, pareto_figure, points
from ternarize_cli.evaluation.report import plot_pareto, write_report
from ternarize_cli.evaluation.samples import Samples, Score
from ternarize_cli.measuring import machine

DATA = {"pairs": "ab" * 32, "a & <b>": "cd" * 32}


def model(name: str, share: float, size: int, ms: float | None = None, memory: int | None = None) -> Evaluation:
    """A model whose scores are `share` of .8 and .5, on items that scatter around them."""
    scatter = np.random.default_rng(0).uniform(-0.05, 0.05, 200)
    scores = []
    for task, value in (("pairs", 0.8), ("a & <b>", 0.5)):
        values = share * value + scatter - scatter.mean()
        scores.append(Score(task, "accuracy", 200, float(values.mean()), Samples("mean", values)))
    return Evaluation(name, f"{size:064x}", size, tuple(scores), ms, memory)


@pytest.fixture
def comparison() -> Comparison:
    others = [model("onnx-int8", 0.97, 23_000_000, 35.0), model("torch-bf16", 0.96, 45_000_000, 101.0)]
    return compare([model("<packed>", 0.95, 15_000_000, 30.0), *others], model("teacher", 1.0, 90_000_000, 60.0))


def page_of(comparison: Comparison, folder: Path, **options: object) -> str:
    path = folder / "report.html"
    facts = machine.facts() | {"cpu": "Abacus <9>"}
    write_report(path, comparison, machine=facts, command="ternarize eval 'a & b'", data=DATA, **options)
    return path.read_text(encoding="utf-8")


# The frontier.


def test_a_model_is_dominated_by_one_as_good_and_cheaper_or_better_at_the_same_cost() -> None:
    assert frontier([(10, 0.9), (20, 0.9), (10, 0.8), (5, 0.5), (30, 1.0)]) == [True, False, False, True, True]
    assert frontier([(10, 0.9), (10, 0.9)]) == [True, True]


def test_points_have_the_mean_kept_and_its_interval(comparison: Comparison) -> None:
    teacher, student, *others = points(comparison)
    assert (teacher.role, teacher.quality, teacher.low) == ("teacher", 1.0, None)
    assert (student.role, student.quality) == ("student", pytest.approx(0.95))
    assert (student.low, student.high) == comparison.intervals[0]
    assert [p.role for p in others] == ["other", "other"]


def test_without_a_teacher_points_have_the_mean_score() -> None:
    (point,) = points(compare([model("alone", 1.0, 10)], None))
    assert point.quality == pytest.approx(0.65)


# The figure.


def test_there_is_a_panel_for_bytes_and_one_for_latency_where_it_is_known(comparison: Comparison) -> None:
    axes = pareto_figure(comparison, "").axes
    assert [axis.get_xlabel() for axis in axes] == ["bytes of weights", "time to encode 8 items, median"]
    assert all(axis.get_xscale() == "log" for axis in axes)
    untimed = compare([model("a", 0.9, 10_000)], model("t", 1.0, 40_000))
    assert [axis.get_xlabel() for axis in pareto_figure(untimed, "").axes] == ["bytes of weights"]


def test_the_legend_names_each_model_with_a_marker_that_is_the_same_in_both_panels() -> None:
    crowd = [model(f"rival-{i}", 0.97 + 0.004 * (i % 3), 20_000_000 + i, None if i == 1 else 30 + i) for i in range(9)]
    figure = pareto_figure(compare(crowd, model("teacher", 1.0, 90_000_000, 60.0)), "")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["teacher", *(f"rival-{i}" for i in range(9))]
    by_bytes, by_time = ({line.get_label(): line.get_marker() for line in axis.lines[1:-1]} for axis in figure.axes)
    assert len(set(by_bytes.values())) == 10
    assert by_time == {name: marker for name, marker in by_bytes.items() if name != "rival-1"}


def test_dominated_rivals_are_grey_and_the_student_never_is(comparison: Comparison) -> None:
    worse = compare([*comparison.students[1:], model("bad", 0.5, 95_000_000, 200.0)], comparison.teacher)
    colours = {line.get_label(): line.get_color() for line in pareto_figure(worse, "").axes[0].lines}
    assert colours["bad"] == colours["torch-bf16"] == "#8a8a8a"
    assert len({colours["teacher"], colours["onnx-int8"], "#8a8a8a"}) == 3


@pytest.mark.parametrize("name", ["plot.png", "plot.svg"])
def test_the_plot_is_a_file_of_its_own(comparison: Comparison, tmp_path: Path, name: str) -> None:
    plot_pareto(tmp_path / name, comparison)
    assert (tmp_path / name).read_bytes()[:4] in (b"\x89PNG", b"<?xm")
    with pytest.raises(OutputExistsError):
        plot_pareto(tmp_path / name, comparison)


# The page.


def test_the_page_says_what_was_found(comparison: Comparison, tmp_path: Path) -> None:
    page = page_of(comparison, tmp_path, notes=["onnx-int8: per channel & dynamic"])
    low, high = comparison.intervals[0] or (0, 0)
    for text in (
        "What &lt;packed&gt; keeps of teacher",
        f"95.0% <small> [{100 * low:.1f}, {100 * high:.1f}]",
        "6.0×",
        "2.00×",
        "faster than the teacher",
        "15.0 MB",
        "101.0 ms",
        "0.7600",
        "Abacus &lt;9&gt;",
        "ternarize eval &#x27;a &amp; b&#x27;",
        "a &amp; &lt;b&gt;",
        "ab" * 32,
        comparison.students[0].content_hash,
        "per channel &amp; dynamic",
    ):
        assert text in page, text
    assert "<packed>" not in page
    assert "memory" not in page


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing(comparison: Comparison, tmp_path: Path) -> None:
    page = page_of(comparison, tmp_path)
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert not re.search(r"<script|<link|<img|@import|url\((?!#)|\ssrc=", page)


@pytest.mark.slow
def test_the_pictures_follow_the_theme_of_the_page(comparison: Comparison, tmp_path: Path) -> None:
    page = page_of(comparison, tmp_path)
    assert "prefers-color-scheme: dark" in page
    (picture,) = re.findall(r"<figure>(<svg.*?</svg>)", page, flags=re.DOTALL)
    assert ElementTree.fromstring(picture).get("fill") == "currentColor"
    assert "var(--student)" in picture
    assert "#000000" not in picture


def test_the_page_shows_the_times_of_a_report_of_bench_as_text(comparison: Comparison, tmp_path: Path) -> None:
    row = {"name": "<script>alert(1)</script>", "batch": 1, "tokens": 16, "median_ms": 3.25, "p10_ms": 3, "p90_ms": 4}
    bench = {"model": "<img src=x>", "rows": [row | {"lengths": "</td>"}], "machine": {"cpu": ["<b>"]}, "busy": True}
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    page = page_of(comparison, tmp_path, bench=tmp_path / "bench.json")
    for text in (
        "Speed of &lt;img src=x&gt;",
        "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td><td>1 x lengths of &lt;/td&gt;</td><td>3.25 (3.00-4.00)</td>",
        "Measured on &lt;b&gt;, unknown threads. Other processes were busy",
    ):
        assert text in page, text
    assert not re.search(r"<script|<img|<b>(?!\d)", page)


def test_times_of_bench_need_a_page_and_a_report(run: Callable[..., object], tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"rows": []}')
    for options, message in (
        ((), "--bench is shown in a page, and none is written"),
        (("--report", tmp_path / "page.html"), "is no report of bench: it has no rows and machine"),
    ):
        result = run("eval", tiny_bert, "--sts", "none.csv", "--bench", tmp_path / "bench.json", *options)
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_slower_student_is_called_slower_and_memory_has_a_column(tmp_path: Path) -> None:
    slow = model("slow", 0.9, 10_000_000, 90.0, 250_000_000)
    page = page_of(compare([slow], model("t", 1.0, 20_000_000, 60.0)), tmp_path)
    assert '<b>1.50×</b><span class="soft">slower than the teacher' in page
    assert "250.0 MB" in page


def test_a_page_without_a_teacher_has_scores_only(tmp_path: Path) -> None:
    page = page_of(compare([model("alone", 1.0, 10_000_000)], None), tmp_path)
    assert "Evaluation of alone" in page
    assert "0.8000" in page
    assert "kept, mean" not in page
    assert 'class="cards"' not in page


def test_an_undefined_retention_is_said_to_be_undefined(comparison: Comparison, tmp_path: Path) -> None:
    assert comparison.teacher is not None
    first, *rest = comparison.teacher.scores
    zero = replace(comparison.teacher, scores=(replace(first, value=0.0), *rest))
    page = page_of(compare(comparison.students, zero), tmp_path)
    assert page.count("<td>undefined</td>") == 3
    assert page.count("<small>undefined</small>") == 3


# What is refused.


def test_a_report_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"ends in \.html"):
        check_page(tmp_path / "report.pdf", force=False)
    (tmp_path / "there.html").touch()
    with pytest.raises(OutputExistsError):
        check_page(tmp_path / "there.html", force=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="--report needs matplotlib") as caught:
        check_page(tmp_path / "new.html", force=False)
    assert "ternarize-cli[plot]" in str(caught.value.hint)
