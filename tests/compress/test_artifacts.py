"""Convert and pack, and strict reading of what they wrote."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.specifiers import SpecifierSet
from safetensors.torch import load_file, save_file

from support.models import save_tiny_bert
from ternarize_cli import __version__, kernels
from ternarize_cli.arithmetic import packing
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.inspect import inspect
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.errors import CheckpointError, FormatError, InputError, OutputError, OutputExistsError
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import CODECS, Artifact, Scheme
from ternarize_cli.model_folder.integrity import seal
from ternarize_cli.storage import digests, files, weights

SENTENCES = ["the cat on the house", "a dog by the river", "write the file", "big red index of stone and light"]


@pytest.fixture
def packed(tiny_bert: Path, tmp_path: Path) -> Path:
    """A packed tiny BERT that a test may damage."""
    convert(tiny_bert, tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    return tmp_path / "packed"


def change_tensor(folder: Path, key: str, change: Callable[[torch.Tensor], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[key] = change(tensors[key])
    save_tensors(folder, tensors)


def save_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a model's tensors and, where it is a packed one, the digest of its files that a forger would write."""
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if checkpoint.stage(folder) == "packed":
        seal(folder)


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"].update(values)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme",
    [
        Scheme(),
        Scheme(rule="absmean", granularity="tensor"),
        Scheme(granularity="group", group_size=8),
        Scheme(activation_bits=16),
        Scheme(table_bits=16),
        Scheme(table_bits=32),
        Scheme(table_bits=4),
    ],
    ids=str,
)
def test_packed_and_unpacked_student_agree(tiny_bert: Path, tmp_path: Path, scheme: Scheme) -> None:
    convert(tiny_bert, tmp_path / "latent", scheme)
    pack(tmp_path / "latent", tmp_path / "packed")
    student = load_encoder(tmp_path / "latent").encode(SENTENCES)
    frozen = load_encoder(tmp_path / "packed", backend="reference").encode(SENTENCES)
    assert abs(student - frozen).max() < 1e-4


GRIDS = [
    (Scheme(levels=levels, granularity=granularity, group_size=group), codec)
    for levels, codecs in CODECS.items()
    for granularity, group in (("row", None), ("tensor", None), ("group", 8))
    for codec in codecs
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "codec"), GRIDS, ids=lambda x: x if isinstance(x, str) else f"{x.levels}-{x.granularity}"
)
def test_every_grid_and_codec_is_the_latent_model_bit_for_bit(
    tiny_bert: Path, tmp_path: Path, scheme: Scheme, codec: str
) -> None:
    convert(tiny_bert, tmp_path / "latent", scheme)
    report = pack(tmp_path / "latent", tmp_path / "packed", codec=codec)
    assert report.artifact.codec == codec
    student = load_encoder(tmp_path / "latent").encode(SENTENCES)
    frozen = load_encoder(tmp_path / "packed", backend="reference").encode(SENTENCES)
    assert (student == frozen).all()
    onednn = next(info for info in kernels.describe() if info.name == "onednn")
    if onednn.available and scheme.granularity in onednn.granularities:
        assert (load_encoder(tmp_path / "packed", backend="onednn").encode(SENTENCES) == frozen).all()
    assert [m.zeros for m in inspect(tmp_path / "latent").modules] == [
        m.zeros for m in inspect(tmp_path / "packed").modules
    ]


