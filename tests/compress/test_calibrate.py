import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from support.models import WORDS, save_tiny_bert, save_word_tokenizer
from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress.calibrate import Calibrated, CalibrationRecipe, calibrate, make_batches
from ternarize_cli.compress.calibrate.lockstep import drive, intercepted
from ternarize_cli.compress.calibrate.moments import Batch, Moments
from ternarize_cli.compress.calibrate.residuals import find_residuals, norms_of
from ternarize_cli.compress.calibrate.solve import latent_weight, solve
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, FormatError
from ternarize_cli.format.scheme import CalibrationData, Scheme

ALL_LEVELS = ("ternary", "binary", "int2", "int4")
ALL_GRANULARITIES = [("row", None), ("tensor", None), ("group", 16)]


def correlated(rows: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    return torch.randn(rows, width, generator=generator) @ mixing


def moments_of(x: Tensor, y: Tensor, pooled: float = 0.0) -> Tensor:
    whole, moments = Batch(1, None), Moments()
    moments.add(whole.rows(x[None]), whole.rows(y[None]))
    return moments.covariance(pooled)


def output_error(weight: Tensor, x: Tensor, codes: Tensor, scale: Tensor) -> float:
    difference = (x - x.mean(0)) @ (weight - ternary.dequantize(codes, scale)).T
    return float(difference.square().sum())


@pytest.mark.parametrize("levels", ALL_LEVELS)
@pytest.mark.parametrize(("granularity", "group"), ALL_GRANULARITIES)
def test_fitted_codes_miss_less_of_the_outputs_than_rounded_ones(levels: str, granularity: str, group: int) -> None:
    x, weight = correlated(600, 48), torch.randn(20, 48, generator=torch.Generator().manual_seed(1))
    scheme = Scheme(levels=levels, granularity=granularity, group_size=group)
    found = solve(weight, moments_of(x, x), moments_of(x @ weight.T, x), scheme, CalibrationRecipe())
    plain = ternary.scale_of(weight, scheme)
    fitted = output_error(weight, x, found.codes, found.scale)
    assert fitted < 0.75 * output_error(weight, x, ternary.codes_of(weight, plain, levels), plain)
    assert found.scale.shape == plain.shape
    assert torch.equal(found.scale, found.scale.half().float())


@pytest.mark.parametrize("levels", ALL_LEVELS)
def test_the_latent_weight_gives_the_codes_back(levels: str) -> None:
    x, weight = correlated(300, 32), torch.randn(24, 32, generator=torch.Generator().manual_seed(2))
    weight[3] = 0.0
    found = solve(weight, moments_of(x, x), moments_of(x @ weight.T, x), Scheme(levels=levels), CalibrationRecipe())
    assert torch.equal(ternary.codes_of(latent_weight(found, levels), found.scale, levels), found.codes)


def test_coordinate_descent_never_costs_more() -> None:
    x, weight = correlated(400, 40), torch.randn(30, 40, generator=torch.Generator().manual_seed(3))
    h, c = moments_of(x, x), moments_of(x @ weight.T, x)
    costs = []
    for sweeps in (0, 1, 4):
        found = solve(weight, h, c, Scheme(), CalibrationRecipe(regress=0.0, sweeps=sweeps, damping=1e-6))
        costs.append(output_error(weight, x, found.codes, found.scale))
    assert costs[0] > costs[1] > costs[2]


def test_an_input_that_never_varies_is_no_obstacle() -> None:
    x, weight = correlated(200, 24), torch.randn(16, 24, generator=torch.Generator().manual_seed(4))
    x[:, 5] = 3.0
    found = solve(weight, moments_of(x, x), moments_of(x @ weight.T, x), Scheme(), CalibrationRecipe())
    assert torch.isfinite(found.scale).all()
    none = torch.zeros(24, 24, dtype=torch.float64)
    assert torch.isfinite(solve(weight, none, none[:16], Scheme(), CalibrationRecipe()).scale).all()


def test_moments_leave_padding_out_and_weigh_texts_alike() -> None:
    x = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(5))
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    batch, moments = Batch(2, mask), Moments()
    moments.add(batch.rows(x), batch.rows(x))
    tokens = torch.cat([x[0], x[1, :2]]).double()
    texts = torch.stack([x[0].mean(0), x[1, :2].mean(0)]).double() - tokens.mean(0)
    wanted = torch.cov(tokens.T, correction=0) + 2.0 * texts.T @ texts / 2
    torch.testing.assert_close(moments.covariance(2.0), wanted, rtol=1e-5, atol=1e-6)


