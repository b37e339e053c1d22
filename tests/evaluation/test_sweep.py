"""The beta sweep: its numbers are those of models that were really converted and packed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from support.models import add_dense, save_modules, save_tiny_bert, save_word_tokenizer
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.evaluation.beta_sweep import parse_betas, sweep
from ternarize_cli.evaluation.reading import Pairs, read_pairs
from ternarize_cli.format.scheme import Scheme

Run = Callable[..., Any]
PAIRS = """the cat by the river,a mouse by the river,3
open the small file,close the small file,2.5
a bird in the tree,a red house,0.5
read the list,write the list to a file,2
water and fire,fire and water,5
sort the index,search the vector,1
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    path.write_text(PAIRS)
    return read_pairs(path, "pairs")


@pytest.fixture(scope="module")
def tiny_roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import RobertaConfig, RobertaModel

    folder = tmp_path_factory.mktemp("models") / "tiny-roberta"
    folder.mkdir()
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    torch.manual_seed(0)
    vocabulary = save_word_tokenizer(folder)
    config = RobertaConfig(
        vocab_size=vocabulary, max_position_embeddings=70, pad_token_id=0, initializer_range=0.15, **settings
    )
    RobertaModel(config).save_pretrained(folder)
    save_modules(folder, 32)
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(5):
        Image.linear_gradient("L").rotate(40 * i).resize((12, 12)).convert("RGB").save(folder / f"{i}.png")
    return folder


def cosine(a: Path, b: Path, inputs: Any) -> float:
    backends = ((a, "auto"), (b, "reference"))
    first, second = (load_encoder(f, backend=name).encode(inputs, convert_to_tensor=True) for f, name in backends)
    return float(torch.nn.functional.cosine_similarity(first, second).mean())


# ---- betas


