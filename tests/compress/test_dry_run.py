"""`convert --dry-run`: sizes to the byte of what `convert` and `pack` then write, and nothing else happens."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from support.models import add_dense, save_tiny_bert, save_word_tokenizer
from ternarize_cli.compress.calibrate import Calibration
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.dry_run import dry_run
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.compress.source_model import ConversionPlan
from ternarize_cli.compress.tensor_policy import Headers
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.scheme import CODECS, Scheme
from ternarize_cli.storage.weights import WeightShard

Run = Callable[..., Any]


SETTINGS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS_49 = {"vocab_size": 49, **SETTINGS}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "roberta": (hf.RobertaModel, hf.RobertaConfig(max_position_embeddings=70, pad_token_id=0, **WORDS_49)),
    "qwen3": (hf.Qwen3Model, hf.Qwen3Config(num_key_value_heads=2, head_dim=8, **WORDS_49)),
    "vit": (hf.ViTModel, hf.ViTConfig(image_size=64, patch_size=16, **SETTINGS | {"hidden_size": 96})),
    "gpt2": (hf.GPT2Model, hf.GPT2Config(vocab_size=49, n_positions=64, n_embd=32, n_layer=2, n_head=4)),
    "deberta": (hf.DebertaV2Model, hf.DebertaV2Config(relative_attention=True, position_buckets=8, **WORDS_49)),
    "t5": (hf.T5EncoderModel, hf.T5Config(vocab_size=49, **T5)),  # one table under two names
}
SCHEMES = [
    Scheme(),
    Scheme(granularity="group", group_size=8, table_bits=4),
    Scheme(granularity="tensor", rule="absmean", table_bits=16),
    Scheme(levels="binary", table_bits=32),
    Scheme(levels="int2", granularity="group", group_size=16),
    Scheme(levels="int4"),
]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of all families; "bert" and "dense" are sentence-transformers ones, "vit" has several shards."""
    root = tmp_path_factory.mktemp("sources")
    found = {"bert": save_tiny_bert(root / "bert"), "dense": save_tiny_bert(root / "dense")}
    add_dense(found["dense"])
    for name, (kind, config) in FAMILIES.items():
        torch.manual_seed(0)
        kind(config).save_pretrained(root / name, max_shard_size="200KB" if name == "vit" else "5GB")
        found[name] = root / name
    save_word_tokenizer(root / "qwen3")
    shard = min((root / "vit").glob("*.safetensors"))
    save_file({**load_file(shard), "classifier.weight": torch.ones(9, 9)}, shard, metadata={"format": "pt"})
    return found


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def headers(folder: Path) -> Headers:
    files = [load_file(path) for path in folder.rglob("*.safetensors")]
    found = {key: (tensor.dtype, tuple(tensor.shape)) for file in files for key, tensor in file.items()}
    assert len(found) == sum(map(len, files))
    return found


def check(
    source: Path, folder: Path, scheme: Scheme, calibration: Calibration | None = None, **options: Any
) -> ConversionPlan:
    """Converts and packs with every codec, and compares plan, sizes and headers with what was foretold."""
    chosen = ConvertOptions(**options)
    planned = dry_run(source, scheme, chosen, calibration=calibration)
    report = convert(source, folder / "latent", scheme, chosen, calibration=calibration)
    assert isinstance(report.plan, ConversionPlan)
    assert report.plan == planned.plan
    assert planned.bytes_source == weights_bytes(source)
    assert planned.bytes_checkpoint == weights_bytes(folder / "latent")
    assert headers(folder / "latent") == {k: h for d in report.plan.tensors for k, h in d.checkpoint.items()}
    assert list(planned.bytes_packed) == list(CODECS[scheme.levels])
    for codec, sizes in planned.bytes_packed.items():
        pack(folder / "latent", folder / codec, codec=codec)
        assert sizes[scheme.table_bits] == weights_bytes(folder / codec)
    assert headers(folder / planned.codec) == {k: h for d in report.plan.tensors for k, h in d.packed.items()}
    return report.plan


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: f"{s.levels}-{s.granularity}-{s.table_bits}")
@pytest.mark.parametrize("name", ["bert", "dense", *FAMILIES])
def test_plan_bytes_and_headers_are_those_that_are_written(
    sources: dict[str, Path], tmp_path: Path, name: str, scheme: Scheme
) -> None:
    plan = check(sources[name], tmp_path, scheme)
    assert plan.having("ternary")
    assert plan.dropped == (("classifier.weight",) if name == "vit" else ())


