"""The formats dense and compressed-tensors: exact values, vectors in transformers, families, heads, refusals."""

import json
import os
import shutil
import stat
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessor

from support.families import IMAGE_FAMILIES, TEXT_FAMILIES, Family, save_family, save_text, stages
from support.heads import save_headed
from support.models import save_gpt2, save_tiny_clip
from support.values import multiplied_out, tensors
from ternarize_cli import load
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.errors import FormatError, GateMissedError, InputError, OutputExistsError, UnavailableError
from ternarize_cli.export import nearness
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.format.scheme import Scheme

UNCHECKED = ExportOptions(check=False)
TEXTS = ["the cat", "dog house tree " * 15, "red green small cat in a tree by the river"]
"""A process that must not import ternarize."""
ALONE = """
import sys
sys.modules["ternarize_cli"] = None  # an import raises an error
import torch
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1]).eval()
ids = torch.tensor([[2, 7, 9, 11, 3]])
torch.save(model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state, sys.argv[2])
"""

needs_library = pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="compressed-tensors is missing")


def test_fp32_holds_the_packed_models_values(packed: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "made", to="dense", options=ExportOptions(dtype="fp32", check=False))
    found, expected = tensors(tmp_path / "made"), multiplied_out(packed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["dtype"] == "float32"


@pytest.mark.parametrize(("dtype", "kind", "linears"), [("fp16", torch.float16, 0.0), ("bf16", torch.bfloat16, 0.002)])
def test_what_rounding_costs_is_said(
    packed: Path, tmp_path: Path, dtype: str, kind: torch.dtype, linears: float
) -> None:
    made = export(packed, tmp_path / "made", to="dense", options=ExportOptions(dtype=dtype, check=False))
    found, expected = tensors(tmp_path / "made"), multiplied_out(packed)
    assert {tensor.dtype for tensor in found.values() if tensor.is_floating_point()} == {kind}
    costs = [float((found[n].float() - v).norm() / v.norm()) for n, v in expected.items() if n.endswith("dense.weight")]
    assert made.facts["rounding"]["linears"] == pytest.approx(max(costs), rel=0.2, abs=1e-9)
    assert made.facts["rounding"]["linears"] == pytest.approx(linears, abs=6e-4)
    assert 1e-5 < made.facts["rounding"]["others"] < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("form", ["dense", pytest.param("compressed-tensors", marks=needs_library)])
def test_transformers_opens_it_without_ternarize(packed: Path, tmp_path: Path, form: str) -> None:
    export(packed, tmp_path / "made", to=form, options=ExportOptions(check=False))
    env = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    command = [sys.executable, "-c", ALONE, tmp_path / "made", tmp_path / "hidden.pt"]
    subprocess.run([str(word) for word in command], check=True, capture_output=True, timeout=120, env=env)
    hidden = torch.load(tmp_path / "hidden.pt").detach().float()
    model: Any = load(packed, backend="reference", device="cpu")
    nearness.leave_activations(model, 16)
    ids = torch.tensor([[2, 7, 9, 11, 3]])
    with torch.inference_mode():
        expected = model[0].auto_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    assert float((hidden - expected).norm() / expected.norm()) < 0.005


@needs_library
@pytest.mark.parametrize("levels", ["ternary", "binary", "int2", "int4"])
@pytest.mark.parametrize("granularity", [("row", None), ("tensor", None), ("group", 16)])
def test_the_library_unpacks_the_packed_models_values(
    tiny_bert: Path, tmp_path: Path, levels: str, granularity: tuple[str, int | None]
) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = Scheme(levels=levels, granularity=granularity[0], group_size=granularity[1])
    packed = stages(tiny_bert, tmp_path, scheme)[2]
    made = export(packed, tmp_path / "made", to="compressed-tensors", options=UNCHECKED)
    group = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]["config_groups"]
    known = QuantizationScheme.model_validate(group["group_0"])
    stored, expected = tensors(tmp_path / "made"), multiplied_out(packed)
    names = [name.removesuffix("_packed") for name in stored if name.endswith("weight_packed")]
    assert len(names) == made.facts["linears"] == 13
    for name in names:
        own = {f"weight{k.removeprefix(name)}": v for k, v in stored.items() if k.startswith(f"{name}_")}
        weight = PackedQuantizationCompressor.decompress(own, known)["weight"]
        assert torch.equal(weight.float(), expected[name])


@needs_library
@pytest.mark.parametrize("family", [*TEXT_FAMILIES, *IMAGE_FAMILIES], ids=lambda family: family[0])
@pytest.mark.slow
def test_families(family: Family, tmp_path: Path) -> None:
    from ternarize_cli.export.in_transformers import _open_export

    texts = family in TEXT_FAMILIES
    source = (save_text if texts else save_family)(family, tmp_path / "source")
    if family[0].startswith("Dinov2"):
        size = json.loads((source / "config.json").read_text())["image_size"]
        ViTImageProcessor(size={"height": size, "width": size}).save_pretrained(source)
    packed = stages(source, tmp_path)[2]
    expected = multiplied_out_model(packed)
    for form in ("dense", "compressed-tensors"):
        made = tmp_path / form
        if form == "compressed-tensors" and family[0] == "GPT2Model":
            with pytest.raises(InputError, match="transposed"):
                export(packed, made, to=form, options=UNCHECKED)
            continue
        found = export(packed, made, to=form, options=UNCHECKED).facts["check"]
        assert found == {"unchecked": "--no-check"}
        if form == "compressed-tensors" and family[0].startswith("Dinov2"):
            # transformers 5.24 opens no such file: its quantizer does not copy the rule for mlp.weights_in
            with pytest.raises(UnavailableError, match=r"transformers [\d.]+ does not open a Dinov2") as raised:
                export(packed, tmp_path / "refused", to=form)
            assert raised.value.hint == "--to dense"
            assert not (tmp_path / "refused").exists()
            continue
        opened: Any = _open_export(packed, made).model
        held = opened.state_dict()
        shared = [name for name, value in expected.items() if value.is_floating_point() and name in held]
        assert shared
        for name in shared:
            assert float((held[name] - expected[name]).norm()) <= 0.001 * float(expected[name].norm()) + 1e-6


