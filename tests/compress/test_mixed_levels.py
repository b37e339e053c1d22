"""`convert --levels mixed --bits`: which linears become int4, and that every stage treats them as such."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.families import stages
from support.fused_families import needs_native
from support.heads import save_headed
from support.models import add_dense, save_tiny_bert
from support.packed_models import TEXTS, Both, merge
from ternarize_cli import kernels
from ternarize_cli.compress import mixed_levels
from ternarize_cli.compress.calibrate import Calibration
from ternarize_cli.compress.convert import ConversionReport, convert
from ternarize_cli.compress.dry_run import dry_run
from ternarize_cli.compress.inspect import inspect
from ternarize_cli.compress.options import TIERS, ConvertOptions, SchemeOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.distill import Sources, Training, distill
from ternarize_cli.distill.options import DistillOptions
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.heads import load_cross_encoder, logits
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import FormatError, InputError, UnavailableError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.layers import PackedLinear, TernaryLinear
from ternarize_cli.model_folder.integrity import seal
from ternarize_cli.pipeline.options import CompressOptions
from ternarize_cli.runtime import Reranker
from ternarize_cli.runtime.opening import open_model

Run = Callable[..., Any]
BITS = 3.2


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[ConversionReport, Path, Path]:
    """The report, the checkpoint and the packed model of a tiny BERT at `BITS` bits; tests must not write into them."""
    return stages(tiny_bert, tmp_path_factory.mktemp("mixed"), bits=BITS)


def artifact_of(folder: Path) -> Artifact:
    found = checkpoint.artifact_of(folder)
    assert found is not None
    return found


def levels_of(folder: Path) -> dict[str, str]:
    """The grids of the linears of a model as it is loaded."""
    model: Any = load_encoder(folder, device="cpu")[0].auto_model
    return {n: m.scheme.levels for n, m in model.named_modules() if isinstance(m, PackedLinear | TernaryLinear)}


def test_the_budget_is_used_and_kept(made: tuple[ConversionReport, Path, Path]) -> None:
    report, _, packed = made
    assert {x.levels for x in report.layers} == {"ternary", "int4"}
    assert BITS - 0.4 < report.bits <= BITS
    assert inspect(packed).bits == pytest.approx(report.bits)
    assert sum(x.bytes_after for x in report.layers) == sum(m.bytes for m in inspect(packed).modules if m.codes)


def test_the_linears_that_need_it_most_for_their_bytes_come_first(tiny_bert: Path, tmp_path: Path) -> None:
    plain = convert(tiny_bert, tmp_path / "plain", options=ConvertOptions(check=False))
    weights = sum(x.shape[0] * x.shape[1] for x in plain.layers)
    extra = max(x.shape[0] * x.shape[1] for x in plain.layers) * 2 / 8  # bytes for one of the largest, as int4
    bits = plain.bits + 8 * 1.5 * extra / weights
    report = convert(tiny_bert, tmp_path / "made", options=ConvertOptions(bits=bits, check=False))
    groups: dict[float, int] = {}
    for x in report.layers:
        groups[x.need or 0.0] = groups.get(x.need or 0.0, 0) + x.shape[0] * x.shape[1]
    best = max(groups, key=lambda need: need**2 / groups[need])
    assert {x.need for x in report.layers if x.levels == "int4"} >= {best}
    unneeded = [x for x in report.layers if x.name == "pooler.dense"]  # nothing reads it: the vectors are means
    assert [(x.need, x.levels) for x in unneeded] == [(0.0, "ternary")]


def test_what_runs_as_one_product_is_chosen_together(tiny_bert: Path) -> None:
    found = []
    for bits in (2.7, 3.3):
        chosen = dry_run(tiny_bert, options=ConvertOptions(bits=bits)).module_levels
        for i in range(2):
            names = {f"encoder.layer.{i}.attention.self.{name}" for name in ("query", "key", "value")}
            found.append(len(names & chosen.keys()))
    assert set(found) == {0, 3}


def test_a_weight_that_linears_share_is_whole_again_after_it_was_measured() -> None:
    first, second = torch.nn.Linear(32, 16), torch.nn.Linear(32, 16)
    second.weight = first.weight
    before = first.weight.detach().clone()
    with mixed_levels._rounded([first, second], Scheme()):
        assert not torch.equal(first.weight, before)
    assert torch.equal(first.weight, before)
    with pytest.raises(AssertionError), mixed_levels._rounded([first, torch.nn.Bilinear(2, 2, 2)], Scheme()):
        pass
    assert torch.equal(second.weight, before)


def test_the_choice_is_stored_and_loaded(made: tuple[ConversionReport, Path, Path]) -> None:
    report, latent, packed = made
    chosen = {x.name: x.levels for x in report.layers}
    for folder in (latent, packed):
        artifact = artifact_of(folder)
        assert (artifact.levels, artifact.to_dict()["format_version"]) == ("mixed", 3)
        assert list(artifact.module_levels.items()) == [(n, v) for n, v in chosen.items() if v != "ternary"]
        assert levels_of(folder) == chosen
        found = inspect(folder)
        assert {m.name: m.levels for m in found.modules if m.codes is not None} == chosen
        assert found.codes is not None
        assert set(found.codes) == set(range(-8, 8))


def test_the_same_model_gives_the_same_bytes(
    tiny_bert: Path, made: tuple[ConversionReport, Path, Path], tmp_path: Path
) -> None:
    _, latent, packed = stages(tiny_bert, tmp_path, bits=BITS)
    for old, new in zip(made[1:], (latent, packed), strict=True):
        for name in ("config.json", "model.safetensors"):
            assert (old / name).read_bytes() == (new / name).read_bytes()


def test_int4_linears_bring_the_vectors_nearer(
    tiny_bert: Path, made: tuple[ConversionReport, Path, Path], tmp_path: Path
) -> None:
    texts = TEXTS[:6]
    wanted = load_encoder(tiny_bert, device="cpu").encode(texts)
    ternary = stages(tiny_bert, tmp_path)[2]
    far, near = (load_encoder(f, device="cpu", backend="reference").encode(texts) for f in (ternary, made[2]))
    assert np.linalg.norm(near - wanted) < 0.9 * np.linalg.norm(far - wanted)


@needs_native
def test_backends_and_the_runtime_give_the_checkpoints_vectors(made: tuple[ConversionReport, Path, Path]) -> None:
    _, latent, packed = made
    wanted = load_encoder(latent, device="cpu").encode(TEXTS)
    assert np.array_equal(load_encoder(packed, device="cpu", backend="reference").encode(TEXTS), wanted)
    for name in ("onednn", "native"):
        if kernels.refusal(load_encoder(packed, device="cpu"), name) is None:
            given = load_encoder(packed, device="cpu", backend=name).encode(TEXTS)
            assert np.linalg.norm(given - wanted) < 0.1 * np.linalg.norm(wanted)
    Both(packed).same()


def test_a_backend_without_int4_refuses_in_words(
    made: tuple[ConversionReport, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ternarize_cli.kernels.triton import Triton

    monkeypatch.setattr(Triton, "missing", lambda _: None)  # whatever this machine lacks
    with pytest.raises(UnavailableError, match="its levels are int4, and triton runs ternary only"):
        kernels.use_backend(load_encoder(made[2], device="cpu"), "triton")


@pytest.mark.parametrize("codec", ["2bit", "base3"])
def test_ternary_linears_keep_their_codecs(
    made: tuple[ConversionReport, Path, Path], tmp_path: Path, codec: str
) -> None:
    pack(made[1], tmp_path / "packed", codec=codec, check=False)
    model: Any = load_encoder(tmp_path / "packed", device="cpu")
    found = {m.codec.name for m in model.modules() if isinstance(m, PackedLinear)}
    assert found == {codec, "4bit"}
    texts = TEXTS[:6]
    given, wanted = (load_encoder(f, device="cpu", backend="reference") for f in (tmp_path / "packed", made[2]))
    assert np.array_equal(given.encode(texts), wanted.encode(texts))


def test_calibration_uses_each_linears_own_grid(tiny_bert: Path, corpus: Path, tmp_path: Path) -> None:
    calibration = Calibration((str(corpus),), tokens=2000)
    options = ConvertOptions(bits=BITS, check=False)
    report = convert(tiny_bert, tmp_path / "made", options=options, calibration=calibration)
    model: Any = load_encoder(tmp_path / "made", device="cpu")[0].auto_model
    widest = {x.name: float(model.get_submodule(x.name).codes().abs().max()) for x in report.layers}
    assert all((widest[x.name] > 1) == (x.levels == "int4") for x in report.layers)
    missed = {
        levels: [x.output_error for x in report.layers if x.levels == levels and x.output_error is not None]
        for levels in ("ternary", "int4")
    }
    assert min(missed["int4"]) < 0.5 * min(missed["ternary"])  # those that write into the residual stream miss more


def test_training_keeps_the_grids(
    tiny_bert: Path, made: tuple[ConversionReport, Path, Path], corpus: Path, tmp_path: Path
) -> None:
    training = Training(steps=2, batch_size=8)
    distill(made[1], tiny_bert, Sources([corpus]), tmp_path / "out", training, DistillOptions(threads=1))
    assert artifact_of(tmp_path / "out").module_levels == artifact_of(made[1]).module_levels
    name = next(iter(artifact_of(made[1]).module_levels))
    models: list[Any] = [load_encoder(folder, device="cpu")[0].auto_model for folder in (made[1], tmp_path / "out")]
    old, new = (model.get_submodule(name) for model in models)
    assert not torch.equal(old.matrix, new.matrix)
    assert float(new.codes().abs().max()) > 1


def test_a_dense_module_and_a_head_have_grids_too(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "dense")
    add_dense(source)
    report, _, packed = stages(source, tmp_path, bits=3.9)
    dense = next(x for x in report.layers if x.name.endswith("_Dense.linear"))
    assert dense.levels == "int4"
    assert artifact_of(packed / "2_Dense").module_levels == {"linear": "int4"}
    assert inspect(packed).bits == pytest.approx(report.bits)
    (tmp_path / "ranks").mkdir()
    report, latent, packed = stages(save_headed(tmp_path / "ranks" / "source"), tmp_path / "ranks", bits=BITS)
    names = {x.name for x in report.layers if x.levels == "int4"}
    assert names
    assert set(artifact_of(packed).module_levels) == {name.removeprefix("bert.") for name in names}
    for folder in (latent, packed):
        assert {m.name for m in inspect(folder).modules if m.levels == "int4"} == names


@needs_native
def test_a_reranker_runs_without_torch(tmp_path: Path) -> None:
    packed = stages(save_headed(tmp_path / "source"), tmp_path, bits=BITS)[2]
    pairs = [("the cat", "a dog"), ("the house", "the cat")]
    wanted = logits(load_cross_encoder(packed, device="cpu", backend="native"), pairs)
    assert Reranker(packed).score(pairs, raw=True) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", ["nonsense.name", "classifier"])
def test_a_reranker_whose_table_names_another_module_is_refused(tmp_path: Path, name: str) -> None:
    packed = stages(save_headed(tmp_path / "source"), tmp_path, bits=BITS)[2]
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"]["module_levels"][name] = "int4"
    del config["quantization_config"]["digest"]
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(FormatError, match=f"module_levels names '{name}', which is no linear of this model"):
        load_cross_encoder(packed, device="cpu", backend="reference")


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_dry_run_foretells_every_byte(tiny_bert: Path, corpus: Path, tmp_path: Path, calibrated: bool) -> None:
    calibration = Calibration((str(corpus),), tokens=2000) if calibrated else None
    options = ConvertOptions(bits=BITS, check=False)
    planned = dry_run(tiny_bert, options=options, calibration=calibration)
    report = convert(tiny_bert, tmp_path / "latent", options=options, calibration=calibration)
    assert planned.module_levels == {x.name: x.levels for x in report.layers if x.levels != "ternary"}
    assert planned.bits == report.bits
    assert planned.bytes_checkpoint == (tmp_path / "latent" / "model.safetensors").stat().st_size
    for codec, sizes in planned.bytes_packed.items():
        pack(tmp_path / "latent", tmp_path / codec, codec=codec, check=False)
        assert sizes[8] == (tmp_path / codec / "model.safetensors").stat().st_size


@pytest.mark.parametrize("bits", [2.0, 0.0, 4.6, float("nan"), float("inf")])
def test_a_budget_out_of_range_is_refused_with_the_range(tiny_bert: Path, tmp_path: Path, bits: float) -> None:
    with pytest.raises(InputError, match=r"2\.4\d+ bits a weight if all are ternary, and 4\.4\d+ if all are int4"):
        convert(tiny_bert, tmp_path / "made", options=ConvertOptions(bits=bits))
    assert not (tmp_path / "made").exists()


def test_the_least_budget_makes_a_ternary_model_as_ever(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "least").mkdir()
    report, _, plain = stages(tiny_bert, tmp_path / "plain")
    least = stages(tiny_bert, tmp_path / "least", bits=report.bits)[2]
    for name in ("config.json", "model.safetensors"):
        assert (plain / name).read_bytes() == (least / name).read_bytes()


@pytest.mark.parametrize("scheme", [Scheme(levels="int2"), Scheme(rule="absmean")])
def test_other_grids_and_the_papers_rule_mix_with_nothing(tiny_bert: Path, tmp_path: Path, scheme: Scheme) -> None:
    with pytest.raises(InputError, match="and levels is int"):
        convert(tiny_bert, tmp_path / "made", scheme, ConvertOptions(bits=BITS))


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--bits", 3), "--bits 3 is for mixed levels, and --levels is ternary"),
        (("--levels", "int4", "--bits", 3), "--bits 3 is for mixed levels, and --levels is int4"),
        (("--levels", "mixed"), "--levels mixed needs a budget"),
        (("--levels", "mixed", "--bits", 1.6), "--bits 1.6 is out of range"),
        (("--levels", "mixed", "--bits", 3, "--rule", "absmean"), "the rule absmean gives ternary codes"),
        (("--tier", "faithful", "--bits", 3), "the tier faithful has levels and bits of its own"),
        (("--tier", "faithful", "--levels", "ternary"), "the tier faithful has levels and bits of its own"),
        (("--tier", "small", "--levels", "int4"), "the tier small has levels and bits of its own"),
        (("--tier", "better"), "'better' is not one of 'small', 'balanced', 'faithful'"),
    ],
)
def test_wrong_flags_are_wrong_usage(run: Run, tiny_bert: Path, tmp_path: Path, flags: Any, why: str) -> None:
    for command in (("convert", "--dry-run"), ("convert",)):
        result = run(*command, tiny_bert, "-o", tmp_path / "made", *flags)
        assert result.exit_code == 2
        assert why in " ".join(result.stderr.split())
    assert not (tmp_path / "made").exists()


def test_the_command_says_what_became_of_each_linear(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    flags = ("--levels", "mixed", "--bits", BITS, "--no-check")
    shown = run("convert", tiny_bert, "-o", tmp_path / "made", *flags)
    assert shown.exit_code == 0, shown.stderr
    names = artifact_of(tmp_path / "made").module_levels
    assert f"{len(names)} linears of 13 are int4" in shown.stdout
    result = json.loads(run("convert", tiny_bert, "-o", tmp_path / "again", *flags, "--json").stdout)
    assert {x["name"] for x in result["layers"] if x["levels"] == "int4"} == set(names)
    assert result["bits"] <= BITS
    assert "levels" in run("inspect", tmp_path / "made").stdout
    planned = json.loads(run("convert", tiny_bert, "--dry-run", *flags, "--json").stdout)
    assert planned["module_levels"] == names


@pytest.mark.parametrize("tier", TIERS)
def test_a_tier_stands_for_levels_and_bits(run: Run, tiny_bert: Path, tmp_path: Path, tier: str) -> None:
    levels, bits = TIERS[tier]
    for name, flags in {
        "by-tier": ("--tier", tier),
        "by-levels": ("--levels", levels, *(() if bits is None else ("--bits", bits))),
    }.items():
        assert run("convert", tiny_bert, "-o", tmp_path / name, *flags, "--no-check").exit_code == 0
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "by-tier" / name).read_bytes() == (tmp_path / "by-levels" / name).read_bytes()
    options = CompressOptions(tier=tier)
    assert (options.scheme().levels, options.converting().bits) == ("ternary" if bits else levels, bits)
    assert options.made_levels == levels


def test_a_budget_into_which_no_int4_linear_fits_is_said(run: Run, tiny_bert: Path, tmp_path: Path) -> None:
    done = run("convert", tiny_bert, "-o", tmp_path / "made", "--tier", "balanced", "--no-check")
    assert done.exit_code == 0
    assert "13 linears, ternary" in done.stdout
    assert "no linear fits into 2.5 bits a weight as int4" in done.stderr
    assert checkpoint.artifact_of(tmp_path / "made").levels == "ternary"  # type: ignore[union-attr]


def test_tiers_are_what_the_documentation_says() -> None:
    assert TIERS == {"small": ("ternary", None), "balanced": ("mixed", 2.5), "faithful": ("int4", None)}


def test_there_is_no_other_tier_and_none_beside_levels() -> None:
    with pytest.raises(InputError, match="there is no tier 'better'"):
        CompressOptions(tier="better").scheme()
    with pytest.raises(InputError, match="the tier faithful has levels and bits of its own"):
        CompressOptions(tier="faithful", levels="ternary").scheme()
    with pytest.raises(InputError, match="was not replaced"):
        SchemeOptions(tier="faithful").scheme()


NAMES = {
    "a name that no module has": "encoder.layer.0.attention.self.querry",
    "a table": "embeddings.word_embeddings",
    "a norm": "encoder.layer.0.output.LayerNorm",
    "a linear whose bytes are others": "encoder.layer.1.attention.self.query",
}


@pytest.mark.parametrize(
    ("stage", "what"),
    [(stage, what) for stage in ("latent", "packed") for what in NAMES if (stage, "bytes" in what) != ("latent", True)],
)
def test_a_table_that_does_not_fit_the_weights_is_refused(
    made: tuple[ConversionReport, Path, Path], tmp_path: Path, stage: str, what: str
) -> None:
    name, folder = NAMES[what], tmp_path / "changed"
    _, latent, packed = made
    shutil.copytree(latent if stage == "latent" else packed, folder)
    config = json.loads((folder / "config.json").read_text())
    assert name not in config["quantization_config"]["module_levels"]
    config["quantization_config"]["module_levels"][name] = "int4"
    merge(folder / "config.json", **config)
    opens: list[Callable[[Path], object]] = [lambda f: load_encoder(f, device="cpu"), inspect]
    if stage == "packed":
        seal(folder)
        opens.append(open_model)
    else:
        opens.append(lambda f: pack(f, tmp_path / "packed"))
    for opening in opens:
        with pytest.raises(FormatError, match=name):
            opening(folder)