def linears_of(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def calibrated(folder: Path, corpus: Path, scheme: Scheme) -> tuple[object, dict[str, Calibrated]]:
    encoder = load_encoder(folder, device="cpu")
    batches = make_batches(encoder, folder, [corpus], tokens=1500)
    return encoder, calibrate(encoder, batches, linears_of(encoder[0].auto_model), {}, scheme)


def test_the_residual_linears_of_a_bert_are_found(tiny_bert: Path, corpus: Path) -> None:
    encoder = load_encoder(tiny_bert, device="cpu")
    batch = make_batches(encoder, tiny_bert, [corpus], tokens=1000)[-1]
    linears = linears_of(encoder[0].auto_model)
    with torch.no_grad():
        order, found = find_residuals(lambda b: encoder(dict(b.values)), batch, linears, norms_of(encoder))
    assert order == list(linears)
    assert set(found) == {name for name in linears if name.endswith("output.dense")}
    assert all(torch.equal(residual.gain, torch.ones(32)) for residual in found.values())


def test_calibration_leaves_the_encoder_as_it_was(tiny_bert: Path, corpus: Path) -> None:
    before = load_encoder(tiny_bert, device="cpu").encode(WORDS)
    encoder, found = calibrated(tiny_bert, corpus, Scheme())
    assert np.array_equal(encoder.encode(WORDS), before)  # type: ignore[attr-defined]
    assert set(found) == set(linears_of(encoder[0].auto_model))  # type: ignore[index]


@pytest.mark.slow
def test_more_levels_miss_less(tiny_bert: Path, corpus: Path) -> None:
    errors = [
        np.mean([one.output_error for one in calibrated(tiny_bert, corpus, Scheme(levels=levels))[1].values()])
        for levels in ("binary", "ternary", "int2", "int4")
    ]
    assert errors == sorted(errors, reverse=True)


def convert_and_compare(run: Callable, folder: Path, *options: object) -> float:
    """Mean cosine to the original after convert and pack; the packed model equals the checkpoint."""
    ternary_folder, packed = folder.parent / "ternary", folder.parent / "packed"
    made = run("convert", folder, "-o", ternary_folder, "--force", *options)
    assert made.exit_code == 0, made.stderr
    assert ("tokens of text to calibrate on" in made.stderr) == ("--calibrate" in options)
    assert run("pack", ternary_folder, "-o", packed, "--force").exit_code == 0
    texts = [" ".join(random.Random(i).choices(WORDS, k=8)) for i in range(20)]
    original, checkpoint, final = (load_encoder(f, device="cpu") for f in (folder, ternary_folder, packed))
    for module in final.modules():
        if hasattr(module, "backend"):
            module.backend = "reference"
    vectors = checkpoint.encode(texts, normalize_embeddings=True)
    assert np.array_equal(final.encode(texts, normalize_embeddings=True), vectors)
    return float((vectors * original.encode(texts, normalize_embeddings=True)).sum(axis=1).mean())


@pytest.mark.slow
def test_a_calibrated_model_is_nearer_the_original_than_a_plain_one(
    tmp_path: Path, run: Callable, corpus: Path
) -> None:
    folder = save_tiny_bert(tmp_path / "bert", seed=3)
    plain = convert_and_compare(run, folder)
    calibrated = convert_and_compare(run, folder, "--calibrate", corpus, "--calibration-tokens", 3000)
    assert 1 - calibrated < 0.5 * (1 - plain)


@pytest.mark.slow
def test_linears_without_a_bias_get_one(tmp_path: Path, run: Callable, corpus: Path) -> None:
    from transformers import Qwen3Config, Qwen3Model

    folder = tmp_path / "qwen"
    folder.mkdir()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=save_word_tokenizer(folder),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        head_dim=8,
        initializer_range=0.2,
        pad_token_id=0,
    )
    Qwen3Model(config).save_pretrained(folder)
    plain = convert_and_compare(run, folder)
    options = ("--calibrate", corpus, "--calibration-tokens", 3000)
    planned = json.loads(run("convert", folder, "--dry-run", *options, "--json").stdout)
    assert convert_and_compare(run, folder, *options) > plain
    assert planned["bytes_packed"]["2bit"]["8"] == (tmp_path / "packed" / "model.safetensors").stat().st_size
    described = json.loads((tmp_path / "packed" / "config.json").read_text())["quantization_config"]
    assert described["calibration"]["kind"] == "text"
    assert 2000 < described["calibration"]["tokens"] < 4000
    assert f"{described['calibration']['samples']:,} texts" in run("inspect", tmp_path / "packed").stdout
    assert "layers.0.self_attn.q_proj" in described["added_biases"]


