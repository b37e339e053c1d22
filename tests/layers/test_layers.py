"""The modules: what trains, what runs, and that both compute the same."""

import copy
import pickle

import pytest
import torch
from torch import nn

import ternarize_cli.kernels  # noqa: F401
from ternarize_cli.arithmetic import packing, tables, ternary
from ternarize_cli.errors import FormatError
from ternarize_cli.format.scheme import CODECS, Scheme
from ternarize_cli.layers import PackedEmbedding, PackedLinear, SimulatedEmbedding, TernaryLinear

SCHEMES = [
    Scheme(),
    Scheme(granularity="tensor"),
    Scheme(granularity="group", group_size=4),
    Scheme(activation_bits=16),
    Scheme(rule="absmean"),
    *(
        Scheme(levels=levels, granularity=granularity, group_size=group, activation_bits=bits)
        for levels in ("binary", "int2", "int4")
        for granularity, group in (("row", None), ("tensor", None), ("group", 4))
        for bits in (8, 16)
    ),
]


def latent(scheme: Scheme, width: int = 12, outputs: int = 6) -> TernaryLinear:
    torch.manual_seed(0)
    layer = TernaryLinear(width, outputs, True, scheme)
    layer.weight_scale.data = ternary.scale_of(layer.weight, scheme)
    return layer


def packed_twin(layer: TernaryLinear, codec: str | None = None) -> PackedLinear:
    twin = PackedLinear(layer.in_features, layer.out_features, True, layer.scheme, codec=codec)
    twin.weight = packing.pack(twin.codec, layer.codes())
    twin.weight_scale = layer.weight_scale.detach().half()
    twin.bias = layer.bias.detach()
    return twin


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_latent_layer_in_eval_mode_equals_its_packed_twin(scheme: Scheme) -> None:
    layer = latent(scheme).eval()
    x = torch.randn(3, 5, 12)
    for codec in CODECS[scheme.levels]:
        assert torch.equal(layer(x), packed_twin(layer, codec)(x))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
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


def packed_table(table: SimulatedEmbedding) -> PackedEmbedding:
    twin = PackedEmbedding(table.num_embeddings, table.embedding_dim, None, table.table_bits)
    codes, scale = tables.quantize_table(table.weight.detach(), table.table_bits)
    stored = tables.pack_codes(codes, table.table_bits)
    assert (stored.shape, stored.dtype, scale.shape) == (twin.weight.shape, twin.weight.dtype, twin.weight_scale.shape)
    twin.weight, twin.weight_scale = stored, scale
    return twin


@pytest.mark.parametrize("dim", [1, 6, 31, 32, 33, 95])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_simulated_embedding_is_the_packed_table_bit_for_bit(bits: int, dim: int) -> None:
    torch.manual_seed(dim)
    table = SimulatedEmbedding(9, dim, None, bits)
    ids = torch.tensor([[0, 3], [8, 8]])
    expected = packed_table(table)(ids)
    assert torch.equal(table.train()(ids), expected)
    assert torch.equal(table.eval()(ids), expected)


@pytest.mark.parametrize("bits", [16, 32])
def test_a_table_that_stays_float_is_rounded_to_its_width(bits: int) -> None:
    table = SimulatedEmbedding(9, 6, None, bits).eval()
    ids = torch.tensor([[0, 3], [8, 8]])
    expected = nn.functional.embedding(ids, table.weight.half().float() if bits == 16 else table.weight)
    assert torch.equal(table(ids), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_reach_the_rows_of_a_rounded_table(bits: int) -> None:
    table = SimulatedEmbedding(5, 6, None, bits)
    table(torch.tensor([1, 3, 3])).sum().backward()
    assert table.weight.grad.sum(dim=1).tolist() == [0, 6, 0, 12, 0]


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
    layer = packed_twin(latent(Scheme()), "base3")
    layer.weight[2, 1] = 255
    with pytest.raises(FormatError, match=r"encoder\.0\.weight: invalid byte 255 at row 2, input 5"):
        layer.check("encoder.0")
    layer = packed_twin(latent(Scheme()))
    layer.weight_scale[1] = float("nan")
    with pytest.raises(FormatError, match=r"encoder\.0\.weight_scale: a scale is nan"):
        layer.check("encoder.0")


def test_check_names_a_table_whose_last_nibble_is_no_zero() -> None:
    table = packed_table(SimulatedEmbedding(4, 7, None, 4))
    table.check("words")
    table.weight[2, 3] ^= 0x10
    with pytest.raises(FormatError, match=r"words\.weight: the padding at the end of a row is not zero weights"):
        table.check("words")


def test_a_layer_that_is_moved_chooses_its_backend_anew() -> None:
    layer = PackedLinear(64, 32, bias=False, scheme=Scheme())
    layer(torch.randn(2, 64))
    assert layer.backend != "auto"
    assert layer.to("meta").backend == "auto"
    named = PackedLinear(64, 32, bias=False, scheme=Scheme())
    named.backend = "reference"
    named(torch.randn(2, 64))
    assert named.to("meta").backend == "reference"
