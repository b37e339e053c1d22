"""`ternarize bench`: texts of real lengths, rivals that are compiled, and reports as files and side by side."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from support.models import save_tiny_bert
from ternarize_cli.bench import lengths
from ternarize_cli.bench import run as running
from ternarize_cli.bench.candidates import BACKEND, RIVAL, BenchCandidate, relative_l2
from ternarize_cli.bench.feeds import Feed
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.output_check import Loaded
from ternarize_cli.bench.probe import Memory
from ternarize_cli.bench.report import latency_table, size_table
from ternarize_cli.bench.report_comparison import compare, comparison_table
from ternarize_cli.bench.report_files import csv_text, markdown_text
from ternarize_cli.bench.rows import rate, time_feed
from ternarize_cli.bench.run import BenchReport, benchmark
from ternarize_cli.bench.shapes import ModelShape
from ternarize_cli.engines import baselines
from ternarize_cli.engines.inputs import random_tokens
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.measuring.timing import GridPoint

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty texts of 1 to 10 words."""
    path = tmp_path_factory.mktemp("texts") / "my|texts.txt"
    path.write_text("\n".join("cat " * (1 + i % 10) for i in range(40)))
    return path


@pytest.fixture(scope="module")
def report(texts: Path) -> BenchReport:
    """Of a random BERT, at 4 x 8 and 4 x texts, with made-up memory."""
    plan = BenchOptions(
        backends=("reference",),
        rivals=("torch-fp32",),
        batches=(4,),
        tokens=(8,),
        repeats=2,
        warmup=0,
        memory=False,
        lengths=str(texts),
    )
    found = benchmark(None, plan, shape=ModelShape("bert", TINY))
    memory = [Memory(row.name, row.kind, 100, 200, 300, 40, 5.5, 6.5, 200) for row in found.rows[:2]]
    return replace(found, memory=memory, busy=False)


# Texts of real lengths.


def test_texts_are_drawn_in_an_order_of_the_seed(texts: Path) -> None:
    drawn = lengths.draw(texts, seed=1)
    assert drawn == lengths.draw(texts, seed=1)
    assert drawn != lengths.draw(texts, seed=2)
    assert sorted(drawn) == sorted(texts.read_text().replace(" \n", "\n").strip().split("\n"))


def test_batches_are_as_wide_as_their_longest_text_and_no_wider(tiny_bert: Path) -> None:
    made = lengths.padded_batches(tiny_bert, ["cat", "cat dog cat", "dog"], (1, 2), count=2, device="cpu")
    special = 2  # [CLS] and [SEP]
    assert [ids.shape for ids, _ in made[1]] == [(1, 1 + special), (1, 3 + special)]
    assert [mask.sum(1).tolist() for _, mask in made[2]] == [[3, 5], [3, 3]]  # the fourth text is the first one again
    assert made[2][0][0].shape == (2, 5)


def test_texts_longer_than_the_model_takes_are_cut(tiny_bert: Path) -> None:
    ((ids, mask),) = lengths.padded_batches(tiny_bert, ["cat " * 100], (1,), count=1, device="cpu")[1]
    assert ids.shape == mask.shape == (1, 64)


def test_a_rate_counts_each_batch_with_its_median_time() -> None:
    assert rate([10, 30], [1.0, 2.0, 9.0, 2.0, 1.0, 2.0]) == round(40 / 3, 1)
    assert rate([10], [0.5, 0.5]) == 20.0
    assert rate([10, 30], [2.0]) == 5.0  # the second batch was never timed


