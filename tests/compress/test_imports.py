"""Models of others become packed models: bitnet, compressed-tensors and torchao, values unchanged; what is refused."""

import json
import shutil
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.families import TEXT_FAMILIES, save_text, stages
from ternarize_cli import load
from ternarize_cli.compress.imports.bitnet import unpack_rows
from ternarize_cli.compress.options import ImportOptions
from ternarize_cli.compress.session import convert, pack
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.layers import PackedLinear
from ternarize_cli.storage.weights import open_shards

LINEAR = "encoder.layer.0.output.dense"
Tensors = dict[str, torch.Tensor]


def linears(stored: Tensors) -> list[str]:
    ends = tuple(f"{leaf}.weight" for leaf in ("dense", "query", "key", "value"))
    return [key.removesuffix(".weight") for key in stored if key.endswith(ends)]


def rewritten(source: Path, folder: Path, change: Callable[[Tensors, dict[str, Any]], object]) -> Path:
    """Copies a model of one file, whose tensors and config `change` has changed in place."""
    shutil.copytree(source, folder)
    stored, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    change(stored, config)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def values(packed: Path) -> Tensors:
    return dict(dequantize(load(packed, backend="reference", device="cpu")[0].auto_model).state_dict())


def codes(packed: Path) -> Tensors:
    model: Any = load(packed, backend="reference", device="cpu")[0].auto_model
    found = {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    return {
        f"{name}.{leaf}": getattr(module, leaf) for name, module in found.items() for leaf in ("weight", "weight_scale")
    }


def packed_rows(codes: torch.Tensor) -> torch.Tensor:
    """Packs codes by transformers' own function."""
    with warnings.catch_warnings(action="ignore"):  # of torch about itself
        from transformers.integrations.bitnet import pack_weights
    packed: torch.Tensor = pack_weights(codes)
    return packed


def bitnet(folder: Path, source: Path, scale: Callable[[float], torch.Tensor], kind: str = "autobitlinear") -> Path:
    """A checkpoint of the method "bitnet" that transformers' own functions have packed."""

    def change(stored: Tensors, config: dict[str, Any]) -> None:
        config["quantization_config"] = {"quant_method": "bitnet", "linear_class": kind, "quantization_mode": "offline"}
        for name in linears(stored):
            weight = stored[f"{name}.weight"]
            mean = float(weight.abs().mean())
            stored[f"{name}.weight"] = packed_rows((weight / mean).round().clamp(-1, 1).to(torch.int8))
            stored[f"{name}.weight_scale"] = scale(mean).reshape(1)

    return rewritten(source, folder, change)


def test_a_packed_bitnet_checkpoint_keeps_its_values(tiny_bert: Path, tmp_path: Path) -> None:
    source = bitnet(tmp_path / "bitnet", tiny_bert, lambda mean: torch.tensor(mean, dtype=torch.bfloat16))
    report = pack(source, tmp_path / "packed")
    stored, found = load_file(source / "model.safetensors"), values(tmp_path / "packed")
    for name in linears(stored):
        rows = found[f"{name}.weight"].shape[0]
        expected = unpack_rows(stored[f"{name}.weight"], rows).float() * stored[f"{name}.weight_scale"].float()
        assert torch.equal(found[f"{name}.weight"], expected)
    assert torch.equal(found["embeddings.word_embeddings.weight"], stored["embeddings.word_embeddings.weight"])
    assert report.artifact.scheme == Scheme("absmean", 1.0, "tensor", activation_bits=8, table_bits=32)
    assert report.bytes_source == (source / "model.safetensors").stat().st_size


def test_it_computes_what_transformers_computes(tiny_bert: Path, tmp_path: Path) -> None:
    import transformers

    source = bitnet(tmp_path / "bitnet", tiny_bert, lambda mean: torch.tensor(mean, dtype=torch.bfloat16))
    pack(source, tmp_path / "packed")
    theirs = transformers.AutoModel.from_pretrained(source, dtype=torch.float32).eval()
    ours: Any = load(tmp_path / "packed", backend="reference", device="cpu")[0].auto_model
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    with torch.inference_mode():
        a, b = (m(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state for m in (theirs, ours))
    assert float((a - b).norm() / a.norm()) < 0.02


@pytest.mark.parametrize("rows", [1, 3, 4, 7, 64])
def test_rows_are_unpacked_as_transformers_packs_them(rows: int) -> None:
    torch.manual_seed(rows)
    expected = torch.randint(-1, 2, (rows, 5), dtype=torch.int8)
    assert torch.equal(unpack_rows(packed_rows(expected.clone()), rows), expected)


def test_bitlinear_divides_by_its_scale(tiny_bert: Path, tmp_path: Path) -> None:
    source = bitnet(tmp_path / "exact", tiny_bert, lambda mean: torch.tensor(8.0), "bitlinear")
    pack(source, tmp_path / "packed")
    assert set(values(tmp_path / "packed")[f"{LINEAR}.weight"].unique().tolist()) == {-0.125, 0.0, 0.125}
    source = bitnet(tmp_path / "odd", tiny_bert, lambda mean: torch.tensor(7.0), "bitlinear")
    with pytest.raises(CheckpointError, match="no number of float16"):
        pack(source, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    pack(source, tmp_path / "other", imported=ImportOptions(round=True))
    assert values(tmp_path / "other")[f"{LINEAR}.weight"].max() == pytest.approx(1 / 7, rel=2**-10)


def test_online_codes_are_those_of_transformers(tiny_bert: Path, tmp_path: Path) -> None:
    def change(stored: Tensors, config: dict[str, Any]) -> None:
        config["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "online",
            "modules_to_not_convert": ["pooler"],
        }
        for name in linears(stored):
            stored[f"{name}.weight"] = stored[f"{name}.weight"].bfloat16()

    source = rewritten(tiny_bert, tmp_path / "online", change)
    report = pack(source, tmp_path / "packed")
    stored, found = load_file(source / "model.safetensors"), values(tmp_path / "packed")
    assert report.artifact.modules_to_not_convert == ("pooler.dense",)
    weight = stored[f"{LINEAR}.weight"].float()
    scale = 1.0 / weight.abs().mean().clamp_(min=1e-5)  # WeightQuant of transformers' integrations/bitnet.py
    expected = ((weight * scale).round().clamp(-1, 1) / scale).bfloat16()
    assert torch.equal(found[f"{LINEAR}.weight"], expected.float())


@pytest.mark.parametrize("levels", ["ternary", "binary", "int2", "int4"])
@pytest.mark.parametrize("granularity", [("row", None), ("group", 16)])
def test_compressed_tensors_and_back_gives_the_same_codes(
    tiny_bert: Path, tmp_path: Path, levels: str, granularity: tuple[str, int | None]
) -> None:
    scheme = Scheme(levels=levels, granularity=granularity[0], group_size=granularity[1], table_bits=16)
    packed = stages(tiny_bert, tmp_path, scheme)[2]
    export(packed, tmp_path / "made", to="compressed-tensors", options=ExportOptions(check=False))
    report = pack(tmp_path / "made", tmp_path / "back", imported=ImportOptions(activations=8))
    a, b = codes(packed), codes(tmp_path / "back")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert report.artifact.scheme == scheme


def test_a_module_dense_comes_along(tiny_bert: Path, tmp_path: Path) -> None:
    from support.models import add_dense

    shutil.copytree(tiny_bert, tmp_path / "source")
    add_dense(tmp_path / "source")
    packed = stages(tmp_path / "source", tmp_path)[2]
    export(packed, tmp_path / "made", to="compressed-tensors", options=ExportOptions(check=False))
    pack(tmp_path / "made", tmp_path / "back")
    assert load(tmp_path / "back").encode("the cat").shape == load(packed).encode("the cat").shape


@pytest.mark.parametrize("family", [f for f in TEXT_FAMILIES if f[0] != "GPT2Model"], ids=lambda family: family[0])
@pytest.mark.slow
def test_families_come_back_with_the_same_codes(family: Any, tmp_path: Path) -> None:
    packed = stages(save_text(family, tmp_path / "source"), tmp_path)[2]
    export(packed, tmp_path / "made", to="compressed-tensors", options=ExportOptions(check=False))
    pack(tmp_path / "made", tmp_path / "back")
    a, b = codes(packed), codes(tmp_path / "back")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="compressed-tensors is missing")
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize(("strategy", "size"), [("channel", None), ("group", 16), ("tensor", None)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_what_the_library_packs_keeps_its_values(
    tiny_bert: Path, tmp_path: Path, bits: int, strategy: str, size: int | None, symmetric: bool
) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    weights = {"num_bits": bits, "strategy": strategy, "group_size": size, "symmetric": symmetric, "type": "int"}
    described = QuantizationScheme.model_validate(
        {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    )
    expected: Tensors = {}

    def change(stored: Tensors, config: dict[str, Any]) -> None:
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": described.model_dump()},
        }
        for name in linears(stored):
            weight = stored.pop(f"{name}.weight")
            count = 1 if size is None else weight.shape[1] // size
            shape = (1,) if strategy == "tensor" else (weight.shape[0], count)
            scale = torch.rand(shape).add(0.1).bfloat16().float()
            zero = torch.randint(-1, 1, shape, dtype=torch.int8)
            own = {"weight": weight, "weight_scale": scale} | ({} if symmetric else {"weight_zero_point": zero})
            made = PackedQuantizationCompressor.compress(own, described)
            expected[name] = PackedQuantizationCompressor.decompress(made, described)["weight"]
            stored |= {f"{name}.{leaf}": value for leaf, value in made.items()}

    torch.manual_seed(0)
    source = rewritten(tiny_bert, tmp_path / "source", change)
    report = pack(source, tmp_path / "packed")
    found = values(tmp_path / "packed")
    assert all(torch.equal(found[f"{name}.weight"], value) for name, value in expected.items())
    assert report.artifact.scheme.activation_bits == 16


def test_codes_beyond_four_bits_are_refused(compressed: Path, tmp_path: Path) -> None:
    def change(stored: Tensors, config: dict[str, Any]) -> None:
        group(config)["weights"] |= {"symmetric": False}
        for key in [key for key in stored if key.endswith("weight_packed")]:
            rows = stored[key].shape[0]
            stored[f"{key.removesuffix('_packed')}_zero_point"] = torch.full(
                (-(-rows // 8), 1), 0x11111111, dtype=torch.int32
            )
            columns = int(stored[f"{key.removesuffix('_packed')}_shape"][1])
            stored[key] = torch.full((rows, -(-columns // 8)), 0x7F7F7F7F, dtype=torch.int32)
        group(config)["weights"]["num_bits"] = 4

    with pytest.raises(CheckpointError, match="codes go from 6 to 14"):
        pack(rewritten(compressed, tmp_path / "source", change), tmp_path / "packed")


def test_zero_points_of_a_symmetric_model_are_refused(compressed: Path, tmp_path: Path) -> None:
    def change(stored: Tensors, config: dict[str, Any]) -> None:
        key = next(key for key in stored if key.endswith("weight_packed"))
        stored[f"{key.removesuffix('_packed')}_zero_point"] = torch.ones(stored[key].shape[0], 1, dtype=torch.int8)

    with pytest.raises(CheckpointError, match="has zero points, and its config says `symmetric`"):
        pack(rewritten(compressed, tmp_path / "source", change), tmp_path / "packed")


def torchao(folder: Path, source: Path, **changes: Any) -> Path:
    """The files that torchao 0.18 and transformers write for IntxWeightOnlyConfig(torch.int2, PerGroup(16))."""
    shutil.copytree(source, folder)
    stored, metadata = load_file(folder / "model.safetensors"), {"format": "pt"}
    data = {
        "target_dtype": {"_type": "torch.dtype", "_data": "int2"},
        "block_size": [1, 16],
        "dtype": {"_type": "torch.dtype", "_data": "float32"},
        "activation_quantization": None,
    }
    kind = {"_type": "IntxUnpackedToInt8Tensor", "_data": data | changes}
    torch.manual_seed(0)
    for name in list(stored):
        metadata[name] = json.dumps({"_type": "Tensor"})
        if name.removesuffix(".weight") in linears({name: stored[name]}):
            rows, columns = stored.pop(name).shape
            metadata[name] = json.dumps(kind | {"_tensor_data_names": ["qdata", "scale", "zero_point"]})
            module = name.removesuffix(".weight")
            stored |= {
                f"{module}._weight_qdata": torch.randint(-2, 2, (rows, columns), dtype=torch.int8),
                f"{module}._weight_scale": torch.rand(rows, columns // 16).add(0.1).half().float(),
                f"{module}._weight_zero_point": torch.randint(-1, 2, (rows, columns // 16), dtype=torch.int8),
            }
    metadata["tensor_names"] = json.dumps(list(metadata))
    save_file(stored, folder / "model.safetensors", metadata)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao", "quant_type": {"default": {}}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_torchao_keeps_its_values(tiny_bert: Path, tmp_path: Path) -> None:
    source = torchao(tmp_path / "torchao", tiny_bert)
    report = pack(source, tmp_path / "packed")
    stored, found = load_file(source / "model.safetensors"), values(tmp_path / "packed")
    part = {leaf: stored[f"{LINEAR}._weight_{leaf}"] for leaf in ("qdata", "scale", "zero_point")}
    wide = {leaf: part[leaf].repeat_interleave(16, dim=1).float() for leaf in ("scale", "zero_point")}
    assert torch.equal(found[f"{LINEAR}.weight"], (part["qdata"] - wide["zero_point"]) * wide["scale"])
    assert report.artifact.scheme == Scheme(
        granularity="group", group_size=16, activation_bits=16, table_bits=32, levels="int4"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_size": [4, 16]}, "block_size"),
        ({"block_size": [1, 0]}, "block_size"),
        ({"block_size": [1, 17]}, "groups of 17"),
        ({"block_size": [1, True]}, "block_size"),
        ({"activation_quantization": "fp8"}, "activation_quantization"),
    ],
)
def test_torchao_descriptions_that_are_refused(
    tiny_bert: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        pack(torchao(tmp_path / "torchao", tiny_bert, **changes), tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def group(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = config["quantization_config"]["config_groups"]["group_0"]
    return found


HOSTILE: dict[str, tuple[Callable[[Tensors, dict[str, Any]], object], str]] = {
    "a scale that is not finite": (lambda t, c: t[f"{LINEAR}.weight_scale"].fill_(float("nan")), "a scale is nan"),
    "a negative scale": (lambda t, c: t[f"{LINEAR}.weight_scale"].neg_(), "a scale is -"),
    "too few words": (
        lambda t, c: t.update({f"{LINEAR}.weight_packed": t[f"{LINEAR}.weight_packed"][:, :-1].clone()}),
        "weight_packed is",
    ),
    "words of another dtype": (
        lambda t, c: t.update({f"{LINEAR}.weight_packed": t[f"{LINEAR}.weight_packed"].float()}),
        "weight_packed is F32",
    ),
    "a shape of three": (lambda t, c: t.update({f"{LINEAR}.weight_shape": torch.tensor([1, 2, 3])}), "weight_shape is"),
    "a huge shape": (lambda t, c: t[f"{LINEAR}.weight_shape"].fill_(1 << 40), "no shape of a matrix"),
    "another model's shape": (
        lambda t, c: t.update(
            {
                f"{LINEAR}.weight_shape": torch.tensor([16, 64]),
                f"{LINEAR}.weight_packed": t[f"{LINEAR}.weight_packed"][:16].clone(),
                f"{LINEAR}.weight_scale": t[f"{LINEAR}.weight_scale"][:16].clone(),
            }
        ),
        "config.json makes it",
    ),
    "no scale": (lambda t, c: t.pop(f"{LINEAR}.weight_scale"), "weight_scale is missing"),
    "inputs in another order": (lambda t, c: t.update({f"{LINEAR}.weight_g_idx": torch.zeros(64)}), "weight_g_idx"),
    "8 bits": (lambda t, c: group(c)["weights"].update(num_bits=8), "8 bits"),
    "true bits": (lambda t, c: group(c)["weights"].update(num_bits=True), "num_bits True"),
    "floats": (lambda t, c: group(c)["weights"].update(type="float"), "type 'float'"),
    "blocks": (lambda t, c: group(c)["weights"].update(strategy="block"), "strategy 'block'"),
    "static activations": (
        lambda t, c: group(c).update(
            input_activations={"num_bits": 8, "type": "int", "symmetric": True, "dynamic": False}
        ),
        "dynamic False",
    ),
    "weights that are a list": (lambda t, c: group(c).update(weights=[]), "weights is"),
    "no groups": (lambda t, c: c["quantization_config"].update(config_groups=[]), "config_groups is"),
    "another format": (lambda t, c: c["quantization_config"].update(format="marlin-24"), "format 'marlin-24'"),
    "no codes": (lambda t, c: [t.pop(k) for k in list(t) if k.endswith("weight_packed")], "no weights in codes"),
}


@pytest.fixture(scope="module")
def compressed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compressed")
    export(stages(tiny_bert, folder)[2], folder / "made", to="compressed-tensors", options=ExportOptions(check=False))
    return folder / "made"


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_stranger_may_write_is_refused(compressed: Path, tmp_path: Path, name: str) -> None:
    change, message = HOSTILE[name]
    source = rewritten(compressed, tmp_path / "source", change)
    with pytest.raises(CheckpointError, match=message):
        pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_rms_norm": True}, "use_rms_norm True"),
        ({"linear_class": "other"}, "linear_class 'other'"),
        ({"quantization_mode": 3}, "quantization_mode 3"),
        ({"modules_to_not_convert": "pooler"}, "must be a list"),
        ({"modules_to_not_convert": ["(a+)+$"]}, "pattern"),
    ],
)
def test_bitnet_settings_that_are_refused(
    tiny_bert: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    source = bitnet(tmp_path / "bitnet", tiny_bert, lambda mean: torch.tensor(0.5))
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] |= settings
    (source / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        pack(source, tmp_path / "packed")


def test_a_digit_3_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    source = bitnet(tmp_path / "bitnet", tiny_bert, lambda mean: torch.tensor(0.5))
    bad = rewritten(source, tmp_path / "bad", lambda t, c: t[f"{LINEAR}.weight"][0].fill_(255))
    with pytest.raises(CheckpointError, match="none of -1, 0, 1"):
        pack(bad, tmp_path / "packed")


def test_options_of_imports_mean_nothing_for_our_checkpoints(tiny_bert: Path, tmp_path: Path) -> None:
    convert(tiny_bert, tmp_path / "latent")
    with pytest.raises(InputError, match="--round"):
        pack(tmp_path / "latent", tmp_path / "packed", imported=ImportOptions(round=True))


def test_convert_says_that_pack_takes_it(compressed: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        convert(compressed, tmp_path / "latent")
    assert "ternarize pack" in str(error.value.hint)


def test_other_methods_are_refused_as_before(compressed: Path, tmp_path: Path) -> None:
    source = rewritten(
        compressed, tmp_path / "source", lambda t, c: c["quantization_config"].update(quant_method="gptq")
    )
    with pytest.raises(CheckpointError, match="not ternary yet"):
        pack(source, tmp_path / "packed")


def test_nothing_is_left_of_the_temporary_checkpoint(
    compressed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pack(compressed, tmp_path / "packed")
    with open_shards(tmp_path / "packed") as shards:
        assert shards
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
