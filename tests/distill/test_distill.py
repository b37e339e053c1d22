"""Distillation: the losses, the batches, and a student that gets closer to its teacher."""

import itertools
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from support.models import WORDS, add_dense, save_tiny_bert
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.distill import Sources, Training, distill, loop
from ternarize_cli.distill.losses import PARTS, RECIPES, Outputs, loss_parts, masked_mse, similarity_divergence
from ternarize_cli.distill.optimisation import Optimisation
from ternarize_cli.distill.options import DistillOptions
from ternarize_cli.distill.student_teacher import Pair
from ternarize_cli.distill.trainer import Trainer
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, InputError, TernarizeError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.layers import TernaryLinear

Run = Callable[..., Any]


def sources(folder: Path, count: int) -> Sources:
    path = folder / "texts.txt"
    path.write_text("\n".join(sentences(count)))
    return Sources([path])


def sentences(count: int, seed: int = 0) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(3, 12))) for _ in range(count)]


@pytest.fixture(scope="module")
def latent(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distill") / "tiny-ternary"
    convert(tiny_bert, folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_teacher_whose_weights_are_stored_in_half_precision_teaches_in_float32(
    tiny_bert: Path, tmp_path: Path, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    teaching: set[torch.dtype] = set()

    def pair(student: Any, teacher: Any, **given: Any) -> Pair:
        teaching.update(p.dtype for p in teacher.parameters())
        return Pair(student, teacher, **given)

    monkeypatch.setattr(loop, "Pair", pair)
    teacher = shutil.copytree(tiny_bert, tmp_path / "teacher")
    weights = load_file(teacher / "model.safetensors")
    save_file({name: x.to(dtype) for name, x in weights.items()}, teacher / "model.safetensors", {"format": "pt"})
    config = json.loads((teacher / "config.json").read_text()) | {"dtype": str(dtype).removeprefix("torch.")}
    (teacher / "config.json").write_text(json.dumps(config))
    convert(teacher, tmp_path / "student")
    training = Training(steps=5, batch_size=16, learning_rate=2e-3)
    report = distill(tmp_path / "student", teacher, sources(tmp_path, 300), tmp_path / "out", training)
    assert report.cosine_after > report.cosine_before
    assert teaching == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["full", "paper", "sparse"])
def test_distillation_moves_the_student_to_its_teacher(
    tiny_bert: Path, latent: Path, tmp_path: Path, recipe: str
) -> None:
    training = Training(steps=40, batch_size=16, learning_rate=2e-3, recipe=recipe)
    report = distill(latent, tiny_bert, sources(tmp_path, 300), tmp_path / "out", training, DistillOptions(threads=1))
    assert report.steps == 40
    assert report.cosine_after > report.cosine_before + 0.01
    assert checkpoint.stage(tmp_path / "out") == "latent"
    record = json.loads((tmp_path / "out" / "distillation.json").read_text())
    assert record["recipe"] == recipe
    assert record["steps"] == 40


@pytest.mark.slow
def test_the_same_seed_and_steps_give_the_same_packed_bytes(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    for name in "ab":
        distill(
            latent,
            tiny_bert,
            sources(tmp_path, 60),
            tmp_path / name,
            Training(steps=3, batch_size=8, seed=5),
            DistillOptions(threads=1),
        )
        pack(tmp_path / name, tmp_path / f"{name}-packed")
    a, b = (tmp_path / f"{name}-packed" / "model.safetensors" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("recipe", ["full", "paper", "sparse"])
def test_training_keeps_names_the_scheme_and_rows_of_words_not_seen(
    tiny_bert: Path, latent: Path, tmp_path: Path, recipe: str
) -> None:
    words = WORDS[: len(WORDS) // 2]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(" ".join(random.Random(i).choices(words, k=6)) for i in range(60)))
    training = Training(steps=2, batch_size=8, recipe=recipe)
    distill(latent, tiny_bert, Sources([texts]), tmp_path / "out", training, DistillOptions(threads=1))
    before, after = (load_file(f / "model.safetensors") for f in (latent, tmp_path / "out"))
    assert before.keys() == after.keys()
    table, linear = "embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.weight"
    assert not torch.equal(before[linear], after[linear])
    seen = load_encoder(latent, device="cpu").tokenizer(words, add_special_tokens=False)["input_ids"]
    changed = set((before[table] != after[table]).any(dim=1).nonzero().flatten().tolist())
    assert bool(changed) == (RECIPES[recipe].tables > 0)
    assert changed <= {i for ids in seen for i in ids} | {2, 3}  # [CLS] and [SEP]
    first, second = checkpoint.artifact_of(latent), checkpoint.artifact_of(tmp_path / "out")
    assert first is not None
    assert second is not None
    assert first.scheme == second.scheme


def test_a_dense_module_trains_too_and_is_written(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    convert(source, tmp_path / "latent")
    distill(
        tmp_path / "latent",
        source,
        sources(tmp_path, 60),
        tmp_path / "out",
        Training(steps=2, batch_size=8),
        DistillOptions(threads=1),
    )
    before, after = (load_file(tmp_path / f / "2_Dense" / "model.safetensors") for f in ("latent", "out"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[k], after[k]) for k in before)
    assert checkpoint.artifact_of(tmp_path / "out" / "2_Dense") is not None


def test_tables_train_at_a_rate_of_their_own(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    training = Training(steps=1, batch_size=8, learning_rate=1e-3)
    distill(latent, tiny_bert, sources(tmp_path, 60), tmp_path / "out", training, DistillOptions(threads=1))
    before, after = (load_file(f / "model.safetensors") for f in (latent, tmp_path / "out"))
    moved = {name: float((after[name] - before[name]).abs().max()) for name in before}
    linear = moved["encoder.layer.0.output.dense.weight"]  # Adam's first step is the rate itself
    assert moved["embeddings.word_embeddings.weight"] == pytest.approx(RECIPES["full"].tables * linear, rel=0.01)


@pytest.mark.slow
def test_a_time_budget_ends(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    seen = []
    training = Training(minutes=0.02, batch_size=8)
    distill(
        latent,
        tiny_bert,
        sources(tmp_path, 60),
        tmp_path / "out",
        training,
        DistillOptions(threads=1),
        on_step=seen.append,
    )
    assert seen[-1].done == 1.0
    assert [p.step for p in seen] == list(range(1, len(seen) + 1))


def test_padding_does_not_count() -> None:
    student, teacher = torch.zeros(1, 3, 2), torch.ones(1, 3, 2)
    student[0, 2] = 100.0
    assert float(masked_mse(student, teacher, torch.tensor([[1, 1, 0]]))) == 1.0


@pytest.mark.parametrize("name", sorted(PARTS))
def test_every_part_is_zero_for_a_perfect_student_and_not_for_another(name: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def outputs() -> Outputs:
        hidden = tuple(torch.randn(4, 5, 8, generator=generator) for _ in range(3))
        return Outputs(hidden, torch.randn(4, 8, generator=generator), torch.tensor([[1, 1, 1, 1, 0]] * 4))

    one, other = outputs(), outputs()
    padded = Outputs(tuple(h + torch.tensor([0, 0, 0, 0, 9.0])[:, None] for h in one.hidden), one.pooled, one.mask)
    assert abs(float(loss_parts({name: 1.0}, padded, one)[name])) < 1e-5
    assert float(loss_parts({name: 1.0}, other, one)[name]) > 0.01


def test_similarity_does_not_see_scale_or_rotation_but_sees_the_queue() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 8, generator=generator)
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=generator)).Q
    assert float(similarity_divergence(3 * x @ rotation, x)) == pytest.approx(0, abs=1e-5)
    queue = torch.nn.functional.normalize(torch.randn(10, 8, generator=generator), dim=-1)
    assert float(similarity_divergence(3 * x, x, queue)) == pytest.approx(0, abs=1e-5)
    assert float(similarity_divergence(x @ rotation, x, queue)) > 0.1


def test_a_teacher_whose_vectors_are_not_numbers_is_named(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    shutil.copytree(tiny_bert, teacher)
    weights = load_file(teacher / "model.safetensors")
    weights["encoder.layer.0.attention.self.query.bias"][:] = float("nan")
    save_file(weights, teacher / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TernarizeError, match="bias holds a value that is not finite"):
        distill(latent, teacher, sources(tmp_path, 60), tmp_path / "out", Training(steps=1), DistillOptions(threads=1))


def test_wrong_partners_are_refused(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    training, texts = Training(steps=1), sources(tmp_path, 30)
    with pytest.raises(CheckpointError, match="ternary itself"):
        distill(latent, latent, texts, tmp_path / "x", training)
    other = save_tiny_bert(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(
        CheckpointError, match="the student has 2 layers and gives vectors of 32 numbers, the teacher 3 and 32"
    ):
        distill(latent, other, texts, tmp_path / "x", training)
    pack(latent, tmp_path / "packed")
    with pytest.raises(CheckpointError, match="can't train"):
        distill(tmp_path / "packed", tiny_bert, texts, tmp_path / "x", training)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"steps": 1, "minutes": 1.0},
        {"steps": 0},
        {"epochs": float("inf")},
        {"steps": 1, "recipe": "magic"},
        {"steps": 1, "losses": {"magic": 1.0}},
        {"steps": 1, "losses": {"hidden": -1.0}},
        {"steps": 1, "losses": {"hidden": 0, "cosine": 0, "similarity": 0}},
        {"steps": 1, "joined": 1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any]) -> None:
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


def test_a_full_precision_student_is_converted_by_the_recipes_rule_and_packed(
    run: Run, tiny_bert: Path, tmp_path: Path
) -> None:
    data = sources(tmp_path, 100).paths[0]
    options = ("--data", data, "--steps", 3, "--batch-size", 8, "--pack", "--recipe", "paper", "--json")
    result = run("distill", tiny_bert, *options, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    artifact = checkpoint.artifact_of(tmp_path / "out")
    assert artifact is not None
    assert (artifact.stage, artifact.scheme.rule, artifact.scheme.granularity) == ("packed", "absmean", "tensor")
    assert "distilled from" in (tmp_path / "out" / "README.md").read_text()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    before, after = (load_encoder(f).encode(["the cat", "a red dog"]) for f in (tiny_bert, tmp_path / "out"))
    assert before.shape == after.shape
    assert run("distill", tmp_path / "out", "--data", data).exit_code == 2


def test_a_ternary_student_needs_its_teacher(run: Run, latent: Path, tmp_path: Path) -> None:
    result = run("distill", latent, "--data", sources(tmp_path, 30).paths[0])
    assert result.exit_code == 2
    assert "teacher is missing" in result.stderr


@pytest.mark.slow
def test_images_are_distilled(run: Run, tiny_vit: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    (tmp_path / "images").mkdir()
    for i in range(40):
        pixels = bytes(chance.randrange(256) for _ in range(3 * 16 * 16))
        Image.frombytes("RGB", (16, 16), pixels).save(tmp_path / "images" / f"{i}.png")
    data = ("--data", tmp_path / "images", "--steps", 20, "--batch-size", 8, "--learning-rate", 2e-3)
    result = run("distill", tiny_vit, *data, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["cosine_after"] > report["cosine_before"]
    assert set(report["losses"]) == {"hidden", "cosine", "similarity"}


@pytest.mark.slow
def test_metrics_and_curves_are_kept(run: Run, tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    data = ("--data", sources(tmp_path, 200).paths[0], "--epochs", 2, "--batch-size", 8, "--loss", "relation=0.5")
    plot = tmp_path / "curves.png"
    result = run("distill", latent, "--teacher", tiny_bert, *data, "-o", tmp_path / "out", "--plot", plot)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert 40 < len(lines) < 60
    assert set(lines[-1]["losses"]) == {"hidden", "cosine", "similarity", "relation"}
    assert any(line["cosine"] is not None for line in lines)
    with Image.open(plot) as image:
        assert image.width > 500


@pytest.mark.slow
def test_accumulated_batches_train_as_one_large_batch(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    data, losses = sources(tmp_path, 200), {"similarity": 0.0}
    reports = [
        distill(
            latent,
            tiny_bert,
            data,
            tmp_path / str(size),
            Training(steps=10, batch_size=size, accumulate=16 // size, losses=losses, learning_rate=2e-3),
            DistillOptions(threads=1),
        )
        for size in (4, 16)
    ]
    assert reports[0].texts == pytest.approx(reports[1].texts, rel=0.15)
    assert reports[0].cosine_after == pytest.approx(reports[1].cosine_after, abs=0.02)


def test_calibrated_weights_are_moved_from_the_edges_but_keep_their_codes(tiny_bert: Path) -> None:
    layer = TernaryLinear(64, 8, False, Scheme())
    with torch.no_grad():
        layer.weight.copy_(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)))
        layer.weight_scale.copy_(torch.full((8, 1), 0.8))
    codes = layer.codes()
    layer.settle(0.25)
    assert torch.equal(layer.codes(), codes)
    assert (layer.weight / 0.8 - codes).abs().max() <= 0.2501


def test_weights_that_the_last_step_broke_are_not_written(
    run: Run, tiny_bert: Path, latent: Path, tmp_path: Path
) -> None:
    data = ("--data", sources(tmp_path, 100).paths[0], "--batch-size", 8, "--steps", 1, "--learning-rate", 1e38)
    result = run("distill", latent, "--teacher", tiny_bert, *data, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "not finite" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["texts.txt"]


@pytest.mark.slow
def test_a_model_of_one_layer_is_matched_too(run: Run, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source", num_hidden_layers=1)
    result = run("distill", source, "--data", sources(tmp_path, 60).paths[0], "--steps", 2, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output


def test_a_model_without_a_state_per_token_is_matched_by_its_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (Outputs((), torch.randn(4, 8, generator=generator), torch.ones(4, 1)) for _ in "ab")
    assert set(loss_parts({"hidden": 1.0, "cosine": 1.0}, one, other)) == {"cosine"}
    with pytest.raises(InputError, match="no hidden states"):
        loss_parts({"hidden": 1.0}, one, other)


def test_the_text_itself_in_the_queue_does_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(6, 8, generator=generator) for _ in "ab")
    queue = torch.nn.functional.normalize(torch.randn(10, 8, generator=generator), dim=-1)
    seen = torch.cat([queue, torch.nn.functional.normalize(teacher[:1], dim=-1)])
    first = similarity_divergence(student[:1], teacher[:1], queue)
    assert float(similarity_divergence(student[:1], teacher[:1], seen)) == pytest.approx(float(first), abs=1e-6)


@pytest.mark.slow
def test_a_model_card_keeps_what_others_wrote(tiny_bert: Path, latent: Path, tmp_path: Path) -> None:
    card = latent / "README.md"
    card.write_text("# Mine\n\n## How this student was trained\n\nby hand\n\n## Notes\n\nkeep me\n")
    try:
        distill(
            latent, tiny_bert, sources(tmp_path, 60), tmp_path / "out", Training(steps=1), DistillOptions(threads=1)
        )
    finally:
        card.unlink()
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.count("## How this student was trained") == 2
    assert text.index("How this student") < text.index("# Mine") < text.index("by hand") < text.index("keep me")
    assert "- data: " in text
    pack(tmp_path / "out", tmp_path / "packed")
    packed = (tmp_path / "packed" / "README.md").read_text()
    assert packed.count("- data: ") == packed.count("by hand") == 1


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    run: Run, tiny_bert: Path, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = ("--data", sources(tmp_path, 100).paths[0], "--batch-size", 8, "--steps", 20, "--save-every", 0)
    command = ("distill", latent, "--teacher", tiny_bert, *data, "-o", tmp_path / "out", "--json")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "rate", lambda self, done, step: 1e-3 if step < 5 else float("nan"))
        result = run(*command)
    assert result.exit_code == 1
    assert "the gradients are not finite 3 steps in a row, after step 9; " in result.stderr
    assert "word_embeddings.weight is the first weight that is not finite" in result.stderr
    assert not (tmp_path / "out").exists()
    result = run(*command, "--resume", "--learning-rate", 1e-4)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["resumed_at"] == 5


@pytest.mark.slow
def test_a_step_without_finite_gradients_is_left_out(
    tiny_bert: Path, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, weights = Optimisation._gradients_of, []

    def breaking(self: Optimisation, batch: dict[str, Any]) -> Any:
        taught = own(self, batch)
        weights.append([p.detach().clone() for p in self.parameters])
        if len(weights) == 3:
            self._gradients[7] = float("nan")
        return taught

    monkeypatch.setattr(Optimisation, "_gradients_of", breaking)
    training, data = Training(steps=6), sources(tmp_path, 60)
    report = distill(latent, tiny_bert, data, tmp_path / "out", training, DistillOptions(threads=1))
    assert (report.left_out, report.steps) == (1, 6)
    same = [all(torch.equal(a, b) for a, b in zip(*two, strict=True)) for two in itertools.pairwise(weights)]
    assert same == [False, False, True, False, False]
    assert json.loads((tmp_path / "out" / "distillation.json").read_text())["left_out"] == 1


@pytest.mark.slow
def test_looking_at_held_out_data_changes_nothing(
    tiny_bert: Path, latent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    for look in (lambda self, done, now: self.held_out(), lambda self, done, now: None):
        monkeypatch.setattr(Trainer, "_look", look)
        output = tmp_path / str(len(made))
        distill(
            latent, tiny_bert, sources(tmp_path, 60), output, Training(steps=4, batch_size=8), DistillOptions(threads=1)
        )
        made.append((output / "model.safetensors").read_bytes())
    assert made[0] == made[1]


def test_places_of_the_queue_that_are_not_filled_do_not_count() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.randn(6, 8, generator=generator) for _ in "ab")
    queue = torch.nn.functional.normalize(torch.randn(10, 8, generator=generator), dim=-1)
    longer = torch.cat([torch.zeros(3, 8), queue, torch.zeros(5, 8)])
    filled = similarity_divergence(student, teacher, queue)
    assert float(similarity_divergence(student, teacher, longer)) == pytest.approx(float(filled), rel=1e-5)
    alone = similarity_divergence(student[:1], teacher[:1], torch.zeros(4, 8))
    assert float(alone) == 0.0
