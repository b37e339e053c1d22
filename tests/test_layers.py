"""The modules: what trains, what runs, and that both compute the same."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ternarize_cli import packing, ternary
from ternarize_cli.errors import FormatError
from ternarize_cli.layers import PackedEmbedding, PackedLinear, SimulatedEmbedding, TernaryLinear
from ternarize_cli.scheme import Scheme

SCHEMES = [
    Scheme(),
    Scheme(granularity="tensor"),
    Scheme(granularity="group", group_size=4),
    Scheme(activation_bits=16),
    Scheme(rule="absmean"),
]


def latent(scheme: Scheme, width: int = 12, outputs: int = 6) -> TernaryLinear:
    torch.manual_seed(0)
    layer = TernaryLinear(width, outputs, True, scheme)
    layer.weight_scale.data = ternary.scale_of(layer.weight, scheme)
    return layer


def packed_twin(layer: TernaryLinear) -> PackedLinear:
    twin = PackedLinear(layer.in_features, layer.out_features, True, layer.scheme)
    twin.weight = packing.pack_2bit(ternary.codes_of(layer.weight.detach(), layer.weight_scale.detach()))
    twin.weight_scale = layer.weight_scale.detach().half()
    twin.bias = layer.bias.detach()
    return twin


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_latent_layer_in_eval_mode_equals_its_packed_twin(scheme: Scheme) -> None:
    layer = latent(scheme).eval()
    x = torch.randn(3, 5, 12)
    assert torch.equal(layer(x), packed_twin(layer)(x))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_mode_computes_nearly_the_same(scheme: Scheme) -> None:
    layer = latent(scheme)
    x = torch.randn(4, 12)
    trained, evaluated = layer(x), layer.eval()(x)
    torch.testing.assert_close(trained, evaluated, rtol=2e-3, atol=2e-3)


def test_gradients_go_straight_through_to_weight_scale_bias_and_input() -> None:
    layer = latent(Scheme(activation_bits=16))
    x = torch.randn(4, 12, requires_grad=True)
    layer(x).sum().backward()
    weight_gradient = x.detach().sum(dim=0).expand(6, 12)
    codes = ternary.codes_of(layer.weight.detach(), layer.weight_scale.detach())
    torch.testing.assert_close(layer.weight.grad, weight_gradient)
    torch.testing.assert_close(layer.weight_scale.grad, (weight_gradient * codes).sum(dim=1, keepdim=True))
    torch.testing.assert_close(layer.bias.grad, torch.full((6,), 4.0))
    dense = ternary.dequantize(codes, layer.weight_scale.detach())
    torch.testing.assert_close(x.grad, dense.sum(dim=0).expand(4, 12))


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_simulated_embedding_rounds_as_the_packed_table(bits: int) -> None:
    table = SimulatedEmbedding(9, 6, None, bits).eval()
    ids = torch.tensor([[0, 3], [8, 8]])
    if bits == 8:
        twin = PackedEmbedding(9, 6, None)
        q, scale = ternary.quantize_rows(table.weight.detach())
        twin.weight, twin.weight_scale = q.to(torch.int8), scale
        expected = twin(ids)
    else:
        expected = nn.functional.embedding(ids, table.weight.half().float() if bits == 16 else table.weight)
    assert torch.equal(table(ids), expected)


def test_casting_a_model_keeps_the_float16_scales() -> None:
    layer = packed_twin(latent(Scheme()))
    before = layer.weight_scale.clone()
    cast = layer.to(torch.bfloat16)
    assert cast.bias.dtype == torch.bfloat16
    assert torch.equal(cast.weight_scale, before)
    assert cast(torch.randn(2, 12, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_layer_that_has_run_can_be_copied_and_pickled() -> None:
    layer = packed_twin(latent(Scheme()))
    x = torch.randn(2, 12)
    expected = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), expected)


def test_check_names_the_tensor_that_is_wrong() -> None:
    layer = packed_twin(latent(Scheme()))
    layer.check("encoder.0")
    layer.weight[2, 1] = 255
    with pytest.raises(FormatError, match=r"encoder\.0\.weight: invalid code 3 at row 2, input 4"):
        layer.check("encoder.0")
    layer = packed_twin(latent(Scheme()))
    layer.weight_scale[1] = float("nan")
    with pytest.raises(FormatError, match=r"encoder\.0\.weight_scale: a scale is nan"):
        layer.check("encoder.0")
