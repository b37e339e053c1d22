"""`convert --dry-run`: sizes to the byte of what `convert` and `pack` then write, and nothing else happens."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import add_dense, save_tiny_bert
from safetensors.torch import load_file, save_file

import ternarize_cli.compress.dry_run as module
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.dry_run import dry_run
from ternarize_cli.compress.pack import pack
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.scheme import CODECS, Scheme
from ternarize_cli.storage.weights import WeightShard

Run = Callable[..., Any]


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def check_bytes(source: Path, folder: Path, scheme: Scheme, skip: Sequence[str] = ()) -> None:
    """Converts and packs with every codec, and compares the files with what was foretold."""
    planned = dry_run(source, scheme, skip=skip)
    assert planned.bytes_source == weights_bytes(source)
    convert(source, folder / "latent", scheme, skip=skip)
    assert planned.bytes_checkpoint == weights_bytes(folder / "latent")
    assert list(planned.bytes_packed) == list(CODECS[scheme.levels])
    for codec, sizes in planned.bytes_packed.items():
        pack(folder / "latent", folder / codec, codec=codec)
        assert sizes[scheme.table_bits] == weights_bytes(folder / codec)


@pytest.mark.parametrize("table_bits", [4, 8, 16, 32])
def test_bytes_are_exact_for_every_codec_and_table_width(tiny_bert: Path, tmp_path: Path, table_bits: int) -> None:
    check_bytes(tiny_bert, tmp_path, Scheme(table_bits=table_bits))


@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(granularity="tensor", rule="absmean"),
        Scheme(granularity="group", group_size=8),
        Scheme(levels="binary"),
        Scheme(levels="int2", granularity="group", group_size=16),
        Scheme(levels="int4"),
    ],
    ids=lambda scheme: f"{scheme.levels}-{scheme.granularity}",
)
def test_bytes_are_exact_for_every_scheme(tiny_bert: Path, tmp_path: Path, scheme: Scheme) -> None:
    check_bytes(tiny_bert, tmp_path, scheme)


def test_bytes_are_exact_for_images_and_for_half_precision_with_skipped_modules(tiny_vit: Path, tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    check_bytes(tiny_vit, tmp_path / "vit", Scheme())
    (tmp_path / "bert").mkdir()
    source = save_tiny_bert(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    save_file({k: t.half() for k, t in tensors.items()}, source / "model.safetensors", metadata={"format": "pt"})
    check_bytes(source, tmp_path / "bert", Scheme(), skip=["pooler*", "*position_embeddings", "*layer.1.*"])


def test_bytes_are_exact_for_shards_dropped_and_large_tensors(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    config = ViTConfig(
        image_size=64, patch_size=16, hidden_size=96, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96
    )
    source = tmp_path / "source"
    ViTModel(config).save_pretrained(source, max_shard_size="200KB")
    shards = sorted(source.glob("*.safetensors"))
    assert len(shards) > 1
    tensors = load_file(shards[0])
    save_file({**tensors, "classifier.weight": torch.ones(9, 9)}, shards[0], metadata={"format": "pt"})
    check_bytes(source, tmp_path, Scheme())
    planned = dry_run(source)
    assert planned.plan.dropped == ("classifier.weight",)
    assert any("float16 when packed" in why for why in planned.plan.others.values())  # the patch convolution


@pytest.mark.parametrize("keep_dense", [False, True])
def test_bytes_are_exact_with_a_dense_module(tmp_path: Path, keep_dense: bool) -> None:
    source = save_tiny_bert(tmp_path / "source")
    add_dense(source)
    planned = dry_run(source, keep_dense=keep_dense)
    convert(source, tmp_path / "latent", keep_dense=keep_dense)
    pack(tmp_path / "latent", tmp_path / "packed", codec="base3")
    assert planned.bytes_checkpoint == weights_bytes(tmp_path / "latent")
    assert planned.bytes_packed["base3"][8] == weights_bytes(tmp_path / "packed")
    assert ("2_Dense.linear" in planned.plan.excluded) == keep_dense


def test_bytes_are_exact_for_transposed_weights(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2Model

    GPT2Model(GPT2Config(vocab_size=40, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "source"
    )
    check_bytes(tmp_path / "source", tmp_path, Scheme())
    shapes = {group.name: group.shape for group in dry_run(tmp_path / "source").linears}
    assert shapes["attn.c_attn"] == (48, 16)


def test_bytes_are_exact_with_a_trimmed_vocabulary(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    (tmp_path / "corpus.txt").write_text("the cat and the river\na bird in a tree\n")
    trim = [tmp_path / "corpus.txt"]
    planned = dry_run(source, trim=trim)
    assert planned.tables[0].shape[0] < 45
    convert(source, tmp_path / "latent", trim=trim)
    pack(tmp_path / "latent", tmp_path / "packed")
    assert planned.bytes_checkpoint == weights_bytes(tmp_path / "latent")
    assert planned.bytes_packed["2bit"][8] == weights_bytes(tmp_path / "packed")


def test_linears_are_grouped_by_shape(tiny_bert: Path) -> None:
    planned = dry_run(tiny_bert, skip=["encoder.layer.1.attention.self.*"])
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


def test_the_time_is_measured_here_and_scaled_to_the_model(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = dry_run(tiny_bert).seconds
    assert set(seconds) == {"ternarise", "hash"}
    assert all(value > 0 for value in seconds.values())
    monkeypatch.setattr(module, "_measure", lambda shape, scheme: 1e-6 * shape[0] * shape[1])
    monkeypatch.setattr(module, "_SAMPLE", 640)  # a part of each matrix, and not all widths
    monkeypatch.setattr(module, "_MEASURED", 2)
    planned = dry_run(tiny_bert)
    count = sum(group.count * group.shape[0] * group.shape[1] for group in planned.linears)
    assert planned.seconds["ternarise"] == pytest.approx(1e-6 * count)


def test_what_convert_would_refuse_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="groups of 5 do not divide"):
        dry_run(tiny_bert, Scheme(granularity="group", group_size=5))
    with pytest.raises(InputError, match="matches no linear"):
        dry_run(tiny_bert, skip=["poler"])
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