def test_base3_repacked_is_the_2bit_model(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    reports = {codec: pack(tmp_path / "latent", tmp_path / codec, codec=codec) for codec in ("2bit", "base3")}
    dense, small = (load_file(tmp_path / codec / "model.safetensors") for codec in reports)
    assert reports["base3"].bytes_linears < 0.9 * reports["2bit"].bytes_linears
    assert dense.keys() == small.keys()
    base3, two_bit, repacked = codec_for("ternary", "base3"), codec_for("ternary", "2bit"), 0
    for key, tensor in dense.items():
        if tensor.dtype == torch.uint8:
            width = 64 if "output.dense" in key and "attention" not in key else 32
            small[key] = packing.pack(two_bit, packing.unpack(base3, small[key], width))
            repacked += 1
        assert small[key].dtype == tensor.dtype
        assert torch.equal(small[key], tensor)
    assert repacked == 13
    vectors = [load_encoder(tmp_path / codec).encode(SENTENCES) for codec in reports]
    assert (vectors[0] == vectors[1]).all()


def test_4_bit_words_go_with_8_bit_positions(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent", Scheme(table_bits=4))
    pack(tmp_path / "latent", tmp_path / "packed")
    tensors = load_file(tmp_path / "packed" / "model.safetensors")
    kinds = {k.split(".")[1]: (t.dtype, t.shape[1]) for k, t in tensors.items() if k.endswith("_embeddings.weight")}
    assert kinds == {
        "word_embeddings": (torch.uint8, 16),
        "position_embeddings": (torch.int8, 32),
        "token_type_embeddings": (torch.int8, 32),
    }
    student = load_encoder(tmp_path / "latent").encode(SENTENCES)
    assert (load_encoder(tmp_path / "packed", backend="reference").encode(SENTENCES) == student).all()


def test_a_codec_of_other_levels_leaves_nothing_behind(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent", Scheme(levels="int4"))
    with pytest.raises(InputError, match="no codec 'base3' for int4 codes"):
        pack(tmp_path / "latent", tmp_path / "packed", codec="base3")
    assert [p.name for p in tmp_path.iterdir()] == ["latent"]


def test_two_conversions_and_packs_are_byte_identical(tiny_bert: Path, tmp_path: Path) -> None:
    for name in "ab":
        convert(tiny_bert, tmp_path / f"latent-{name}", options=ConvertOptions(seed=3))
        pack(tmp_path / f"latent-{name}", tmp_path / f"packed-{name}")
    for stage in ("latent", "packed"):
        a, b = tmp_path / f"{stage}-a", tmp_path / f"{stage}-b"
        names = sorted(p.relative_to(a) for p in a.rglob("*"))
        assert names == sorted(p.relative_to(b) for p in b.rglob("*"))
        assert all((a / n).read_bytes() == (b / n).read_bytes() for n in names if (a / n).is_file())


def test_the_packed_file_follows_the_format(packed: Path) -> None:
    tensors = load_file(packed / "model.safetensors")
    assert tensors["encoder.layer.0.intermediate.dense.weight"].dtype == torch.uint8
    assert tensors["encoder.layer.0.intermediate.dense.weight"].shape == (64, 8)
    assert tensors["encoder.layer.0.intermediate.dense.weight_scale"].dtype == torch.float16
    assert tensors["encoder.layer.0.intermediate.dense.weight_scale"].shape == (64, 1)
    assert tensors["encoder.layer.0.intermediate.dense.bias"].dtype == torch.float32
    assert tensors["embeddings.word_embeddings.weight"].dtype == torch.int8
    assert tensors["embeddings.word_embeddings.weight_scale"].dtype == torch.float16
    description = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert description["stage"] == "packed"
    assert description["codec"] == "2bit"
    assert description["source_sha256"]
    requirements = json.loads((packed / "config_sentence_transformers.json").read_text())["requirements"]
    readers = SpecifierSet(requirements["ternarize-cli"]["specifier"])
    assert __version__ in readers
    assert "0.1.0" not in readers  # it reads format version 1 alone


def test_companion_files_travel_and_code_and_pickles_stay(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    (source / "extra.bin").write_bytes(b"pickle")
    (source / ".hidden").write_text("x")
    (source / "onnx").mkdir()
    convert(source, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert {"tokenizer.json", "modules.json", "1_Pooling", "2_Normalize"} <= names
    assert not names & {"modeling_evil.py", "extra.bin", ".hidden", "onnx"}


def test_shards_stay_shards(tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import AutoModel

    source = tmp_path / "sharded"
    shutil.copytree(tiny_bert, source)
    (source / "model.safetensors").unlink()
    AutoModel.from_pretrained(tiny_bert).save_pretrained(source, max_shard_size="20KB")
    count = len(list(source.glob("model-*.safetensors")))
    assert count > 1
    convert(source, tmp_path / "latent")
    pack(tmp_path / "latent", tmp_path / "packed")
    assert len(list((tmp_path / "packed").glob("model-*.safetensors"))) == count
    convert(tiny_bert, tmp_path / "one")
    pack(tmp_path / "one", tmp_path / "one-packed")
    vectors = [load_encoder(tmp_path / n).encode(SENTENCES) for n in ("packed", "one-packed")]
    assert abs(vectors[0] - vectors[1]).max() == 0
    (source / sorted(p.name for p in source.glob("model-*"))[0]).unlink()
    with pytest.raises(CheckpointError, match="names the shard"):
        convert(source, tmp_path / "again")


def test_a_pretraining_head_is_dropped_and_a_prefix_understood(tmp_path: Path, tiny_bert: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig.from_pretrained(tiny_bert)
    source = tmp_path / "mlm"
    shutil.copytree(tiny_bert, source)
    BertForMaskedLM(config).save_pretrained(source)
    report = convert(source, tmp_path / "latent")
    assert any(name.startswith("cls.predictions") for name in report.plan.dropped)
    assert report.plan.excluded == {"pooler.dense": "not in the source"}
    pack(tmp_path / "latent", tmp_path / "packed")
    keys = load_file(tmp_path / "packed" / "model.safetensors")
    assert not any("pooler" in k or "cls." in k for k in keys)
    student = load_encoder(tmp_path / "latent").encode(SENTENCES)
    frozen = load_encoder(tmp_path / "packed", backend="reference").encode(SENTENCES)
    assert abs(student - frozen).max() < 1e-4


def test_inspect_reads_every_stage(tiny_bert: Path, packed: Path) -> None:
    full, latent, frozen = inspect(tiny_bert), inspect(packed.parent / "latent"), inspect(packed)
    assert [x.stage for x in (full, latent, frozen)] == ["full precision", "latent", "packed"]
    assert full.parameters == latent.parameters == frozen.parameters
    assert {m.kind for m in full.modules} == {"dense"}
    assert [m.zeros for m in latent.modules] == [m.zeros for m in frozen.modules]
    assert frozen.bytes < latent.bytes


def test_the_content_hash_ignores_the_model_card_and_sees_the_weights(packed: Path) -> None:
    before = digests.content_hash(packed)
    (packed / "README.md").write_text("# Card")
    assert digests.content_hash(packed) == before
    change_tensor(packed, "embeddings.LayerNorm.bias", lambda t: t + 1)
    assert digests.content_hash(packed) != before


# ---- strict reading


def test_an_unknown_format_version_is_refused(packed: Path) -> None:
    change_config(packed, format_version=99)
    with pytest.raises(FormatError, match="format_version is 99"):
        load_encoder(packed)


@pytest.mark.parametrize(
    ("key", "value"), [("stage", "frozen"), ("levels", "int3"), ("levels", []), ("codec", "7bit"), ("rule", "x")]
)
def test_an_unknown_description_is_refused(packed: Path, key: str, value: str) -> None:
    change_config(packed, **{key: value})
    with pytest.raises(FormatError, match=key):
        load_encoder(packed)


def test_an_invalid_code_is_named(packed: Path) -> None:
    key = "encoder.layer.1.output.dense.weight"
    change_tensor(packed, key, lambda t: t.index_fill(0, torch.tensor([3]), 255))
    with pytest.raises(FormatError, match=f"{key}: invalid code 3 at row 3"):
        load_encoder(packed)
    with pytest.raises(FormatError, match=f"{key}: invalid code 3 at row 3"):
        inspect(packed)


def test_a_codec_that_another_grid_has_is_refused(packed: Path) -> None:
    change_config(packed, levels="binary")
    with pytest.raises(FormatError, match="codec is '2bit'; a packed binary model has 1bit"):
        load_encoder(packed)
    change_config(packed.parent / "latent", codec="2bit")
    with pytest.raises(FormatError, match="codec is '2bit'"):
        load_encoder(packed.parent / "latent")


def test_a_byte_beyond_base3_is_named(packed: Path) -> None:
    pack(packed.parent / "latent", packed, codec="base3", force=True)
    key = "encoder.layer.1.output.dense.weight"
    change_tensor(packed, key, lambda t: t.index_fill(1, torch.tensor([2]), 243))
    with pytest.raises(FormatError, match=f"{key}: invalid byte 243 at row 0, input 10"):
        load_encoder(packed)


def test_a_4_bit_table_of_another_shape_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent", Scheme(table_bits=4))
    pack(tmp_path / "latent", tmp_path / "packed")
    key = "embeddings.word_embeddings.weight"
    change_tensor(tmp_path / "packed", key, lambda t: t[:, 1:].contiguous())
    with pytest.raises(FormatError, match=key):
        load_encoder(tmp_path / "packed")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_a_scale_that_is_no_scale_is_named(packed: Path, bad: float) -> None:
    key = "encoder.layer.0.output.dense.weight_scale"
    change_tensor(packed, key, lambda t: t.index_fill(0, torch.tensor([0]), bad))
    with pytest.raises(FormatError, match=key):
        load_encoder(packed)


def test_a_missing_tensor_is_named(packed: Path) -> None:
    tensors = load_file(packed / "model.safetensors")
    del tensors["encoder.layer.0.output.dense.weight_scale"]
    save_tensors(packed, tensors)
    with pytest.raises(FormatError, match=r"the tensor encoder\.layer\.0\.output\.dense\.weight_scale is missing"):
        load_encoder(packed)


def test_a_truncated_file_is_refused(packed: Path, tmp_path: Path) -> None:
    weights = packed / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="is not what was packed"):
        load_encoder(packed)
    seal(packed)
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        load_encoder(packed)


def test_garbage_instead_of_weights_is_refused(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    (source / "model.safetensors").write_bytes(b"\x00" * 40)
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        convert(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_source_with_a_value_that_is_not_finite_is_refused(tmp_path: Path, bad: float) -> None:
    source = save_tiny_bert(tmp_path / "source")
    change_tensor(source, "encoder.layer.0.output.dense.weight", lambda t: t.index_fill(0, torch.tensor([0]), bad))
    with pytest.raises(CheckpointError, match=r"output\.dense\.weight holds a value that is not finite"):
        convert(source, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source"]


def test_stages_out_of_order_say_what_to_do(tiny_bert: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not ternary yet"):
        pack(tiny_bert, tmp_path / "x")
    with pytest.raises(CheckpointError, match="packed already"):
        pack(packed, tmp_path / "x")
    with pytest.raises(CheckpointError, match="ternary model already"):
        convert(packed, tmp_path / "x")


def test_groups_that_do_not_divide_leave_nothing_behind(tiny_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="groups of 7"):
        convert(tiny_bert, tmp_path / "out", Scheme(granularity="group", group_size=7))
    assert list(tmp_path.iterdir()) == []


# ---- outputs


def test_an_existing_output_is_refused_and_replaced_with_force(tiny_bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(tiny_bert, out)
    (out / "note").write_text("x")
    with pytest.raises(OutputExistsError, match="exists already"):
        convert(tiny_bert, out)
    assert (out / "note").exists()
    convert(tiny_bert, out, force=True)
    assert not (out / "note").exists()
    assert checkpoint.stage(out) == "latent"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_full_disk_keeps_the_old_output(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    convert(tiny_bert, out)
    before = digests.content_hash(out)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.ShardData, "add", full)
    with pytest.raises(OutputError, match="disk is full"):
        convert(tiny_bert, out, Scheme(granularity="tensor"), force=True)
    assert digests.content_hash(out) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_two_writers_of_one_output_do_not_meet(tmp_path: Path) -> None:
    with files.atomic_folder(tmp_path / "out") as partial:
        (partial / "a").write_text("1")
        with (
            pytest.raises(OutputError, match="another process is writing"),
            files.atomic_folder(tmp_path / "out"),
        ):
            pass
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_the_working_folder_is_never_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputExistsError, match="working folder"):
        files.check_output(Path(), force=True)
    with pytest.raises(OutputError, match="there is no folder"):
        files.check_output(tmp_path / "no" / "out", force=False)


def test_force_replaces_neither_a_file_nor_a_folder_of_other_things(tiny_bert: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_text("x")
    for name, message in (("file", "is a file"), ("photos", "holds other files")):
        with pytest.raises(OutputExistsError, match=message):
            convert(tiny_bert, tmp_path / name, force=True)
    assert (tmp_path / "photos" / "cat.png").exists()


@pytest.mark.parametrize("where", ["source", "source/inside", "."])
def test_an_output_never_overlaps_its_input(tmp_path: Path, where: str) -> None:
    home = tmp_path / "home"
    source = save_tiny_bert(home / "source")
    before = digests.content_hash(source)
    with pytest.raises(InputError, match="overlap"):
        convert(source, home / where, force=True)
    assert digests.content_hash(source) == before


def test_other_things_beside_the_output_are_left_alone(tiny_bert: Path, tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    convert(tiny_bert, tmp_path / "out")
    assert checkpoint.stage(tmp_path / "out") == "latent"


def test_two_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    with files.atomic_file(tmp_path / "out") as partial:
        partial.write_text("first")
        with pytest.raises(OutputError, match="another process"), files.atomic_file(tmp_path / "out") as other:
            other.write_text("second")
    assert (tmp_path / "out").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


# ---- incomplete and foreign sources


@pytest.mark.parametrize("key", ["encoder.layer.0.output.LayerNorm.weight", "encoder.layer.1.output.dense.weight"])
def test_a_source_that_lacks_a_tensor_is_refused(tmp_path: Path, key: str) -> None:
    source = save_tiny_bert(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    del tensors[key]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"the tensor {key} is missing"):
        convert(source, tmp_path / "out")


def test_a_packed_model_that_lacks_a_norm_is_refused(packed: Path) -> None:
    tensors = load_file(packed / "model.safetensors")
    del tensors["embeddings.LayerNorm.bias"]
    save_tensors(packed, tensors)
    with pytest.raises(FormatError, match=r"the tensor embeddings\.LayerNorm\.bias is missing"):
        load_encoder(packed)
    with pytest.raises(FormatError, match=r"embeddings\.LayerNorm\.bias"):
        inspect(packed)


def test_shapes_and_kinds_that_do_not_fit_name_the_tensor(packed: Path, tmp_path: Path) -> None:
    key = "encoder.layer.0.output.dense.weight"
    change_tensor(packed, key, lambda t: t[:5])
    with pytest.raises(FormatError, match=rf"{key} is \[5, 16\], and config\.json makes it \[32, 16\]"):
        load_encoder(packed)
    change_tensor(packed, key, lambda t: torch.ones(32, 16))
    with pytest.raises(FormatError, match=f"{key} is F32, not U8"):
        load_encoder(packed)
    source = save_tiny_bert(tmp_path / "source")
    change_tensor(source, key, lambda t: t.to(torch.int8))
    with pytest.raises(CheckpointError, match=f"{key} is I8"):
        convert(source, tmp_path / "out")


def test_a_model_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    source = save_tiny_bert(tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(CheckpointError, match=r"quantised already \(gptq\)"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config_sentence_transformers.json", "[]"),
        ("modules.json", "garbage"),
        ("1_Pooling/config.json", "[1]"),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer.json", "{}"),
    ],
)
def test_damaged_companion_files_are_refused(packed: Path, name: str, text: str) -> None:
    (packed / name).write_text(text)
    with pytest.raises(CheckpointError):
        load_encoder(packed)


@pytest.mark.parametrize(
    ("key", "value"),
    [("modules_to_not_convert", "pooler"), ("modules_to_not_convert", 5), ("seed", "x"), ("beta", "x")],
)
def test_a_description_of_the_wrong_type_is_refused(packed: Path, key: str, value: object) -> None:
    change_config(packed, **{key: value})
    with pytest.raises(FormatError, match=key):
        load_encoder(packed)


@pytest.mark.parametrize("beta", [2.0, 1.5])
def test_the_beta_of_an_artifact_whose_rule_has_none_is_passed_over(packed: Path, beta: float) -> None:
    change_config(packed, beta=beta)
    described = Artifact.from_dict(json.loads((packed / "config.json").read_text())["quantization_config"])
    assert (described.scheme, described.to_dict()["beta"]) == (Scheme(), 2.0)


@pytest.mark.parametrize("command", ["pack", "inspect"])
def test_a_group_size_that_does_not_fit_the_weights_is_refused(tiny_bert: Path, tmp_path: Path, command: str) -> None:
    convert(tiny_bert, tmp_path / "latent", Scheme(granularity="group", group_size=8))
    change_config(tmp_path / "latent", group_size=5)
    with pytest.raises(FormatError, match=r"attention\.self\.query: groups of 5 do not divide 32 inputs") as caught:
        pack(tmp_path / "latent", tmp_path / "out") if command == "pack" else inspect(tmp_path / "latent")
    assert "config.json" in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_a_pickled_checkpoint_is_not_packed_and_the_hint_is_one_that_helps(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    torch.save(load_file(tmp_path / "latent" / "model.safetensors"), tmp_path / "latent" / "pytorch_model.bin")
    (tmp_path / "latent" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle") as caught:
        pack(tmp_path / "latent", tmp_path / "out")
    assert "--allow-pickle" not in str(caught.value.hint)
    assert "convert or distill again" in str(caught.value.hint)


def test_a_pickled_source_is_not_packed_and_told_to_be_converted(tiny_bert: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_bert, tmp_path / "source")
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is not ternary yet") as caught:
        pack(source, tmp_path / "out")
    assert caught.value.hint == f"ternarize convert {source}"


@pytest.mark.parametrize(("device", "threads"), [("bogus", None), ("meta", None), (None, 10**6)])
def test_a_device_or_thread_count_that_makes_no_sense_is_refused(
    packed: Path, device: str | None, threads: int | None
) -> None:
    with pytest.raises(InputError):
        load_encoder(packed, device=device, threads=threads)