def test_betas_are_sorted() -> None:
    assert parse_betas("2, 0.5,1e0") == (0.5, 1.0, 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not a number"),
        ("1,,2", "'' is not a number"),
        ("1;2", "'1;2' is not a number"),
        ("0,1", "0 is not above 0"),
        ("-1", "-1 is not above 0"),
        ("nan", "nan is not above 0"),
        ("inf", "inf is not above 0 and below 1000"),
        ("2,1,2.0", "2.0 is given twice"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_betas(text)


# ---- numbers


@pytest.mark.slow
def test_error_and_zeros_are_those_of_the_conversion(tiny_bert: Path, tmp_path: Path) -> None:
    found = sweep(tiny_bert, (1.5,), granularity="tensor")
    norms = {k.removesuffix(".weight"): t.norm() ** 2 for k, t in load_file(tiny_bert / "model.safetensors").items()}
    schemes = (Scheme(rule="absmean", beta=1.5, granularity="tensor"), Scheme(granularity="tensor"))
    for scheme, row in zip(schemes, (*found.absmean, found.optimal), strict=True):
        layers = convert(tiny_bert, tmp_path / scheme.rule, scheme).layers
        total = sum(norms[x.name] for x in layers)
        assert row.error == pytest.approx(
            float(sum(x.error**2 * norms[x.name] for x in layers) / total) ** 0.5, rel=1e-5
        )
        sizes = [x.shape[0] * x.shape[1] for x in layers]
        assert row.zeros == pytest.approx(sum(x.zeros * n for x, n in zip(layers, sizes, strict=True)) / sum(sizes))
    assert found.linears == 13
    assert found.measures == ("error", "zeros")
    assert found.optimal.cosine is None


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_roberta", "tiny_vit"])
def test_zeros_grow_with_beta_and_no_beta_beats_optimal(request: pytest.FixtureRequest, model: str) -> None:
    found = sweep(request.getfixturevalue(model), (0.5, 1, 1.5, 2, 3, 4))
    zeros = [row.zeros for row in found.absmean]
    assert zeros == sorted(zeros)
    assert all(row.error > found.optimal.error for row in found.absmean)
    assert found.best("error") == found.absmean[2]
    assert found.best("zeros") is None


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny_bert", "tiny_roberta"])
def test_cosine_and_sts_are_those_of_the_packed_model(
    request: pytest.FixtureRequest, tmp_path: Path, pairs: Pairs, model: str
) -> None:
    from ternarize_cli.evaluation.options import EvaluationOptions
    from ternarize_cli.evaluation.run import run as evaluate

    source = request.getfixturevalue(model)
    found = sweep(source, (2.0,), granularity="group:8", pairs=pairs)
    assert found.encoded == 12
    schemes = {"absmean": Scheme("absmean", 2.0, "group", 8), "optimal": Scheme("optimal", None, "group", 8)}
    for row, (name, scheme) in zip((*found.absmean, found.optimal), schemes.items(), strict=True):
        convert(source, tmp_path / f"{name}-latent", scheme)
        pack(tmp_path / f"{name}-latent", tmp_path / name)
        assert row.cosine == pytest.approx(cosine(source, tmp_path / name, pairs.first + pairs.second), abs=1e-5)
        options = EvaluationOptions(source, cached=False)
        (kept,) = evaluate(tmp_path / name, options, [pairs]).comparison.tasks[0]
        assert row.sts == pytest.approx(kept.student)
        assert found.teacher_sts == pytest.approx(kept.teacher)


@pytest.mark.slow
def test_a_dense_module_is_swept_with_the_encoder(tmp_path: Path, pairs: Pairs) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    found = sweep(source, (2.0,), pairs=pairs)
    assert found.linears == 14
    convert(source, tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    assert found.optimal.cosine == pytest.approx(
        cosine(source, tmp_path / "packed", pairs.first + pairs.second), abs=1e-5
    )


@pytest.mark.slow
def test_a_row_does_not_depend_on_the_others(tiny_bert: Path, pairs: Pairs) -> None:
    alone, among = sweep(tiny_bert, (2.0,), pairs=pairs), sweep(tiny_bert, (0.5, 2.0, 4.0), pairs=pairs)
    assert alone.absmean[0] == among.absmean[1]
    assert alone.optimal == among.optimal


@pytest.mark.slow
def test_images_give_the_cosine_of_the_packed_model(tiny_vit: Path, tmp_path: Path, pictures: Path) -> None:
    from ternarize_cli.data.images import read_images

    images = read_images(pictures)
    found = sweep(tiny_vit, (2.0,), images=images, batch_size=2)
    assert found.measures == ("error", "zeros", "cosine")
    assert found.encoded == 5
    convert(tiny_vit, tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    assert found.optimal.cosine == pytest.approx(cosine(tiny_vit, tmp_path / "packed", list(images)), abs=1e-5)


# ---- refusals


def test_only_a_full_precision_model_can_be_swept(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    with pytest.raises(CheckpointError, match=r"is a ternary model already \(stage latent\)"):
        sweep(tmp_path / "latent", (2.0,))


def test_pairs_are_for_text_and_images_for_image_models(
    tiny_bert: Path, tiny_vit: Path, pairs: Pairs, pictures: Path
) -> None:
    from ternarize_cli.data.images import read_images

    with pytest.raises(CheckpointError, match="reads images, not text"):
        sweep(tiny_vit, (2.0,), pairs=pairs)
    with pytest.raises(CheckpointError, match="reads text, not images"):
        sweep(tiny_bert, (2.0,), images=read_images(pictures))


# ---- the command line


def test_the_table_marks_the_best_beta(run: Run, tiny_bert: Path) -> None:
    result = run("inspect", tiny_bert, "--beta", "0.5,1,1.5,2,4")
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines() if line.strip().startswith(("absmean", "optimal"))]
    assert [row[1] for row in rows[:-1]] == ["0.5", "1", "1.5", "2", "4"]
    assert [row[1] for row in rows if "*" in row] == ["1.5"]
    assert rows[-1][0] == "optimal"


@pytest.mark.slow
def test_json_and_figure(run: Run, tiny_bert: Path, tmp_path: Path, pairs: Pairs) -> None:
    result = run("inspect", tiny_bert, "--beta", "1,2", "--sts", pairs.path, "--plot", tmp_path / "s.png", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [(row["rule"], row["beta"]) for row in found["rows"]] == [
        ("absmean", 1.0),
        ("absmean", 2.0),
        ("optimal", None),
    ]
    assert set(found["best_beta"]) == {"error", "cosine", "sts"}
    assert all(isinstance(row[key], float) for row in found["rows"] for key in ("error", "zeros", "cosine", "sts"))
    with Image.open(tmp_path / "s.png") as image:
        assert image.size[1] > 900  # two rows of panels
    assert [p.name for p in tmp_path.iterdir()] == ["s.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--beta", "1,x"], "'x' is not a number"),
        (["--granularity", "tensor"], "--granularity goes with --beta"),
        (["--sts", "pairs.csv"], "--sts goes with --beta"),
        (["--beta", "2", "--histogram"], "--histogram shows the model itself"),
        (["--beta", "2", "--sts", "a.csv", "--images", "b"], "exclude each other"),
        (["--beta", "2", "--sts", "missing.csv"], "there is no file missing.csv"),
        (["--beta", "2", "--granularity", "group:5"], "groups of 5 do not divide"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(run: Run, tiny_bert: Path, arguments: list[str], message: str) -> None:
    result = run("inspect", tiny_bert, *arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stdout == ""
