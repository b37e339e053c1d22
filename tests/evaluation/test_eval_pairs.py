"""`eval --pairs`: cross-encoders are scored by the order that their scores give."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from support.heads import save_headed, write_pairs
from ternarize_cli.cli.app import app
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.data.pairs import pair_columns, read_text_pairs
from ternarize_cli.errors import DataError, InputError
from ternarize_cli.evaluation.ranked_pairs import RankedPairs, read_ranked_pairs, scores_of


def evaluate(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def ranked(scores: list[float] | None, queries: bool = True) -> RankedPairs:
    return RankedPairs("x", Path("x.csv"), "", ["a", "a", "a", "b", "b", "b"], list("uvwxyz"), scores, queries)


def test_rankings_are_scored_by_ndcg_and_reciprocal_rank() -> None:
    data = ranked([0, 1, 0, 1, 0, 0])
    found = {score.task: score for score in scores_of(data, np.array([3.0, 2, 1, 3, 2, 1]))}
    assert found["x"].metric == "ndcg_at_10"
    assert found["x"].value == pytest.approx((1 / np.log2(3) + 1) / 2)
    assert found["x-mrr"].value == pytest.approx((1 / 2 + 1) / 2)


def test_scores_and_teachers_are_compared_by_their_ranks() -> None:
    data = ranked([1, 2, 3, 4, 5, 6], queries=False)
    found = scores_of(data, np.array([1.0, 2, 3, 4, 6, 5]), np.array([6.0, 5, 4, 3, 2, 1]))
    assert [score.task for score in found] == ["x", "x-teacher"]
    assert found[0].value == pytest.approx(1 - 6 * 2 / (6 * 35))
    assert found[1].value == pytest.approx(-found[0].value)


def test_several_labels_are_scored_by_accuracy_of_the_largest() -> None:
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]]
    assert scores_of(ranked([0, 1, 2, 0, 0, 0], queries=False), logits)[0].value == pytest.approx(4 / 6)
    with pytest.raises(InputError, match=r"gives 3 labels, and scores in x\.csv are not classes"):
        scores_of(ranked([0, 1, 2, 0, 0, 0.5], queries=False), logits)


def test_without_scores_and_without_a_teacher_there_is_nothing_to_measure() -> None:
    with pytest.raises(InputError, match="has no column of scores, and there is no teacher"):
        scores_of(ranked(None), np.zeros(6))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("query,passage,score\na,b,0\nc,d,-1\n", "no passage is relevant"),
        ("sentence1,sentence2,score\na,b,1\nc,d,1\n", "every score is 1"),
        ("sentence1,sentence2,score\na,b,x\n", r"line 2: the score 'x' is not a number"),
        ("one column\n", "holds no pairs of texts"),
    ],
)
def test_files_that_can_t_be_scored_are_refused(content: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(content)
    with pytest.raises(DataError, match=why):
        read_ranked_pairs(tmp_path / "pairs.csv", "pairs")


def test_the_command_compares_a_packed_reranker_with_its_teacher(tmp_path: Path, tiny_bert: Path) -> None:
    source, pairs = save_headed(tmp_path / "source"), write_pairs(tmp_path / "pairs.csv", 80)
    convert(source, tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    done = evaluate(
        tmp_path / "packed",
        "--against",
        source,
        "--pairs",
        pairs,
        "--json",
        "--junit",
        tmp_path / "out.xml",
        "--min-retention",
        "pairs-teacher=0.9999",
    )
    assert done.exit_code == 3, done.stderr
    assert "the retention on pairs-teacher is" in done.stderr
    tasks = {task["name"]: task for task in json.loads(done.stdout)["tasks"]}
    assert list(tasks) == ["pairs", "pairs-mrr", "pairs-teacher"]
    assert tasks["pairs-teacher"]["teacher"] == 1
    assert tasks["pairs"]["size"] == 20
    assert "pairs-mrr" in (tmp_path / "out.xml").read_text()
    for arguments, why in (
        ((tiny_bert, "--pairs", pairs), "is an encoder"),
        ((source, "--sts", pairs, "--pairs", pairs), "--pairs scores a cross-encoder, and --sts is for encoders"),
    ):
        refused = evaluate(*arguments)
        assert (refused.exit_code, why in refused.stderr) == (2, True), refused.stderr


@pytest.mark.parametrize(
    ("name", "text", "are_pairs"),
    [
        ("a.csv", "query,passage,score\nq,p,1\n", True),
        ("b.csv", "a cat,a dog,0.5\n", True),
        ("b2.csv", "Query, Passage, Score\nq,p,1\n", True),
        ("c.csv", "text,label\na cat,1\n", False),
        ("d.tsv", "id\ttext\n1\ta cat\n", False),
        ("e.csv", "a cat,3\n", False),
    ],
)
def test_a_table_that_holds_no_pairs_is_not_read_as_pairs(
    name: str, text: str, are_pairs: bool, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with gzip.open(tmp_path / f"{name}.gz", "wt") as stream:
        stream.write(text)
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        columns = pair_columns(path)
        assert (columns is not None) == are_pairs
        if columns is not None:
            assert len(list(read_text_pairs(path, columns))) == 1
