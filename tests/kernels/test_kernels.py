"""Backends: each against `reference`, and honest about what it can't do."""

import pytest
import torch
from torch import nn

from support.random_layers import random_layer
from ternarize_cli import kernels
from ternarize_cli.arithmetic import packing
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.format.scheme import CODECS, LEVELS, Scheme
from ternarize_cli.kernels.reference import Reference
from ternarize_cli.kernels.scaled_mm import ScaledMm
from ternarize_cli.layers import PackedLinear

_ON_CPU = [b for b in kernels.describe() if b.device in ("cpu", "any") and b.available]
CPU_BACKENDS = [b.name for b in _ON_CPU]
GRIDS = [(b.name, levels) for b in _ON_CPU for levels in b.levels]
SHAPES = [(1, 384, 384), (7, 33, 5), (16, 1, 1), (65, 127, 130), (0, 8, 4)]


@pytest.mark.parametrize(("name", "levels"), GRIDS)
@pytest.mark.parametrize("granularity", ["row", "tensor"])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_every_backend_equals_reference(
    name: str, granularity: str, levels: str, rows: int, inputs: int, outputs: int
) -> None:
    layer = random_layer(outputs, inputs, Scheme(granularity=granularity, levels=levels))
    x = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(1))
    layer.backend = "reference"
    expected = layer(x)
    layer.backend = name
    got = layer(x)
    assert layer.backend == name
    assert torch.equal(got, expected)


@pytest.mark.parametrize(("name", "levels"), GRIDS)
def test_extreme_activations_do_not_saturate(name: str, levels: str) -> None:
    largest = LEVELS[levels][-1]
    layer = random_layer(64, 4096, Scheme(levels=levels), bias=False)
    layer.weight = packing.pack(layer.codec, torch.full((64, 4096), largest))
    layer.weight_scale.fill_(1)
    layer.backend = name
    y = layer(torch.cat([torch.full((1, 4096), 5.0), torch.full((1, 4096), -5.0), torch.zeros(1, 4096)]))
    torch.testing.assert_close(y[0], torch.full((64,), 5.0 * 4096 * largest))
    torch.testing.assert_close(y[1], torch.full((64,), -5.0 * 4096 * largest))
    assert torch.equal(y[2], torch.zeros(64))


@pytest.mark.parametrize(("name", "levels"), [pair for pair in GRIDS if pair[1] in ("ternary", "int4")])
def test_a_layer_wider_than_float32_sums_is_exact(name: str, levels: str) -> None:
    layer = random_layer(3, 140_000, Scheme(levels=levels), bias=False)
    layer.weight_scale.fill_(1)
    layer.backend = name
    x = torch.full((1, 140_000), 127.0)
    exact = (layer.codes().double() * 127).sum(dim=1)
    assert torch.equal(layer(x)[0], exact.float())


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_a_codec_changes_no_result(name: str) -> None:
    layer = random_layer(7, 33, Scheme())
    assert CODECS["ternary"] == ("2bit", "base3")
    twin = PackedLinear(33, 7, True, layer.scheme, codec="base3")
    twin.weight, twin.weight_scale, twin.bias = packing.pack(twin.codec, layer.codes()), layer.weight_scale, layer.bias
    layer.backend = twin.backend = name
    x = torch.randn(5, 33)
    assert torch.equal(layer(x), twin(x))


def test_auto_falls_to_reference_for_group_scales_and_says_so() -> None:
    model = nn.Sequential(random_layer(4, 8, Scheme(granularity="group", group_size=4)))
    assert kernels.use_backend(model, "auto") == "reference"


def test_a_named_backend_that_cannot_run_the_model_is_an_error() -> None:
    if "onednn" not in CPU_BACKENDS:
        pytest.skip("onednn can't run on this CPU")
    model = nn.Sequential(random_layer(4, 8, Scheme(granularity="group", group_size=4)))
    with pytest.raises(UnavailableError, match="scales are per group") as caught:
        kernels.use_backend(model, "onednn")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("levels", ["binary", "int2", "int4"])
def test_bitblas_is_for_ternary_levels_only(levels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from ternarize_cli.kernels.bitblas import BitBlas

    monkeypatch.setattr(BitBlas, "missing", lambda _: None)  # whatever this machine lacks
    model = nn.Sequential(random_layer(16, 16, Scheme(levels=levels)))
    with pytest.raises(UnavailableError, match=f"its levels are {levels}, and bitblas runs ternary only"):
        kernels.use_backend(model, "bitblas")


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_of_all_levels_are_exact_in_e4m3(levels: str) -> None:
    layer = random_layer(48, 64, Scheme(levels=levels), bias=False)
    x = torch.randint(-8, 9, (5, 64), generator=torch.Generator().manual_seed(1)).float()
    x[:, 0] = 448  # the scale of each row is then 1, so that nothing is rounded but the result
    y = ScaledMm().prepare(layer)(x)
    torch.testing.assert_close(y, (x @ layer.codes().float().T) * layer.weight_scale.float().T, rtol=0.01, atol=0.01)


def test_auto_prefers_a_backend_that_runs_all_linears(monkeypatch: pytest.MonkeyPatch) -> None:
    def backend(name: str, *levels: str) -> type:
        return type(name, (Reference,), {"name": name, "levels": levels})

    some, both = backend("some", "ternary")(), backend("all", "ternary", "int4")()
    monkeypatch.setattr(kernels, "_REGISTRY", {"some": some, "all": both, "reference": Reference()})
    monkeypatch.setitem(kernels.AUTO, "cpu", ("some", "all", "reference"))
    ternary, int4, binary = (random_layer(4, 8, Scheme(levels=levels)) for levels in ("ternary", "int4", "binary"))
    assert kernels.use_backend(nn.Sequential(ternary), "auto") == "some"
    kernels.use_backend(nn.Sequential(ternary, int4), "auto")
    assert (ternary.backend, int4.backend) == ("all", "all")
    kernels.use_backend(nn.Sequential(ternary, int4, binary), "auto")
    assert (ternary.backend, int4.backend, binary.backend) == ("some", "all", "reference")
    kernels.use_backend(nn.Sequential(ternary), "reference")
    assert ternary.backend == "reference"


def test_backends_declare_what_they_run() -> None:
    declared = {info.name: (info.levels, info.granularities) for info in kernels.describe()}
    assert declared["reference"] == (tuple(LEVELS), ("row", "tensor", "group"))
    assert declared["onednn"] == (tuple(LEVELS), ("row", "tensor"))
    assert declared["native"] == (("ternary", "int4"), ("row", "tensor"))
    assert declared["bitblas"] == (("ternary",), ("row", "tensor"))
    assert declared["scaled_mm"] == (tuple(LEVELS), ("row", "tensor"))


def test_an_unknown_backend_is_wrong_usage_and_lists_the_known() -> None:
    with pytest.raises(InputError, match="no backend 'fast'") as caught:
        kernels.require_backend("fast")
    assert "reference" in str(caught.value.hint)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_bitblas_without_a_gpu_says_what_is_missing() -> None:
    with pytest.raises(UnavailableError, match="GPU"):
        kernels.require_backend("bitblas")


def test_a_backend_for_a_model_that_is_not_packed_is_wrong_usage() -> None:
    with pytest.raises(InputError, match="not packed"):
        kernels.use_backend(nn.Linear(2, 2), "reference")
    assert kernels.use_backend(nn.Linear(2, 2), "auto") == "torch"
