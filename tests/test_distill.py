"""Distillation: the losses, the batches, and a student that gets closer to its teacher."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WORDS, add_dense, save_tiny_bert
from safetensors.torch import load_file

from ternarize_cli import checkpoint
from ternarize_cli.convert import convert
from ternarize_cli.distill import Training, distill
from ternarize_cli.distill.data import batches, split
from ternarize_cli.distill.losses import RECIPES, Outputs, masked_mse, similarity_divergence
from ternarize_cli.errors import CheckpointError, DataError, InputError
from ternarize_cli.pack import pack

Run = Callable[..., Any]


def sentences(count: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(3, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def latent(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill") / "tiny-ternary"
    convert(tiny_bert, folder)
    return folder


@pytest.mark.parametrize("recipe", sorted(RECIPES))
def test_distillation_moves_the_student_to_its_teacher(
    tiny_bert: Path, latent: Path, tmp_path: Path, recipe: str
) -> None:
    training = Training(steps=40, batch_size=16, learning_rate=2e-3, recipe=recipe)
    report = distill(latent, tiny_bert, sentences(300), tmp_path / "out", training, threads=1)
    assert report.steps == 40
    assert report.cosine_after > report.cosine_before + 0.01
    assert checkpoint.stage(tmp_path / "out") == "latent"
    record = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert record["recipe"] == recipe
    assert record["steps_done"] == 40


def test_the_same_seed_and_steps_give_the_same_packed_bytes(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    for name in "ab":
        distill(latent, tiny_bert, sentences(60), tmp_path / name, Training(steps=3, batch_size=8, seed=5), threads=1)
        pack(tmp_path / name, tmp_path / f"{name}-packed")
    a, b = (tmp_path / f"{name}-packed" / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_training_keeps_names_tables_and_the_scheme(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    distill(latent, tiny_bert, sentences(60), tmp_path / "out", Training(steps=2, batch_size=8), threads=1)
    before, after = (load_file(f / "model.safetensors") for f in (latent, tmp_path / "out"))
    assert before.keys() == after.keys()
    table, linear = "embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight"
    assert torch.equal(before[table], after[table])
    assert not torch.equal(before[linear], after[linear])
    first, second = checkpoint.artifact_of(latent), checkpoint.artifact_of(tmp_path / "out")
    assert first is not None
    assert second is not None
    assert first.scheme == second.scheme


def test_a_dense_module_trains_too_and_is_written(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    convert(source, tmp_path / "latent")
    distill(tmp_path / "latent", source, sentences(60), tmp_path / "out", Training(steps=2, batch_size=8), threads=1)
    before, after = (load_file(tmp_path / f / "2_Dense" / "model.safetensors") for f in ("latent", "out"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before)
    assert checkpoint.artifact_of(tmp_path / "out" / "2_Dense") is not None


def test_a_time_budget_ends(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    seen = []
    training = Training(minutes=0.02, batch_size=8)
    distill(latent, tiny_bert, sentences(60), tmp_path / "out", training, threads=1, on_step=seen.append)
    assert seen[-1].done == 1.0
    assert [p.step for p in seen] == list(range(1, len(seen) + 1))


def test_padding_does_not_count() -> None:
    student, teacher = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    student[0, 2] = 100.0
    assert float(masked_mse(student, teacher, torch.tensor([[1, 1, 0]]))) == 1.0


def test_every_recipe_is_zero_for_a_perfect_student() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = tuple(torch.randn(4, 5, 8, generator=generator) for _ in range(3))
    outputs = Outputs(hidden, torch.randn(4, 8, generator=generator), torch.ones(4, 5))
    for recipe in RECIPES.values():
        assert all(abs(float(part)) < 1e-6 for part in recipe(outputs, outputs).values())


def test_similarity_does_not_see_scale_or_rotation() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert float(similarity_divergence(3 * x @ rotation, x)) == pytest.approx(0, abs=1e-5)
    assert float(similarity_divergence(torch.randn(6, 8, generator=generator), x)) > 0.1


def test_an_epoch_sees_every_text_once_in_batches_of_like_length() -> None:
    texts = [w * n for n in range(1, 17) for w in "abcd"]
    order = batches(texts, 8, seed=1)
    epoch = [next(order) for _ in range(8)]
    assert sorted(t for b in epoch for t in b) == sorted(texts)
    assert all(max(map(len, b)) - min(map(len, b)) <= 2 for b in epoch)
    again = batches(texts, 8, seed=1)
    assert [next(again) for _ in range(8)] == epoch


def test_held_out_texts_are_not_trained_on() -> None:
    seen, held = split([*sentences(200), *sentences(200)], seed=0)
    assert len(held) == 20
    assert not set(seen) & set(held)
    with pytest.raises(DataError, match="at least 20"):
        split(["a", "b"] * 50, seed=0)


def test_wrong_partners_are_refused(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    training, texts = Training(steps=1), sentences(30)
    with pytest.raises(CheckpointError, match="not ternary yet"):
        distill(tiny_bert, tiny_bert, texts, tmp_path / "x", training)
    with pytest.raises(CheckpointError, match="ternary itself"):
        distill(latent, latent, texts, tmp_path / "x", training)
    other = save_tiny_bert(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(CheckpointError, match="2 layers of width 32, the teacher 3"):
        distill(latent, other, texts, tmp_path / "x", training)
    pack(latent, tmp_path / "packed")
    with pytest.raises(CheckpointError, match="can't train"):
        distill(tmp_path / "packed", tiny_bert, texts, tmp_path / "x", training)


@pytest.mark.parametrize("values", [{}, {"steps": 1, "minutes": 1.0}, {"steps": 0}, {"steps": 1, "recipe": "magic"}])
def test_a_budget_that_makes_no_sense_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Training(**values)


def test_the_command_reads_several_files_and_stdin(run: Run, tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(sentences(30, seed=1)))
    result = run(
        *("distill", latent, "--teacher", tiny_bert, "--data", tmp_path / "a.txt", "--data", "-"),
        *("-o", tmp_path / "out", "--steps", 2, "--batch-size", 4, "--json"),
        input="\n".join(sentences(30, seed=2)),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 2


def test_a_budget_by_flag_beats_one_from_the_settings(
    run: Run, tiny_bert: Path, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("texts.txt").write_text("\n".join(sentences(30)))
    Path("ternarize.toml").write_text("[distill]\nminutes = 30\n")
    arguments = ("distill", latent, "--teacher", tiny_bert, "--data", "texts.txt", "-o", "out", "--json")
    result = run(*arguments, "--steps", 2, "--batch-size", 4)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["steps"] == 2
    assert run(*arguments, "--steps", 2, "--minutes", 1, "--force").exit_code == 2


def test_another_teacher_is_warned_of(run: Run, latent: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(sentences(30)))
    other = save_tiny_bert(tmp_path / "other", seed=9)
    options = ("--data", tmp_path / "texts.txt", "-o", tmp_path / "out", "--steps", 1)
    result = run("distill", latent, "--teacher", other, *options)
    assert "was not converted from" in result.stderr


def test_an_image_model_is_refused(run: Run, tiny_vit: Path, latent: Path, tmp_path: Path) -> None:
    assert run("convert", tiny_vit, "-o", tmp_path / "ternary").exit_code == 0
    (tmp_path / "texts.txt").write_text("\n".join(sentences(40)))
    result = run("distill", tmp_path / "ternary", "--teacher", tiny_vit, "--data", tmp_path / "texts.txt", "--steps", 1)
    assert result.exit_code == 2
    assert "reads images, not text" in result.stderr


def test_an_empty_text_file_is_refused(run: Run, tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    result = run("distill", latent, "--teacher", tiny_bert, "--data", tmp_path / "empty.txt", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "holds no text" in result.stderr
    assert not (tmp_path / "out").exists()
