"""Scores in cards that others wrote: what the hub reads, and that everything else stays to the byte."""

from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard

from ternarize_cli.compress.card import addressed, cell
from ternarize_cli.compress.card_scores import TOOL, write_scores

OTHERS = """---
license: mit  # with a comment
model-index:
- name: theirs
  results:
  - task:
      type: STS
    dataset:
      name: MTEB STS12
      type: mteb/sts12
    metrics:
    - type: cos_sim_spearman
      value: 70.5
tags: [a, b]
---
# Text
"""


def result(name: str, value: float) -> EvalResult:
    return EvalResult(
        task_type="sentence-similarity",
        dataset_type=name,
        dataset_name=name,
        metric_type="cosine_spearman",
        metric_value=value,
        metric_args={**TOOL},
    )


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return tmp_path / "README.md"


def scores(card: Path) -> dict[str, float]:
    return {one.dataset_name: one.metric_value for one in ModelCard.load(card).data.eval_results}


def test_results_of_others_stay_and_ours_are_replaced(card: Path) -> None:
    card.write_text(OTHERS)
    assert write_scores(card, "| one |", [result("sts", 0.5), result("old", 0.1)])
    assert scores(card) == {"MTEB STS12": 70.5, "sts": 0.5, "old": 0.1}
    assert write_scores(card, "| two |", [result("sts", 0.6)])
    assert scores(card) == {"MTEB STS12": 70.5, "sts": 0.6}
    text = card.read_text()
    assert write_scores(card, "| two |", [result("sts", 0.6)])
    assert card.read_text() == text
    assert "license: mit  # with a comment\ntags: [a, b]\nmodel-index:\n- name: theirs\n" in text
    assert ModelCard.load(card).data.model_name == "theirs"
    assert write_scores(card, "none")
    assert scores(card) == {"MTEB STS12": 70.5}


@pytest.mark.parametrize("key", ["model-index", '"model-index"', "'model-index'", "model-index "])
def test_there_is_one_index_however_it_is_written(card: Path, key: str) -> None:
    card.write_text(OTHERS.replace("model-index", key))
    assert write_scores(card, "| one |", [result("sts", 0.5)])
    assert scores(card) == {"MTEB STS12": 70.5, "sts": 0.5}
    assert card.read_text().count("model-index") == 1
    card.write_text(f"---\n{key}:\n- name: x\n  results: []\n---\n")
    assert write_scores(card, "| one |", [result("sts", 0.5)])
    assert scores(card) == {"sts": 0.5}


def test_a_card_without_metadata_gets_them(card: Path) -> None:
    card.write_text("# Mine\n")
    assert write_scores(card, "| one |", [result("sts", 0.5)], name="mine")
    assert scores(card) == {"sts": 0.5}
    assert "# Mine\n" in card.read_text()
    found = ModelCard.load(card)
    assert ModelCard(str(found)).data.to_dict() == found.data.to_dict()
    assert found.data.model_name == "mine"


@pytest.mark.parametrize(
    "header",
    [
        "license: [",
        "- a\n- list",
        "model-index: 3",
        "model-index:\n- name: x",
        "a: " + "[" * 3000 + "]" * 3000,
        "x: y\n" * 20_000,
        "a: &a [x, x]\nb: &b [*a, *a]\nmodel-index: [*b]",
        "license: !!python/object/apply:os.system ['exit 1']",
    ],
)
def test_metadata_that_cannot_be_read_stay_and_the_text_gets_the_scores(card: Path, header: str) -> None:
    before = f"---\n{header}\n---\n# Text\n"
    card.write_text(before)
    assert not write_scores(card, "| one |", [result("sts", 0.5)])
    assert card.read_text().startswith(before)
    assert "| one |" in card.read_text()


def test_names_are_escaped_where_markdown_would_read_them() -> None:
    assert cell("a|b <i> `x` [l](u) *e* ~s~ _u_ cosine_spearman \\ a\nb") == (
        "a\\|b &lt;i&gt; \\`x\\` \\[l\\](u) \\*e\\* \\~s\\~ \\_u\\_ cosine_spearman \\\\ a b"
    )


def test_only_our_part_of_a_card_gets_the_address() -> None:
    own = '(".")  # this folder, or its hub id\nternarize serve .\nternarize export . --to wheel\n'
    text = f"{own}<!-- ternarize: begin -->\n{own}<!-- ternarize: end -->\n{own}"
    made = addressed(text, "me/x")
    assert made.startswith(own)
    assert made.endswith(own)
    assert '("me/x")\nternarize serve me/x\nternarize export me/x --to wheel\n' in made
    assert addressed(own, "me/x") == own