def test_padding_is_masked_and_every_round_has_the_next_batch_for_all() -> None:
    short, long = (torch.ones(2, n, dtype=torch.int64) for n in (3, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    seen: list[tuple[str, int]] = []

    def forward(name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        def call(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            seen.append((name, ids.shape[1]))
            hidden = torch.ones(*ids.shape, 4)
            return hidden if name in ("reference", "exact") else torch.where(mask[..., None] == 0, 7.0, hidden)

        return call

    feed = Feed(((short, torch.ones_like(short)), (long, mask)), "x.txt")
    names = ("native", "torch-bf16")
    candidates = [BenchCandidate(name, kind, Path(), "cpu") for name, kind in zip(names, (BACKEND, RIVAL), strict=True)]
    forwards = {name: forward(name) for name in names}
    ran = {name: name for name in names}
    loaded = Loaded(candidates, forwards, ran, forward("reference"), forward("exact"), [])
    first, second = time_feed(feed, loaded, repeats=3, seconds=9.0, warmup=1)
    seen_widths = [width for name, width in seen if name == "torch-bf16"]
    compared, warm_and_timed = seen_widths[:2], seen_widths[2:]
    assert compared == [3, 5]
    assert warm_and_timed == [3, 5, 3, 5, 3]
    assert (first.batch, first.tokens, first.lengths, first.repeats) == (2, 4, "x.txt", 3)
    assert first.relative_l2 == 0.0
    assert first.padded_tokens_per_s / first.tokens_per_s == pytest.approx(16 / 12, rel=0.01)
    assert second.relative_l2 == 0.0


def test_a_distance_looks_at_tokens_that_count() -> None:
    reference, mask = torch.ones(1, 2, 2), torch.tensor([[1, 0]])
    hidden = torch.tensor([[[1.0, 1.0], [9.0, 9.0]]])
    assert relative_l2(hidden, reference, mask) == 0.0
    assert relative_l2(hidden, reference) > 1.0


def test_rows_of_texts_follow_the_grid_and_say_so(report: BenchReport) -> None:
    assert [(row.name, row.batch, row.lengths) for row in report.rows] == [
        ("reference", 4, None),
        ("torch-fp32", 4, None),
        ("reference", 4, "my|texts.txt"),
        ("torch-fp32", 4, "my|texts.txt"),
    ]
    assert all(row.padded_tokens_per_s == row.tokens_per_s for row in report.rows[:2])
    assert all(row.padded_tokens_per_s > row.tokens_per_s for row in report.rows[2:])
    table = latency_table(report)
    assert table.columns == ["batch x tokens", "", "median", "spread", "tokens/s", "with padding", "speed-up"]
    assert [row[0] for row in table.rows if row[0]] == ["4 x 8", "4 x lengths of my|texts.txt"]
    assert re.search(
        r"4 x lengths of my\|texts.txt: padded to \d+ tokens on average, \d+% of them padding", table.caption
    )


def test_a_missing_file_of_texts_is_refused_before_any_model_is_built(
    run: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "prepare", lambda *args, **kwargs: pytest.fail("a model was built"))
    result = run("bench", "--lengths", "none.txt")
    assert result.exit_code == 2
    assert "none.txt can't be read: there is no such file" in result.stderr


# Rivals.


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_model_gives_what_eager_torch_gives(tmp_path: Path) -> None:
    folder = save_tiny_bert(tmp_path, num_hidden_layers=1)
    compiled, eager = (
        baselines.require_baseline(name).build(folder, "cpu") for name in ("torch-compiled", "torch-fp32")
    )
    config = {"vocab_size": 40}
    with torch.inference_mode():
        for point in (GridPoint(1, 5), GridPoint(3, 12)):
            ids, mask = random_tokens(config, point, seed=0)
            mask[:, 4:] = 0
            assert relative_l2(compiled(ids, mask), eager(ids, mask), mask) < 1e-5


def test_without_a_compiler_there_is_no_compiled_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UnavailableError, match=r"torch-compiled can't run here: .* no C\+\+ compiler"):
        baselines.require_baseline("torch-compiled")
    assert "torch-compiled" not in baselines.available("cpu")[0]


@pytest.mark.slow
def test_all_leaves_out_what_cannot_run_here_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    available, reasons = baselines.available("cuda")
    assert {"torch-fp32", "torch-bf16"} <= set(available)
    assert "torch-compiled runs on the CPU, not on cuda" in reasons
    monkeypatch.setattr(baselines, "available", lambda device: (["torch-bf16"], ["x needs y"]))
    said: list[str] = []
    plan = BenchOptions(
        backends=("reference",),
        rivals=("torch-fp32", "all", "torch-bf16"),
        batches=(1,),
        tokens=(4,),
        repeats=1,
        warmup=0,
        memory=False,
    )
    found = benchmark(None, plan, shape=ModelShape("bert", TINY), say=said.append)
    assert [row.name for row in found.rows] == ["reference", "torch-fp32", "torch-bf16"]
    assert "left out: x needs y" in said
    assert "left out: x needs y" in found.notes


def test_eval_does_not_offer_a_rival_whose_vectors_are_anothers() -> None:
    assert set(baselines.baseline_names(same_vectors=True)) - set(baselines.baseline_names()) == {
        *("torch-compiled", "torch-tf32", "torch-int8", "torch-int8-compiled"),
        *("torch-fp16-compiled", "torch-fp16-autotuned", "onnx-int2"),
        *("torch-fp16-varlen", "torch-fp16-varlen-compiled"),
    }


def test_more_than_five_candidates_have_a_line_each(report: BenchReport) -> None:
    grid = [row for row in report.rows if row.lengths is None]
    rows = [replace(row, name=f"{row.name}-{i}", ran=f"{row.name}-{i}") for i in range(3) for row in grid]
    table = latency_table(replace(report, rows=rows))
    assert table.columns == ["batch x tokens", "", "median", "spread", "tokens/s", "speed-up"]
    assert [row[0] for row in table.rows] == ["4 x 8", "", "", "", "", ""]
    assert size_table(replace(report, rows=rows)).rows[0][0] == "reference-0"


# Files.


def test_csv_has_a_line_for_each_row_with_its_candidate_and_machine(report: BenchReport) -> None:
    lines = list(csv.DictReader(csv_text(report).splitlines()))
    assert len(lines) == len(report.rows)
    first = lines[0]
    assert (first["name"], first["batch"], first["tokens"], first["lengths"]) == ("reference", "4", "8", "")
    assert float(first["median_ms"]) == report.rows[0].median_ms
    assert (first["load_ms"], first["cold_start_ms"], first["loaded_bytes"]) == ("5.5", "6.5", "40")
    assert int(first["disk_bytes"]) == next(form.bytes for form in report.storage if form.name == "packed")
    assert first["cpu"] == report.machine["cpu"]
    assert lines[2]["lengths"] == "my|texts.txt"


def test_markdown_has_the_tables_and_the_command(report: BenchReport) -> None:
    text = markdown_text(report, "ternarize bench x")
    assert "| batch x tokens |  | median | spread |" in text
    assert "| 4 x lengths of my\\|texts.txt | reference |" in text
    assert "$ ternarize bench x" in text
    assert report.machine["cpu"] in text
    assert len({line.count("|") for line in text.split("### ")[2].splitlines() if line.startswith("|")}) == 1


@pytest.mark.slow
def test_the_command_writes_all_files_and_refuses_to_write_over_them(
    run: Callable[..., object], tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"--csv": tmp_path / "a.csv", "--markdown": tmp_path / "a.md"}
    options = [part for option, path in files.items() for part in (option, path)]
    quick = ("--backend", "reference", "--batch", 1, "--tokens", 4, "--repeats", 1, "--warmup", 0, "--no-memory")
    result = run("bench", tiny_bert, *quick, *options)
    assert result.exit_code == 0, result.stderr
    assert all(path.stat().st_size > 300 for path in files.values())
    assert f"wrote {tmp_path / 'a.md'}" in result.stderr
    monkeypatch.setattr(running, "prepare", lambda *args, **kwargs: pytest.fail("a model was built"))
    for option, path in files.items():
        again = run("bench", tiny_bert, *quick, option, path)
        assert again.exit_code == 2
        assert "exists already" in again.stderr
    same = run("bench", tiny_bert, "--csv", tmp_path / "b", "--markdown", tmp_path / "b")
    assert same.exit_code == 2
    assert "--csv and --markdown name the same file" in same.stderr
    read = run("bench", tiny_bert, "--csv", tiny_bert / "config.json", "--force")
    assert read.exit_code == 2
    assert "overlap" in read.stderr


# Reports side by side.


@pytest.fixture
def before(report: BenchReport, tmp_path: Path) -> Path:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(report.to_dict()))
    return path


def write_changed(report: BenchReport, path: Path, factor: float, **machine: object) -> Path:
    """The report with all times multiplied, on another machine."""
    rows = [replace(row, median_ms=row.median_ms * factor) for row in report.rows]
    path.write_text(json.dumps(replace(report, rows=rows, machine=report.machine | machine).to_dict()))
    return path


def test_reports_are_set_against_the_first(report: BenchReport, before: Path, tmp_path: Path) -> None:
    found = compare([before, write_changed(report, tmp_path / "after.json", 0.5)])
    assert [(line.name, line.batch, line.lengths) for line in found.lines] == [
        (row.name, row.batch, row.lengths) for row in report.rows
    ]
    assert all(line.speed_up == (1.0, pytest.approx(2.0)) for line in found.lines)
    assert found.warnings == ()
    table = comparison_table(found)
    assert table.columns == ["", "batch x tokens", "before.json", "after.json", "speed-up"]
    assert {row[-1] for row in table.rows} == {"2.00x"}


def test_other_machines_and_threads_are_warned_of(report: BenchReport, before: Path, tmp_path: Path) -> None:
    other = write_changed(report, tmp_path / "other.json", 1.0, cpu="Abacus", threads=64)
    warnings = compare([before, other]).warnings
    assert [text for text in warnings if "the CPUs differ" in text and "Abacus" in text]
    assert [text for text in warnings if "the threads differ" in text and "64" in text]
    assert len(warnings) == 2


def test_what_only_one_report_has_is_left_open(report: BenchReport, before: Path, tmp_path: Path) -> None:
    rows = [replace(report.rows[0], tokens=99), *report.rows[1:2]]
    path = tmp_path / "less.json"
    path.write_text(json.dumps(replace(report, rows=rows).to_dict()))
    found = compare([before, path])
    assert [line.speed_up[1] for line in found.lines] == [None, 1.0, None, None, None]
    assert comparison_table(found).rows[-1][2:] == ["", comparison_table(found).rows[-1][3], ""]
    path.write_text(json.dumps(replace(report, rows=rows[:1]).to_dict()))
    assert "shares no candidate" in compare([before, path]).warnings[0]


def test_compare_prints_a_table_or_one_json_object(
    run: Callable[..., object], report: BenchReport, before: Path, tmp_path: Path
) -> None:
    after = write_changed(report, tmp_path / "after.json", 4.0, threads=64)
    shown = run("bench", "--compare", before, after)
    assert shown.exit_code == 0, shown.stderr
    assert "0.25x" in shown.stdout
    assert "warning: the threads differ" in shown.stderr
    found = json.loads(run("bench", "--compare", before, after, "--json").stdout)
    assert found["files"] == [str(before), str(after)]
    assert found["rows"][0]["speed_up"] == [1.0, 0.25]
    assert found["rows"][2]["lengths"] == "my|texts.txt"
    assert len(found["warnings"]) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("name,median_ms\n", "it is not valid JSON"),
        ("[1]", "it has no rows and machine"),
        ('{"rows": [], "machine": {}}', "it has no rows and machine"),
        ('{"rows": [{"name": "a", "batch": 1, "tokens": 2}], "machine": {}}', "row 0 has no median_ms"),
        (None, "can't be read"),
    ],
)
def test_a_file_that_is_no_report_ends_with_2(
    run: Callable[..., object], before: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "other.json"
    if content is not None:
        path.write_text(content)
    result = run("bench", "--compare", before, path)
    assert result.exit_code == 2
    assert str(path) in result.stderr
    assert message in result.stderr
    assert not result.stdout


def test_compare_wants_two_reports_and_a_measurement_one_model(run: Callable[..., object], before: Path) -> None:
    with pytest.raises(InputError, match="two or more reports, not 1"):
        compare([before])
    for arguments, message in (
        (("--compare", before, before, "--csv", "x.csv"), "--csv writes a measurement"),
        ((before, before), "bench measures one MODEL, not 2"),
    ):
        result = run("bench", *arguments)
        assert result.exit_code == 2
        assert message in result.stderr
