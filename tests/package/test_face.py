"""`import ternarize_cli`: light, complete, typed, explained; and the whole pipeline through it on a tiny model."""

import ast
import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import ternarize_cli
import ternarize_cli as ternarize
from support.models import WORDS
from support.warm import shared
from ternarize_cli.errors import GateMissedError, InputError
from ternarize_cli.evaluation.gates import Gate

FUNCTIONS = ["build_index", "convert", "distill", "evaluate", "export", "load", "open_index", "pack"]
HEAVY = ("faiss", "mteb", "numpy", "safetensors", "sentence_transformers", "torch", "transformers", "typer")


def test_the_face_imports_no_library() -> None:
    code = f"import sys, ternarize_cli; print(sorted(set(sys.modules) & set({HEAVY})))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_the_options_of_all_commands_import_no_library() -> None:
    modules = ("bench", "compress", "distill", "evaluation", "export", "index", "vectors")
    imports = "; ".join(f"import ternarize_cli.{name}.options" for name in modules)
    code = f"import sys; {imports}; print(sorted(set(sys.modules) & set({HEAVY})))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_all_names_are_sorted_and_resolve() -> None:
    assert sorted(ternarize.__all__) == ternarize.__all__
    assert set(FUNCTIONS) < set(ternarize.__all__)
    for name in ternarize.__all__:
        assert getattr(ternarize, name) is not None
        assert name in dir(ternarize)


def test_type_checkers_see_the_names_that_are_there() -> None:
    stub = ast.parse(Path(ternarize.__file__).with_suffix(".pyi").read_text())
    imported = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in stub.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted([*imported, "__version__"]) == ternarize.__all__
    for name, path in imported.items():
        module, _, attribute = str(path).rpartition(".")
        __import__(str(module))
        assert getattr(ternarize, str(name)) is getattr(sys.modules[str(module)], attribute)


def test_options_are_shown_by_their_types_alone() -> None:
    options = [kind for name in ternarize.__all__ if is_dataclass(kind := getattr(ternarize, name))]
    assert ternarize.Training in options
    for kind in options:
        hints = get_type_hints(kind)
        for shown in (inspect.signature(kind), inspect.signature(kind.__init__)):  # type: ignore[misc]
            given = {name: one.annotation for name, one in shown.parameters.items() if name != "self"}
            assert given == {one.name: hints[one.name] for one in fields(kind) if one.init}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'melt'"):
        _ = ternarize.melt  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_tells_a_newcomer_what_to_pass(name: str) -> None:
    function = getattr(ternarize, name)
    text = inspect.getdoc(function) or ""
    assert f"ternarize.{name}(" in text, "an example"
    assert "Raises:" in text
    assert "Returns:" in text
    for parameter in inspect.signature(function).parameters:
        assert f"\n    {parameter}: " in text, parameter


@pytest.mark.parametrize("name", [n for n in ternarize.__all__ if n[0].isupper()])
def test_options_explain_each_of_their_fields(name: str) -> None:
    kind = getattr(ternarize, name)
    assert all(field in (inspect.getdoc(kind) or "") for field in kind.__dataclass_fields__)


@pytest.mark.slow
def test_the_package_distill_does_not_hide_the_function() -> None:
    code = (
        "import warnings; warnings.simplefilter('error', ImportWarning)\n"
        "import ternarize_cli, ternarize_cli.distill.loop, ternarize_cli.distill.data\n"
        "from ternarize_cli import distill\n"
        "assert callable(distill) and ternarize_cli.distill is distill\n"
    )
    assert shared().run(program=code).stderr == ""


def test_several_values_are_not_a_string() -> None:
    with pytest.raises(InputError, match="sts takes several values, not the string") as caught:
        ternarize.EvaluationOptions(sts="pairs.csv")
    assert caught.value.hint == "['pairs.csv']"


@pytest.mark.slow
def test_the_whole_pipeline_runs_from_python(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    scheme = ternarize.Scheme(granularity="tensor")
    kept = ternarize.ConvertOptions(skip=["pooler*"])
    made = ternarize.convert(tiny_bert, tmp_path / "ternary", scheme, options=kept)
    assert len(made.layers) == 12  # six of each of the two layers
    trained = ternarize.distill(
        tmp_path / "ternary",
        corpus,
        tmp_path / "distilled",
        teacher=tiny_bert,
        training=ternarize.Training(steps=30, batch_size=16, learning_rate=2e-3),
        options=ternarize.DistillOptions(samples=200),
    )
    assert trained.steps == 30
    assert trained.cosine_after > trained.cosine_before
    packed = ternarize.pack(str(tmp_path / "distilled"), str(tmp_path / "packed"))
    assert packed.bytes_packed < packed.bytes_source

    model = ternarize.load(tmp_path / "packed", backend="reference", device="cpu")
    assert isinstance(model, SentenceTransformer)
    vectors = model.encode(["the cat", "a red dog by the river"])
    assert vectors.shape == (2, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    (tmp_path / "pairs.csv").write_text("cat,dog,3\nhouse,tree,2\nred,green,4\nfile,water,0\n")
    options = ternarize.EvaluationOptions(
        tiny_bert, sts=[tmp_path / "pairs.csv"], cached=False, min_retention=["0.0001"]
    )
    said: list[str] = []
    report = ternarize.evaluate(tmp_path / "packed", options, say=said.append)
    (score,) = report.comparison.tasks[0]
    assert (score.task, score.metric, score.size) == ("pairs", "cosine_spearman", 4)
    assert said == ["loading MTEB …"]
    with pytest.raises(GateMissedError, match="the mean retention is"):
        replace(report, gates=(Gate(None, 1.0 + (report.comparison.mean_retention() or 0)),)).check_gates()

    texts = [f"{a} {b}" for a, b in zip(WORDS[10:30], WORDS[20:40], strict=True)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    built = ternarize.build_index(
        tmp_path / "texts.txt",
        tmp_path / "index",
        model=tmp_path / "packed",
        options=ternarize.IndexOptions(factory="flat"),
        encoder=ternarize.EncoderOptions(batch_size=8),
    )
    assert built.info.count == 20
    (hits,) = ternarize.open_index(tmp_path / "index").search([texts[7]], k=3)
    assert (hits[0].text, len(hits)) == (texts[7], 3)
    assert hits[0].score > 0.999


def test_a_ternary_student_needs_its_teacher(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    ternarize.convert(tiny_bert, tmp_path / "ternary")
    with pytest.raises(InputError, match="is a ternary checkpoint; its teacher is missing"):
        ternarize.distill(tmp_path / "ternary", corpus, tmp_path / "out")


def test_an_index_of_texts_needs_a_model(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="texts need a model"):
        ternarize_cli.build_index(corpus, tmp_path / "index")