def test_image_models_calibrate_on_images(tmp_path: Path, run: Callable, tiny_vit: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for i in range(20):
        pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i}.png")
    result = run("convert", tiny_vit, "-o", tmp_path / "out", "--calibrate", tmp_path / "images", "--json")
    assert result.exit_code == 0, result.stderr
    text = tmp_path / "lines.txt"
    text.write_text("\n".join(f"cat {word}" for word in WORDS))
    refused = run("convert", tiny_vit, "-o", tmp_path / "other", "--calibrate", text)
    assert refused.exit_code == 2
    assert "reads images, not text" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_data_that_reaches_no_linear_is_an_error(tiny_bert: Path, corpus: Path) -> None:
    encoder = load_encoder(tiny_bert, device="cpu")
    batches = make_batches(encoder, tiny_bert, [corpus], tokens=1000)
    with pytest.raises(CheckpointError, match="none of the model's linears"):
        calibrate(encoder, batches, {"elsewhere": nn.Linear(8, 8)}, {}, Scheme())


def test_passes_that_part_ways_are_an_error() -> None:
    linears = {"first": nn.Linear(4, 4), "second": nn.Linear(4, 4)}

    def run(batch: Tensor) -> Tensor:  # the sign of the data chooses the way, as experts do
        return linears["first" if batch.sum() > 0 else "second"](input=batch)

    with intercepted(linears, {}, {}), pytest.raises(CheckpointError, match="first, second"):
        drive(run, [torch.ones(2, 4), -torch.ones(2, 4)], lambda name, taught, learnt: [s.value for s in learnt])
    assert run(torch.zeros(2, 4)).shape == (2, 4)


def test_a_singular_metric_without_damping_is_solved() -> None:
    x, weight = correlated(200, 24), torch.randn(8, 24, generator=torch.Generator().manual_seed(4))
    x[:, 5] = x[:, 6]
    found = solve(weight, moments_of(x, x), moments_of(x @ weight.T, x), Scheme(), CalibrationRecipe(damping=0.0))
    assert torch.isfinite(found.scale).all()


def test_a_fit_to_few_noisy_samples_holds_on_others_thanks_to_the_ridge() -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(4100, 64, generator=generator) @ torch.randn(64, 64, generator=generator)
    few, others = x[:100], x[100:]
    weight = torch.randn(32, 64, generator=generator)
    wanted = few @ weight.T
    wanted += wanted.std() * torch.randn(wanted.shape, generator=generator)
    whole, inputs = Batch(1, None), Moments()
    inputs.add(whole.rows(few[None]), whole.rows(few[None]))
    errors = []
    for noise in (0.0, inputs.noise(0.0)):
        found = solve(weight, inputs.covariance(0.0), moments_of(wanted, few), Scheme(), CalibrationRecipe(), noise)
        errors.append(output_error(weight, others, found.codes, found.scale))
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("values", ["text", {"kind": "text"}, {"kind": "text", "samples": "x"}, {"kind": ["a"]}])
def test_a_damaged_record_of_calibration_is_an_error(values: object) -> None:
    with pytest.raises(FormatError, match="it must have a kind, samples and tokens"):
        CalibrationData.from_dict(values)
    assert CalibrationData.from_dict({"kind": "image", "samples": 3, "later": 1}) == CalibrationData("image", 3)
