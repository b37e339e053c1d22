"""Models of ours in MTEB's registry."""

from pathlib import Path

import mteb
import pytest
from mteb.models.model_implementations import MODEL_REGISTRY

import ternarize_cli as ternarize
from ternarize_cli.errors import ModelNotFoundError
from ternarize_cli.evaluation.options import EvaluationOptions
from ternarize_cli.evaluation.reading import read_tasks
from ternarize_cli.evaluation.tasks import make_task
from ternarize_cli.storage.digests import content_hash


def test_mteb_finds_a_model_by_its_name_and_by_its_path(tiny_bert: Path, tmp_path: Path) -> None:
    ternarize.convert(tiny_bert, tmp_path / "ternary")
    ternarize.pack(tmp_path / "ternary", tmp_path / "packed")
    (tmp_path / "sts.csv").write_text("the cat,a dog,3\nthe tree,a river,1\na house,the house,5\n")
    name = ternarize.register_in_mteb(tmp_path / "packed", backend="reference")
    assert name == "local/packed"
    options = EvaluationOptions(sts=[tmp_path / "sts.csv"], backend="reference", cached=False)
    ours = ternarize.evaluate(tmp_path / "packed", options).comparison.students[0].scores[0].value
    task = make_task(read_tasks(sts=[tmp_path / "sts.csv"])[0])
    try:
        for known in (name, str(tmp_path / "packed")):
            assert mteb.get_model_meta(known).revision == content_hash(tmp_path / "packed")
            model = mteb.get_model(known, embed_dim=32)
            assert model.mteb_model_meta.name == name
            found = mteb.evaluate(model, task, cache=None, co2_tracker=False).task_results[0]
            assert found.get_score() == ours
        with pytest.raises(ValueError, match="embedding dimension 7"):
            mteb.get_model(name, embed_dim=7)
    finally:
        del MODEL_REGISTRY[name], MODEL_REGISTRY[str(tmp_path / "packed")]


def test_what_is_no_model_is_not_entered(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        ternarize.register_in_mteb(tmp_path / "nothing")
