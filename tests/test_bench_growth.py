"""How time grows over the grid of `ternarize bench`: the fits, their table and their picture."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ternarize_cli.bench.growth import BATCH, TOKENS, fit, growths
from ternarize_cli.bench.growth_figure import growth_figure
from ternarize_cli.bench.options import BenchOptions
from ternarize_cli.bench.report import formula, growth_table, tables
from ternarize_cli.bench.rows import BenchRow
from ternarize_cli.bench.run import BenchReport, benchmark
from ternarize_cli.bench.shapes import ModelShape

TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}


def row(batch: int, tokens: int, ms: float, **changes: object) -> BenchRow:
    fields = {"name": "native", "kind": "backend", "ran": "native", "batch": batch, "tokens": tokens, "median_ms": ms}
    rates = {"p10_ms": ms, "p90_ms": ms, "tokens_per_s": 1.0, "inputs_per_s": 1.0, "padded_tokens_per_s": 1.0}
    return BenchRow(**fields, **rates, repeats=1, ratio=None, best_rival=None, **changes)  # type: ignore[arg-type]


def cost(batch: int, tokens: int) -> float:
    return 1.0 + 0.05 * batch * tokens + 1e-4 * batch * tokens**2


GRID = [row(batch, tokens, cost(batch, tokens)) for batch in (1, 2, 4) for tokens in (8, 16, 32, 64)]


@pytest.fixture(scope="module")
def report() -> BenchReport:
    plan = BenchOptions(
        backends=("reference",), rivals=(), batches=(1, 2, 3), tokens=(2, 3, 4, 5), repeats=1, warmup=0, memory=False
    )
    return benchmark(None, plan, shape=ModelShape("bert", TINY))


@given(st.lists(st.floats(0.01, 10), min_size=3, max_size=3))
def test_a_curve_is_found_again(coefficients: list[float]) -> None:
    a, b, c = coefficients
    n = (1, 2, 5, 9, 20)
    assert fit(n, [a + b * x + c * x * x for x in n], 2) == pytest.approx(coefficients, rel=1e-4)


def test_no_part_of_a_cost_is_negative() -> None:
    assert min(fit((1, 2, 3, 4), (1.0, 3.0, 4.5, 5.0), 2)) == 0.0


def test_each_line_of_the_grid_is_fitted() -> None:
    found = growths(GRID)
    assert [(line.along, line.fixed) for line in found] == [
        *((BATCH, f"{tokens} tokens") for tokens in (8, 16, 32, 64)),
        *((TOKENS, f"batch {batch}") for batch in (1, 2, 4)),
    ]
    assert all(line.deviation < 1e-3 for line in found)
    assert found[0].coefficients == pytest.approx((1.0, 0.05 * 8 + 1e-4 * 64))
    assert found[-1].coefficients == pytest.approx((1.0, 0.2, 4e-4))
    assert found[-1].at(64) == pytest.approx(cost(4, 64))


def test_the_largest_relative_error_is_told_and_where_it_is() -> None:
    (line,) = growths([row(n, 8, 2.0 * n if n != 4 else 10.0) for n in (1, 2, 3, 4, 5, 6, 7, 8)])
    assert line.deviation_at == 4
    assert line.deviation == pytest.approx(0.2, abs=0.03)


def test_too_few_points_and_texts_have_no_curve() -> None:
    assert growths(GRID[:3]) == []
    assert growths([row(n, 8, 1.0 * n, lengths="x.txt") for n in (1, 2, 3)]) == []
    assert growths([row(n, 8, 1.0 * n, encoded="3 texts of x.txt") for n in (1, 2, 3)]) == []


def test_images_grow_over_the_batch() -> None:
    (line,) = growths([row(n, 5, 3.0 * n, image="8x8") for n in (1, 2, 3, 4)])
    assert (line.along, line.fixed) == (BATCH, "8x8")


def test_the_table_writes_the_curves(report: BenchReport) -> None:
    line = replace(report.growth[-1], coefficients=(1.0, 0.25, 0.0000315), deviation=0.123)
    assert formula(line) == "1 + 0.25 n + 3.15e-05 n²"
    table = growth_table(replace(report, growth=[line]))
    assert table.rows == [["reference", "tokens, batch 3", formula(line), "12%", str(line.deviation_at)]]
    assert "how time grows" in [table.title for table in tables(report)]
    assert "how time grows" not in [table.title for table in tables(replace(report, growth=[]))]


def test_the_picture_has_a_panel_for_batch_and_one_for_length(report: BenchReport) -> None:
    batch, tokens = growth_figure(report).axes
    assert (batch.get_xlabel(), tokens.get_xlabel()) == ("batch", "tokens of a text")
    assert len(batch.lines) == 2 * 4
    assert len(tokens.lines) == 2 * 3
    assert len(growth_figure(replace(report, growth=report.growth[:1])).axes) == 1


def test_the_command_draws_it(run: Callable[..., object], tiny_bert: Path, tmp_path: Path) -> None:
    quick = ("--backend", "reference", "--against", "torch-fp32", "--repeats", 1, "--warmup", 0, "--no-memory")
    path = tmp_path / "growth.png"
    page = tmp_path / "page.html"
    result = run(
        "bench", tiny_bert, *quick, "--batch", "1,2,3", "--tokens", 4, "--plot", path, "--html", page, "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "How time grows" in page.read_text()
    assert [line["name"] for line in json.loads(result.stdout)["growth"]] == ["reference", "torch-fp32"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--plot", "x.png", "--batch", "1,2"), "3 batches or 4 lengths"),
        (("--plot", "x.txt", "--batch", "1,2,3"), "a figure's name ends in .png"),
    ],
)
def test_a_picture_that_cannot_be_drawn_ends_with_2(
    run: Callable[..., object], arguments: tuple[str, ...], message: str
) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
