"""`ternarize compress`: one command, a recipe that repeats it, and runs that go on after they were killed."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer

from support.models import save_tiny_vit
from ternarize_cli.errors import SettingsError
from ternarize_cli.pipeline.options import CompressOptions
from ternarize_cli.pipeline.recipe import Recipe, read_recipe
from ternarize_cli.storage.digests import sha256

FEW = ("--steps", "3", "--calibration-tokens", "1000", "--batch-size", "8")


@pytest.fixture(scope="module")
def place(tiny_bert: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, texts, and pairs with the scores that the model itself gives."""
    folder = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_bert, folder / "tiny")
    (folder / "tiny" / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n\nMine.\n")
    shutil.copy(corpus, folder / "texts.txt")
    rng = random.Random(1)
    left, right = (rng.sample(corpus.read_text().splitlines(), 30) for _ in range(2))
    model = SentenceTransformer(str(tiny_bert), device="cpu")
    cosines = (model.encode(left) * model.encode(right)).sum(axis=1)  # the original then scores 1, and others less
    rows = (f"{one},{other},{5 * value:.4f}\n" for one, other, value in zip(left, right, cosines, strict=True))
    (folder / "sts.csv").write_text("".join(rows))
    return folder


@pytest.fixture
def work(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(place, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def left_beside(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(".")}


@pytest.mark.slow
def test_a_training_that_makes_the_model_worse_is_told(run: Callable[..., Any], work: Path) -> None:
    result = run("compress", "tiny", "--data", "texts.txt", *FEW, "--learning-rate", "10", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert "training made the model worse; try a lower --learning-rate" in result.stderr
    assert ", worse than before |" in (work / "out" / "README.md").read_text()


@pytest.mark.slow
def test_one_command_gives_a_model_with_card_and_recipe_and_the_recipe_gives_it_again(
    run: Callable[..., Any], work: Path
) -> None:
    result = run("compress", "tiny", "--data", "texts.txt", *FEW, "--sts", "sts.csv", "-o", "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["recipe"]["model"] == "tiny"
    assert found["pack"]["bytes_packed"] == (work / "out" / "model.safetensors").stat().st_size
    assert found["distill"]["steps"] == 3
    (scored,) = found["eval"]["tasks"]
    card = ModelCard.load(work / "out" / "README.md")
    (kept,) = card.data.eval_results
    assert (kept.dataset_name, kept.metric_value) == ("sts", round(scored["student"], 4))
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert card.data.license == "apache-2.0"
    for said in ("## How it was made", "| distill | 3 steps", "texts.txt", "Machine: ", "## What it scores", "Mine."):
        assert said in card.text
    assert left_beside(work) == set()
    recipe = tomllib.loads((work / "out" / "recipe.toml").read_text())
    assert recipe["digests"]["texts.txt"] == sha256(work / "texts.txt")
    assert (recipe["steps"], recipe["batch_size"]) == (3, 8)
    again = run("compress", "--recipe", "out/recipe.toml", "-o", "again")
    assert again.exit_code == 0, again.stderr
    assert "recipe was written with" not in again.stderr
    for name in ("model.safetensors", "recipe.toml", "config.json"):
        assert (work / "out" / name).read_bytes() == (work / "again" / name).read_bytes()
    assert run("publish", "again", "me/again", "--dry-run").exit_code == 0
    missed = run("compress", "--recipe", "out/recipe.toml", "--steps", "2", "--min-retention", "1", "-o", "third")
    assert missed.exit_code == 3, missed.stderr
    assert "quality gate missed" in missed.stderr
    assert tomllib.loads((work / "third" / "recipe.toml").read_text())["steps"] == 2


@pytest.mark.slow
def test_a_tier_takes_the_place_of_the_levels_of_a_recipe_and_they_take_its_place(
    run: Callable[..., Any], work: Path
) -> None:
    few = ("--minutes", "0", "--calibration-tokens", "1000")
    first = run("compress", "tiny", "--data", "texts.txt", *few, "--levels", "mixed", "--bits", "3", "-o", "first")
    assert first.exit_code == 0, first.stderr
    for given, before, after in (
        (("--tier", "faithful"), "first", {"tier": "faithful"}),
        (("--levels", "ternary"), "second", {"levels": "ternary"}),
    ):
        made = {"first": "second", "second": "third"}[before]
        result = run("compress", "--recipe", f"{before}/recipe.toml", *given, "-o", made)
        assert result.exit_code == 0, result.stderr
        recipe = tomllib.loads((work / made / "recipe.toml").read_text())
        assert {name: value for name, value in recipe.items() if name in ("tier", "levels", "bits")} == after
        levels = json.loads((work / made / "config.json").read_text())["quantization_config"]["levels"]
        assert levels == ("int4" if given[0] == "--tier" else "ternary")


@pytest.mark.slow
def test_training_ends_at_a_cosine_or_a_warning_says_that_it_did_not(run: Callable[..., Any], work: Path) -> None:
    few = ("--steps", "20", "--calibration-tokens", "1000", "--batch-size", "8", "--json")
    near = run("compress", "tiny", "--data", "texts.txt", *few, "--until", "0.01", "-o", "near")
    assert near.exit_code == 0, near.stderr
    made = json.loads(near.stdout)["distill"]
    assert (made["steps"], made["ended_by"]) == (0, "until")  # it was as near before the first
    assert "training ended before its 20 steps: a reading reached --until 0.01" in near.stderr
    assert tomllib.loads((work / "near" / "recipe.toml").read_text())["until"] == 0.01
    assert ", until 0.01 or 20 steps; cosine to the original" in (work / "near" / "README.md").read_text()
    far = run("compress", "--recipe", "near/recipe.toml", "--until", "1", "--json", "-o", "far")
    assert far.exit_code == 0, far.stderr
    assert json.loads(far.stdout)["distill"]["steps"] == 20
    assert "--until 1 was not reached within 20 steps: the held-out cosine is" in far.stderr


@pytest.mark.slow
def test_without_minutes_the_calibrated_model_is_packed(run: Callable[..., Any], work: Path) -> None:
    few = ("--minutes", "0", "--calibration-tokens", "1000", "--codec", "base3")
    result = run("compress", "tiny", "--data", "texts.txt", *few, "-o", "out", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert (found["distill"], found["eval"], found["pack"]["codec"]) == (None, None, "base3")
    assert not (work / "out" / "distillation.json").exists()
    (work / "texts.txt").write_text((work / "texts.txt").read_text() + "\nthe cat\n")
    again = run("compress", "--recipe", "out/recipe.toml", "-o", "again")
    assert "warning: texts.txt is not what the recipe was written with" in again.stderr
    assert again.exit_code == 0


@pytest.mark.slow
def test_a_folder_of_images_compresses_an_image_encoder(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    save_tiny_vit(tmp_path / "vit")
    for i in range(30):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
        (tmp_path / "photos" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png")
    given = ("--data", "photos", "--images", "photos", "--steps", "2", "--batch-size", "4")
    result = run("compress", "vit", *given, "-o", "out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["convert"]["kind"] == "image"
    assert "model.encode([Image.new" in (tmp_path / "out" / "README.md").read_text()


def killed_at(title: str, work: Path, *arguments: str) -> str:
    """Runs the command, and kills it when it says that a stage begins; what it had said."""
    command = [sys.executable, "-m", "ternarize_cli", "compress", *arguments]
    process = subprocess.Popen(command, cwd=work, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if line.startswith(f"• {title}") and "finished" not in line:
            process.send_signal(signal.SIGKILL)
            break
    process.stderr.read()
    process.stderr.close()
    assert process.wait() == -signal.SIGKILL, said
    return said


@pytest.mark.slow
def test_a_run_that_is_killed_at_each_stage_goes_on_from_there(run: Callable[..., Any], work: Path) -> None:
    given = ("tiny", "--data", "texts.txt", *FEW, "--sts", "sts.csv", "-o", "out")
    whole = run("compress", *given[:-1], "whole")
    assert whole.exit_code == 0, whole.stderr
    killed_at("distill", work, *given)
    assert not (work / "out").exists()
    assert left_beside(work) == {".out.stages.partial"}
    refused = run("compress", *given)
    assert refused.exit_code == 2
    assert "left finished stages" in refused.stderr
    assert "--resume" in refused.stderr
    assert "convert: ternary weights, calibrated on the data: finished" in killed_at("pack", work, *given, "--resume")
    assert re.search("• distill.*finished by an earlier run", killed_at("eval", work, *given, "--resume"))
    assert not (work / "out").exists()
    last = run("compress", *given, "--resume")
    assert last.exit_code == 0, last.stderr
    assert last.stderr.count("finished by an earlier run") == 3
    assert left_beside(work) == set()
    for name in ("model.safetensors", "recipe.toml"):
        assert (work / "out" / name).read_bytes() == (work / "whole" / name).read_bytes()


@pytest.mark.slow
def test_stages_that_read_something_else_now_are_repeated(run: Callable[..., Any], work: Path) -> None:
    given = ("tiny", "--data", "texts.txt", *FEW, "-o", "out")
    killed_at("pack", work, *given)
    stages = work / ".out.stages.partial" / "out.stages"
    weights = stages / "distilled" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said = killed_at("pack", work, *given, "--resume")
    assert "calibrated on the data: finished" in said
    assert not re.search("distill.*finished", said)
    (work / "texts.txt").write_text((work / "texts.txt").read_text() + "\nthe cat\n")
    last = run("compress", *given, "--resume")
    assert last.exit_code == 0, last.stderr
    assert "finished" not in last.stderr
    assert tomllib.loads((work / "out" / "recipe.toml").read_text())["digests"]["texts.txt"] == sha256(
        work / "texts.txt"
    )


def test_what_can_be_refused_at_once_is_refused_at_once(run: Callable[..., Any], work: Path) -> None:
    def refused(*arguments: str) -> str:
        result = run("compress", *arguments)
        assert result.exit_code == 2, result.output
        assert "•" not in result.stderr
        assert left_beside(work) == set()
        return " ".join(result.stderr.split())

    (work / "full").mkdir()
    (work / "full" / "mine.txt").write_text("x")
    assert "needs a model and data" in refused("tiny")
    assert "needs a model and data" in refused("--data", "texts.txt")
    assert "exists already" in refused("tiny", "--data", "texts.txt", "-o", "full")
    assert "--force does not replace it" in refused("tiny", "--data", "texts.txt", "-o", "full", "--force")
    assert "overlap" in refused("tiny", "--data", "texts.txt", "-o", "tiny", "--force")
    assert "overlap" in refused("tiny", "--data", "texts.txt", "-o", "tiny/out")
    assert "does not read stdin" in refused("tiny", "--data", "-", "-o", "out")
    assert "missing.csv" in refused("tiny", "--data", "texts.txt", "--sts", "missing.csv", "-o", "out")
    assert "missing.txt" in refused("tiny", "--data", "missing.txt", "-o", "out")
    assert "nosuch/model" in refused("nosuch/model", "--data", "texts.txt", "-o", "out")
    assert "something to score" in refused("tiny", "--data", "texts.txt", "--min-retention", "0.9", "-o", "out")
    both = ("--steps", "3", "--minutes", "1")
    assert "the budget is one of" in refused("tiny", "--data", "texts.txt", *both, "-o", "out")
    for levels, codec in (("int4", "base3"), ("ternary", "4bit")):
        said = refused("tiny", "--data", "texts.txt", "--levels", levels, "--codec", codec, "-o", "out")
        assert f"there is no codec '{codec}' for {levels} codes" in said
    gate = ("--sts", "sts.csv", "--min-retention", "other=0.9")
    assert "no task 'other'" in refused("tiny", "--data", "texts.txt", *gate, "-o", "out")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version = 1\nmodel = 'm'\ndata = ['d']\nstepps = 3\n", "do you mean steps?"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nallow_pickle = true\n", "not taken from a recipe"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\ndevice = 'cuda'\n", "not taken from a recipe"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nsteps = 'three'\n", "not a number"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nsteps = true\n", "not a number"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nsteps = 1.5\n", "whole number"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nsts = 'a.csv'\n", "not a list of strings"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nlevels = 3\n", "not a string"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\ntier = 'better'\n", "not one of small, balanced, faithful"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\ntier = 3\n", "not one of small, balanced, faithful"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nactivations = 8.0\n", "not one of 8, 16"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nkeep_dense = 1\n", "not true or false"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nminutes = 1.0\nsteps = 2\n", "the budget is one of"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\nseed = -1\n", "seed is -1"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\n[digests]\nmodel = 3\n", "something else than digests"),
        ("version = 1\nmodel = 'm'\ndata = ['d']\n[more]\nx = 1\n", "has no option more"),
        ("version = 1\nmodel = 'm'\ndata = 'd'\n", "not a list of names"),
        ("version = 1\nmodel = 'm'\ndata = []\n", "not a list of names"),
        ("version = 1\ndata = ['d']\n", "not the name of a model"),
        ("version = 2\nmodel = 'm'\ndata = ['d']\n", "no recipe that this version reads"),
        ("model = 'm'\n", "no recipe that this version reads"),
        ("a = " + "[" * 10_000, "not valid TOML"),
        ("not toml", "not valid TOML"),
        ("#" * (2 << 20), "larger than"),
        ("\x00", "not valid TOML"),
    ],
)
def test_a_strange_recipe_is_refused(run: Callable[..., Any], tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    result = run("compress", "--recipe", tmp_path / "recipe.toml", "-o", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert result.stderr.startswith("error: ")


def test_a_recipe_reads_what_it_wrote(tmp_path: Path) -> None:
    names = ('a "b"\\.txt', "c\n\x7f\t.txt", "Grüße 📦.txt", "[x]=y")
    options = CompressOptions(
        minutes=0.5,
        learning_rate=1e-5,
        skip=("pooler*",),
        sts=names,
        min_retention=("0.9",),
        no_check=True,
        table_bits=4,
        activations=16,
        tier="faithful",
        seed=7,
        threads=3,
    )
    recipe = Recipe("owner/name@v1", names, options, dict.fromkeys(("model", *names), "0" * 64))
    (tmp_path / "recipe.toml").write_text(recipe.text(), encoding="utf-8")
    found = read_recipe(tmp_path / "recipe.toml")
    assert (found.model, found.data, found.digests) == (recipe.model, recipe.data, recipe.digests)
    assert found.settings() == recipe.settings()
    assert "threads" not in recipe.text()
    with pytest.raises(SettingsError, match="missing"):
        read_recipe(tmp_path / "missing.toml")
