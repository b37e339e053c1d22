"""The learning rate by the width of a student, and by the levels of its linears."""

import random
from pathlib import Path

import pytest
from safetensors.torch import load_file

from support.models import WORDS
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions, SchemeOptions
from ternarize_cli.distill import Sources, Training, distill
from ternarize_cli.distill.learning_rate import rate_for_width
from ternarize_cli.distill.options import DistillOptions


@pytest.mark.parametrize(
    ("width", "rate"), [(32, 5e-4), (384, 5e-4), (768, 3e-4), (1024, 2e-4), (4096, 1e-4), (100_000, 1e-4)]
)
def test_the_learning_rate_falls_with_the_width(width: int, rate: float) -> None:
    assert rate_for_width(width) == rate
    assert Training(steps=1).for_width(width).peak == rate


@pytest.mark.parametrize("recipe", ["paper", "scores", "sparse"])
def test_other_recipes_and_a_rate_that_is_given_do_not_depend_on_the_width(recipe: str) -> None:
    assert {Training(steps=1, recipe=recipe).for_width(width).peak for width in (32, 384, 768, 1024)} == {3e-4}
    assert Training(steps=1, recipe=recipe, learning_rate=1e-3).for_width(768).peak == 1e-3
    assert Training(steps=1, learning_rate=1e-3).for_width(768).peak == 1e-3


def test_int4_linears_move_by_a_fifth_of_the_rate_and_tables_by_three_tenths(tiny_bert: Path, tmp_path: Path) -> None:
    """The first step of Adam moves every weight by its rate, whatever its gradient is."""
    given = SchemeOptions(levels="mixed")
    convert(tiny_bert, tmp_path / "mixed", given.scheme(3.0), ConvertOptions(bits=3.0))
    rng = random.Random(0)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(rng.choices(WORDS, k=8)) for _ in range(60)))
    weights, reports = [], []
    for rate in (1e-12, 1e-3):
        training, options = Training(steps=1, batch_size=16, learning_rate=rate), DistillOptions(threads=1)
        sources = Sources([tmp_path / "texts.txt"])
        said: list[str] = []
        made = distill(
            tmp_path / "mixed",
            tiny_bert,
            sources,
            tmp_path / "made",
            training,
            options,
            force=True,
            on_step=lambda progress, said=said: said.append(progress.chosen),
        )
        reports.append((made.shares, said))
        weights.append(load_file(tmp_path / "made" / "model.safetensors"))
    still, moved = weights
    by = {name: float((moved[name] - still[name]).abs().max()) for name in still if still[name].is_floating_point()}
    of_linears = sorted(
        {round(d, 6) for name, d in by.items() if name.endswith("dense.weight") and "pooler" not in name}
    )
    assert len(of_linears) == 2
    assert of_linears[0] == pytest.approx(of_linears[1] / 5, rel=1e-2)
    assert by["embeddings.word_embeddings.weight"] == pytest.approx(0.3 * of_linears[1], rel=1e-2)
    assert reports[1] == ({"int4": 0.2}, ["learning rate 1e-3, int4 linears 2e-4, batches of 16"])
    assert "peak learning rate 0.001 (int4 linears 0.0002)" in (tmp_path / "made" / "README.md").read_text()