@pytest.mark.parametrize("name", ["bert", "dense", "qwen3"])
def test_plan_bytes_and_headers_are_exact_with_calibration(
    sources: dict[str, Path], tmp_path: Path, corpus: Path, name: str
) -> None:
    scheme = Scheme(granularity="group", group_size=8)
    plan = check(sources[name], tmp_path, scheme, Calibration((corpus,), 32), skip=["pooler*"] * (name != "qwen3"))
    assert len(plan.having("added")) == (2 * 7 if name == "qwen3" else 0)
    assert any("calibration fits" in d.reason for d in plan.tensors)


def test_plan_bytes_and_headers_are_exact_for_half_precision_with_skipped_modules(
    tiny_bert: Path, tmp_path: Path, corpus: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    tensors = load_file(source / "model.safetensors")
    save_file({k: t.half() for k, t in tensors.items()}, source / "model.safetensors", metadata={"format": "pt"})
    skip = ["pooler*", "*position_embeddings", "*layer.1.*"]
    check(source, tmp_path, Scheme(), skip=skip)
    (tmp_path / "calibrated").mkdir()
    check(source, tmp_path / "calibrated", Scheme(), Calibration((corpus,), 32), skip=skip)


def test_plan_bytes_and_headers_are_exact_with_a_kept_dense_module(sources: dict[str, Path], tmp_path: Path) -> None:
    assert check(sources["dense"], tmp_path, Scheme(), keep_dense=True).excluded == {"2_Dense.linear": "--keep-dense"}


@pytest.mark.parametrize("name", ["bert", "dense"])
def test_plan_bytes_and_headers_are_exact_with_a_trimmed_vocabulary(
    sources: dict[str, Path], tmp_path: Path, name: str
) -> None:
    (tmp_path / "corpus.txt").write_text("the cat and the river\na bird in a tree\n")
    plan = check(sources[name], tmp_path, Scheme(table_bits=4), trim=[tmp_path / "corpus.txt"])
    assert plan.having("table")[0].shape[0] < 45


def test_a_conv1d_is_listed_as_out_by_in(sources: dict[str, Path]) -> None:
    shapes = {group.name: group.shape for group in dry_run(sources["gpt2"]).linears}
    assert shapes["attn.c_attn"] == (96, 32)


def test_linears_are_grouped_by_shape(tiny_bert: Path) -> None:
    planned = dry_run(tiny_bert, options=ConvertOptions(skip=["encoder.layer.1.attention.self.*"]))
    assert [(g.count, g.shape) for g in planned.linears] == [(6, (32, 32)), (2, (64, 32)), (2, (32, 64))]
    assert planned.linears[0].name == "self.query, self.key, self.value, output.dense, pooler.dense"
    assert [g.name.rpartition(".")[2] for g in planned.tables] == [
        "word_embeddings",
        "position_embeddings",
        "token_type_embeddings",
    ]
    assert len(planned.plan.excluded) == 3
    layers = {(32, 32): 32 * (8 + 2), (64, 32): 64 * (8 + 2), (32, 64): 32 * (16 + 2)}
    assert [g.bytes_packed for g in planned.linears] == [g.count * layers[g.shape] for g in planned.linears]


def test_no_tensor_is_read(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = dry_run(tiny_bert).bytes_packed

    def refuse(self: WeightShard, key: str) -> torch.Tensor:
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(WeightShard, "get", refuse)
    assert dry_run(tiny_bert).bytes_packed == expected


def test_what_convert_would_refuse_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="matches no linear"):
        dry_run(tiny_bert, options=ConvertOptions(skip=["poler"]))
    convert(tiny_bert, tmp_path / "latent")
    with pytest.raises(CheckpointError, match="is a ternary model already"):
        dry_run(tmp_path / "latent")


# ---- the command line


def test_a_dry_run_touches_nothing(run: Run, tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("mine")
    for target in ("there", "not-there", "no/such/folder"):
        result = run("convert", tiny_bert, "--dry-run", "-o", target)
        assert result.exit_code == 0, result.output
        assert "dry run: nothing was written" in result.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "there"]


def test_the_plan_is_short_and_names_what_was_asked_for(run: Run, tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source", num_hidden_layers=20)
    text = run("convert", source, "--dry-run", "--skip", "encoder.layer.3.*", "--table-bits", "4").stdout
    assert "115 linears would become ternary" in text
    assert len(text.splitlines()) < 50
    assert "and 3 more" in text
    assert "base3, 1.6 bits" in text
    planned = json.loads(
        run("convert", source, "--dry-run", "--skip", "encoder.layer.3.*", "--table-bits", "4", "--json").stdout
    )
    assert f"{planned['bytes_packed']['2bit']['4']:,} bytes, 2bit and 4-bit tables" in text
    assert planned["table_bits"] == 4
    assert sum(group["count"] for group in planned["linears"]) == 115