def multiplied_out_model(packed: Path) -> dict[str, torch.Tensor]:
    from ternarize_cli.export.in_transformers import _open_packed

    return dict(dequantize(_open_packed(packed)[0]).state_dict())


@needs_library
@pytest.mark.parametrize("form", ["dense", "compressed-tensors"])
def test_a_reranker_keeps_its_scores(tmp_path: Path, form: str) -> None:
    source = save_headed(tmp_path / "source")
    packed = stages(source, tmp_path)[2]
    found = export(packed, tmp_path / "made", to=form).facts["check"]
    assert found["inputs"] == "scores, as one vector"
    assert found["mean_cosine"] > 0.999
    assert "classifier.weight" in tensors(tmp_path / "made")


@needs_library
@pytest.mark.parametrize("form", ["dense", "compressed-tensors"])
def test_a_model_of_texts_and_images_is_compared_by_both(tmp_path: Path, form: str) -> None:
    packed = stages(save_tiny_clip(tmp_path / "source"), tmp_path)[2]
    found = export(packed, tmp_path / "made", to=form).facts["check"]
    assert found["inputs"] == "texts and images"
    assert found["lowest_cosine"] > 0.999


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_modules_dense_are_multiplied_out(with_dense: Path, tmp_path: Path, dtype: str) -> None:
    made = export(with_dense, tmp_path / "made", to="dense", options=ExportOptions(dtype=dtype))
    assert made.facts["check"]["mean_cosine"] > 0.9999
    opened, packed = load(tmp_path / "made"), load(with_dense, backend="reference")
    nearness.leave_activations(packed, 16)
    cosines = (opened.encode(TEXTS) * packed.encode(TEXTS)).sum(1)
    assert np.all(cosines > 0.99 * np.linalg.norm(packed.encode(TEXTS), axis=1) ** 2)


def test_files_can_be_read_by_all_who_may_read_config(packed: Path, tmp_path: Path) -> None:
    export(packed, tmp_path / "made", to="dense", options=UNCHECKED)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir() if path.is_file()}
    assert len(modes) == 1


@pytest.mark.parametrize("form", ["dense", "compressed-tensors"])
def test_equal_models_give_equal_bytes(packed: Path, tmp_path: Path, form: str) -> None:
    for name in "ab":
        export(packed, tmp_path / name, to=form, options=UNCHECKED)
    for path in (tmp_path / "a").iterdir():
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_rows_without_a_scale_stay_zero(tiny_bert: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source = tmp_path / "source"
    shutil.copytree(tiny_bert, source)
    stored = load_file(source / "model.safetensors")
    name = next(key for key in stored if key.endswith("layer.0.output.dense.weight"))
    stored[name][3] = 0
    save_file(stored, source / "model.safetensors", {"format": "pt"})
    packed = stages(source, tmp_path)[2]
    export(packed, tmp_path / "made", to="compressed-tensors", options=UNCHECKED)
    found = tensors(tmp_path / "made")
    assert float(found[f"{name}_scale"][3]) == 1
    if find_spec("compressed_tensors"):
        assert export(packed, tmp_path / "again", to="compressed-tensors").facts["check"]["mean_cosine"] > 0.999


def test_gpt2_is_refused_with_a_sentence(tmp_path: Path) -> None:
    packed = stages(save_gpt2(tmp_path / "source"), tmp_path)[2]
    with pytest.raises(InputError, match="stored transposed"):
        export(packed, tmp_path / "made", to="compressed-tensors", options=UNCHECKED)
    assert not (tmp_path / "made").exists()


def test_a_damaged_model_and_an_existing_output_are_refused(packed: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(packed, damaged)
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    with pytest.raises(FormatError):
        export(damaged, tmp_path / "made", to="dense")
    assert not (tmp_path / "made").exists()
    (tmp_path / "made").mkdir()
    with pytest.raises(OutputExistsError):
        export(packed, tmp_path / "made", to="dense")
    with pytest.raises(InputError, match="--dtype fp8"):
        export(packed, tmp_path / "other", to="dense", options=ExportOptions(dtype="fp8"))


def test_the_gate_ends_with_an_error_and_leaves_the_export(packed: Path, tmp_path: Path) -> None:
    made = export(packed, tmp_path / "made", to="dense", options=ExportOptions(dtype="bf16", min_cosine=1.0))
    with pytest.raises(GateMissedError):
        made.check_gates()
    assert (tmp_path / "made" / "model.safetensors").is_file()
