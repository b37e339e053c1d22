"""Exports of a model that has int4 linears among ternary ones: the packed model's values, or a refusal in words."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from support.families import stages
from support.values import multiplied_out, tensors
from ternarize_cli import load
from ternarize_cli.errors import InputError
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.layers import PackedLinear

needs_library = pytest.mark.skipif(find_spec("compressed_tensors") is None, reason="compressed-tensors is missing")


@pytest.fixture(scope="module")
def mixed(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed tiny BERT of which some linears are int4; tests must not write into it."""
    packed = stages(tiny_bert, tmp_path_factory.mktemp("mixed"), bits=3.2)[2]
    model: Any = load(packed, backend="reference", device="cpu")[0].auto_model
    assert len({m.scheme.levels for m in model.modules() if isinstance(m, PackedLinear)}) == 2
    return packed


def test_dense_holds_the_values(mixed: Path, tmp_path: Path) -> None:
    export(mixed, tmp_path / "made", to="dense", options=ExportOptions(dtype="fp32", check=False))
    found, expected = tensors(tmp_path / "made"), multiplied_out(mixed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "An encoder with ternary and int4 weights" in (tmp_path / "made" / "README.md").read_text()


@needs_library
def test_compressed_tensors_holds_all_linears_in_4_bits(mixed: Path, tmp_path: Path) -> None:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationScheme

    made = export(mixed, tmp_path / "made", to="compressed-tensors", options=ExportOptions(check=False))
    assert made.facts["bits"] == 4
    group = json.loads((tmp_path / "made" / "config.json").read_text())["quantization_config"]["config_groups"]
    known = QuantizationScheme.model_validate(group["group_0"])
    stored, expected = tensors(tmp_path / "made"), multiplied_out(mixed)
    for name in (name.removesuffix("_packed") for name in stored if name.endswith("weight_packed")):
        own = {f"weight{k.removeprefix(name)}": v for k, v in stored.items() if k.startswith(f"{name}_")}
        weight = PackedQuantizationCompressor.decompress(own, known)["weight"]
        assert torch.equal(weight.float(), expected[name])


@pytest.mark.slow
def test_onnx_needs_4_bits(mixed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and 2 bits hold those from -2 to 1") as caught:
        export(mixed, tmp_path / "made", to="onnx", options=ExportOptions(check=False))
    assert caught.value.hint == "--bits 4"
    assert not (tmp_path / "made").exists()
    made = export(mixed, tmp_path / "made", to="onnx", options=ExportOptions(bits=4))
    assert made.facts["check"]["mean_cosine"] > 0.98
