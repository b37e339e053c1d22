"""`inspect`: what it says of each stage, in numbers, in bars and in figures."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from support.models import add_dense, save_tiny_bert
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.inspect import inspect
from ternarize_cli.compress.inspection import Histogram
from ternarize_cli.compress.inspection_figures import histogram_bars, plot_inspection
from ternarize_cli.compress.pack import pack
from ternarize_cli.errors import InputError, OutputExistsError, UnavailableError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.measuring.figures import bars, check_plot

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def stages(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One model at full precision, latent and packed (base3)."""
    folder = tmp_path_factory.mktemp("stages")
    convert(tiny_bert, folder / "latent")
    pack(folder / "latent", folder / "packed", codec="base3")
    return {"full": tiny_bert, "latent": folder / "latent", "packed": folder / "packed"}


def linear_weights(folder: Path) -> dict[str, torch.Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {k: t for k, t in tensors.items() if t.dim() == 2 and "embeddings" not in k and k.endswith(".weight")}


def test_full_precision_weights_are_counted_relative_to_their_mean(stages: dict[str, Path]) -> None:
    found = inspect(stages["full"])
    ratios = torch.cat([(w.abs() / w.abs().mean()).flatten() for w in linear_weights(stages["full"]).values()])
    histogram = found.magnitudes
    assert histogram is not None
    assert sum(histogram.counts) == ratios.numel()
    below_one = sum(n for n, edge in zip(histogram.counts, histogram.edges[1:], strict=True) if edge <= 1)
    assert below_one == int((ratios < 1).sum())
    assert found.codes is None
    assert found.scales is None
    query = next(m for m in found.modules if m.name == "encoder.layer.0.attention.self.query")
    weight = linear_weights(stages["full"])[f"{query.name}.weight"]
    assert (query.mean_abs, query.max_abs) == (float(weight.abs().mean()), float(weight.abs().max()))


def test_a_checkpoint_which_has_no_digest_is_not_said_to_lack_one(
    stages: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    inspect(stages["latent"])
    assert "digest" not in caplog.text


def test_a_latent_checkpoint_shows_the_errors_and_zeros_of_its_conversion(
    stages: dict[str, Path], tmp_path: Path
) -> None:
    report = {layer.name: layer for layer in convert(stages["full"], tmp_path / "again").layers}
    ternary = [m for m in inspect(stages["latent"]).modules if m.kind == "ternary"]
    assert {m.name for m in ternary} == report.keys()
    for module in ternary:
        assert module.error == pytest.approx(report[module.name].error, abs=1e-6)
        assert module.zeros == report[module.name].zeros


def test_what_lies_below_the_threshold_is_zero(stages: dict[str, Path]) -> None:
    found = inspect(stages["latent"])
    assert found.thresholds == (0.5,)
    assert found.magnitudes is not None
    assert found.codes is not None
    total = sum(found.magnitudes.counts)
    below = sum(n for n, edge in zip(found.magnitudes.counts, found.magnitudes.edges[1:], strict=True) if edge <= 0.5)
    assert below / total == pytest.approx(found.codes[0])
    assert sum(found.codes.values()) == pytest.approx(1)


def test_packed_codes_and_scales_are_those_of_the_checkpoint(stages: dict[str, Path]) -> None:
    latent, packed = inspect(stages["latent"]), inspect(stages["packed"])
    assert [m.codes for m in packed.modules] == [m.codes for m in latent.modules]
    pairs = [(a, b) for a, b in zip(latent.modules, packed.modules, strict=True) if a.scale_mean is not None]
    assert len(pairs) == 13
    for before, after in pairs:
        for key in ("scale_min", "scale_mean", "scale_max"):
            assert getattr(after, key) == pytest.approx(getattr(before, key), rel=1e-3)
        assert after.error is None
    assert packed.magnitudes is None
    assert packed.scales is not None
    assert sum(packed.scales.counts) == sum(m.shape[0] for m in packed.modules if m.codes)  # one for each row
    assert packed.parameters == latent.parameters == inspect(stages["full"]).parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ("levels", "thresholds"),
    [("binary", ()), ("int2", (2.0,)), ("int4", tuple(i + 0.5 for i in range(8)))],
)
def test_other_grids_have_their_own_codes_and_thresholds(
    tiny_bert: Path, tmp_path: Path, levels: str, thresholds: tuple[float, ...]
) -> None:
    convert(tiny_bert, tmp_path / "latent", Scheme(levels=levels))
    pack(tmp_path / "latent", tmp_path / "packed")
    latent, packed = inspect(tmp_path / "latent"), inspect(tmp_path / "packed")
    assert latent.thresholds == thresholds
    assert latent.codes == packed.codes
    assert sum((packed.codes or {}).values()) == pytest.approx(1)
    assert latent.magnitudes is not None
    assert sum(latent.magnitudes.counts) == sum(m.shape[0] * m.shape[1] for m in latent.modules if m.codes)


def test_a_layer_of_zeros_has_no_magnitudes_and_no_infinities(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source = save_tiny_bert(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    for key in linear_weights(source):
        tensors[key] = torch.zeros_like(tensors[key])
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    convert(source, tmp_path / "latent")
    for folder in (source, tmp_path / "latent"):
        found = inspect(folder)
        assert found.magnitudes is None
        assert found.scales is None
        assert all(m.error in (None, 0.0) for m in found.modules)


def test_dense_modules_are_shown_with_their_folder(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    convert(source, tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    full, latent, packed = (inspect(folder) for folder in (source, tmp_path / "latent", tmp_path / "packed"))
    for found in (full, latent, packed):
        assert found.modules[-1].name == "2_Dense.linear"
        assert found.modules[-1].shape == (16, 32)
        assert found.architecture == "BertModel"
        assert found.parameters == full.parameters
    assert full.bytes == sum(path.stat().st_size for path in source.rglob("*.safetensors"))
    assert packed.modules[-1].codes == latent.modules[-1].codes


def test_transposed_weights_are_shown_as_out_by_in(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    source = tmp_path / "source"
    GPT2Model(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(source)
    report = convert(source, tmp_path / "latent").layers[0]
    pack(tmp_path / "latent", tmp_path / "packed")
    for folder in (source, tmp_path / "latent", tmp_path / "packed"):
        module = next(m for m in inspect(folder).modules if m.name == report.name)
        assert module.shape == report.shape == (48, 16)
        assert module.zeros in (None, report.zeros)
        assert module.error in (None, pytest.approx(report.error, abs=1e-6))


# ---- bars


def test_bars_are_as_long_as_their_values() -> None:
    assert bars([("-1", 0.25), ("0", 0.5), ("+1", 0.25)], 24) == [
        "-1 ███████         25.0%",
        " 0 ██████████████  50.0%",
        "+1 ███████         25.0%",
    ]


def test_what_is_rare_can_still_be_seen() -> None:
    assert [line.split()[1] for line in bars([("a", 0.99999), ("b", 0.00001)], 40)] == ["█" * 31, "▏"]
    assert "▏" not in bars([("a", 1.0), ("b", 0.0)], 40)[1]


def test_a_mark_stands_in_front_of_its_bin() -> None:
    lines = histogram_bars(Histogram((0.0, 0.5, 1.0), (3, 1)), 30, marks=[(0.5, "threshold 0.5")], open_end=True)
    assert [line[:7] for line in lines] == ["  0.000", "───────", "≥ 0.500"]
    assert "threshold 0.5" in lines[1]
    assert {len(line) for line in lines} == {30}


def test_merging_bins_keeps_the_counts_and_the_outer_edges() -> None:
    merged = Histogram((0, 1, 2, 3, 4, 5), (1, 2, 3, 4, 5)).merged(2)
    assert merged == Histogram((0, 3, 5), (6, 9))


# ---- the command line


@pytest.mark.parametrize(
    ("stage", "texts"),
    [
        ("full", ["|w| / mean |w|", "threshold of absmean at beta 2"]),
        ("latent", ["codes, all linears", "scales, all linears", "|w| / scale", "threshold 0.5"]),
        ("packed", ["codes, all linears", "scales, all linears"]),
    ],
)
def test_histograms_fit_eighty_columns(
    run: Run, stages: dict[str, Path], monkeypatch: pytest.MonkeyPatch, stage: str, texts: list[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    plain, drawn = run("inspect", stages[stage]).stdout, run("inspect", stages[stage], "--histogram").stdout
    assert drawn.startswith(plain)
    figures = drawn[len(plain) :]
    assert all(text in figures for text in texts)
    assert all(len(line) <= 80 for line in figures.splitlines())
    assert all(len(line) == 80 for line in figures.splitlines() if "%" in line)


@pytest.mark.slow
def test_each_stage_has_its_columns(run: Run, stages: dict[str, Path]) -> None:
    full, latent, packed = (run("inspect", stages[s]).stdout for s in ("full", "latent", "packed"))
    assert "max |w|" in full
    assert "zeros" not in full
    assert "scale mean" in latent
    assert "error" in latent
    assert "scale mean" in packed
    assert "error" not in packed


def test_json_holds_every_number(run: Run, stages: dict[str, Path]) -> None:
    found = json.loads(run("inspect", stages["latent"], "--json").stdout)
    query = next(m for m in found["modules"] if m["name"].endswith("layer.0.attention.self.query"))
    assert set(query["codes"]) == {"-1", "0", "1"}
    assert 0 < query["scale_min"] <= query["scale_mean"] <= query["scale_max"]
    assert 0 < query["error"] < 1
    histogram = found["histograms"]["magnitudes"]
    assert len(histogram["edges"]) == len(histogram["counts"]) + 1
    assert math.isclose(sum(found["codes"].values()), 1)


# ---- figures


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["full", "latent", "packed"])
def test_a_figure_is_drawn_for_every_stage(run: Run, stages: dict[str, Path], tmp_path: Path, stage: str) -> None:
    result = run("inspect", stages[stage], "--plot", tmp_path / "figure.png")
    assert result.exit_code == 0, result.output
    assert f"wrote {tmp_path / 'figure.png'}" in result.stderr
    with Image.open(tmp_path / "figure.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 400
        assert len(image.convert("L").getcolors(256) or []) > 20
    assert [p.name for p in tmp_path.iterdir()] == ["figure.png"]


@pytest.mark.slow
def test_a_figure_may_be_svg(stages: dict[str, Path], tmp_path: Path) -> None:
    plot_inspection(inspect(stages["latent"]), "tiny", tmp_path / "figure.svg")
    assert "</svg>" in (tmp_path / "figure.svg").read_text()


def test_a_figure_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"ends in \.png, \.svg, \.pdf"):
        check_plot(tmp_path / "figure.jpg", force=False)
    (tmp_path / "there.png").write_bytes(b"")
    with pytest.raises(OutputExistsError, match="exists already"):
        check_plot(tmp_path / "there.png", force=False)
    check_plot(tmp_path / "there.png", force=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnavailableError, match="needs matplotlib") as error:
        check_plot(tmp_path / "figure.png", force=False)
    assert error.value.hint == "pip install 'ternarize-cli[plot]'"
    assert error.value.exit_code == 4
