"""Kernels for NVIDIA GPUs: on a GPU as they are, elsewhere in Triton's interpreter."""

import json
import pickle
import re
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.fused_families import needs_native
from support.models import save_tiny_bert, save_tiny_vit
from support.random_layers import random_layer
from ternarize_cli import kernels
from ternarize_cli.arithmetic.cuda_graphs import Graphs
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.pack import pack
from ternarize_cli.encoders import loading
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.layers import PackedLinear

pytest.importorskip("triton", reason="the package triton is not installed")

from ternarize_cli.kernels.gpu import activation, e4m3, int8, matmul, pass_sizes, rounding, tuning
from ternarize_cli.kernels.gpu.attention import Attention, Scores, attention
from ternarize_cli.kernels.gpu.attention import ways as attention_ways
from ternarize_cli.kernels.gpu.e4m3 import E4m3
from ternarize_cli.kernels.gpu.embedding import Tables, embed
from ternarize_cli.kernels.gpu.encoder import GpuEncoder
from ternarize_cli.kernels.gpu.forward import GpuForward
from ternarize_cli.kernels.gpu.heads import Heads
from ternarize_cli.kernels.gpu.int8 import Int8
from ternarize_cli.kernels.gpu.matmul import FewRows, ManyRows
from ternarize_cli.kernels.gpu.norm import Norm, Sums, norm
from ternarize_cli.kernels.gpu.patches import PatchProducts
from ternarize_cli.kernels.gpu.rounding import Rounded, RowWay, quantise
from ternarize_cli.kernels.gpu.token_rows import count_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 384, 80), (17, 768, 96), (50, 320, 64), (5, 304, 48)]
E4M3_DTYPE = torch.float8_e4m3fn


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded(seed)).to(DEVICE)


class Case:
    """A product of random activations and codes, in every form that a kernel wants them in."""

    def __init__(self, rows: int, inputs: int, outputs: int) -> None:
        self.codes = torch.randint(-1, 2, (outputs, inputs), generator=seeded(), dtype=torch.int8).to(DEVICE)
        self.scale = (torch.rand(outputs, generator=seeded(1)) + 0.1).to(DEVICE)
        self.bias = normal(outputs, seed=2)
        self.q = torch.randint(-127, 128, (rows, inputs), generator=seeded(3), dtype=torch.int8).to(DEVICE)
        self.t = (torch.rand(rows, generator=seeded(4)) / 100).to(DEVICE)
        self.b = matmul.block_of(inputs)
        self.weight = matmul.lay_out(self.codes, self.b)
        self.sums = self.q.double() @ self.codes.double().T
        self.result = self.sums.float() * self.scale * self.t[:, None] + self.bias

    def expanded(self) -> Tensor:
        made = torch.empty(4 * self.weight.numel(), dtype=torch.int8, device=DEVICE)
        matmul.expand(self.weight, made)
        return made.view(len(self.weight), -1)


def distance(y: Tensor, wanted: Tensor) -> float:
    return float((y.float() - wanted.float()).norm().detach() / wanted.float().norm().detach())


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_few_rows_give_the_exact_sums(rows: int, inputs: int, outputs: int) -> None:
    case = Case(rows, inputs, outputs)
    q = matmul.in_order(case.q, case.b)
    y = matmul.few_rows(q, case.t, case.weight, case.scale, case.bias, case.b, out=torch.float32)
    assert torch.allclose(y, case.result, rtol=1e-6, atol=1e-6)
    y = matmul.few_rows(q, case.t, case.weight, case.scale, case.bias, case.b, activation="gelu", out=torch.float32)
    assert distance(y, F.gelu(case.result)) < 1e-3


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_programs_that_share_the_inputs_add_up(parts: int) -> None:
    case = Case(5, 768, 96)
    case.b = 32
    case.weight = matmul.lay_out(case.codes, 32)
    sums = torch.zeros(5, 96, dtype=torch.int32, device=DEVICE)
    how = FewRows(parts=parts)
    q = matmul.in_order(case.q, 32)
    matmul.few_rows(q, case.t, case.weight, case.scale, case.bias, 32, how=how, sums=sums)
    assert torch.equal(sums.double(), case.sums)
    residual, gain = normal(5, 96, seed=5).half(), normal(96, seed=6)
    raw = Sums(sums, case.t, case.scale, case.bias)
    kept, _ = norm(residual, raw, Norm("layer", gain, gain, 1e-5), after=True, dtype=torch.int8)
    wanted = F.layer_norm(residual.float() + case.result, (96,), gain, gain, 1e-5)
    assert distance(kept, wanted) < 1e-3
    assert not sums.any(), "the norm leaves zeros for the next product"


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_expanded_weights_are_the_codes_with_zeros_around(rows: int, inputs: int, outputs: int) -> None:
    case = Case(rows, inputs, outputs)
    codes = case.expanded()
    assert torch.equal(codes[:outputs, :inputs], case.codes)
    assert not codes[outputs:].any()
    assert not codes[:, inputs:].any()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("how", [ManyRows(64, 64, 64, 4, 2), ManyRows(64, 64, 128, 4, 2, 2)])
def test_many_rows_in_int8(rows: int, inputs: int, outputs: int, how: ManyRows) -> None:
    case = Case(rows, inputs, outputs)
    y = matmul.many_rows(case.q, case.t, case.expanded(), case.scale, case.bias, how=how)
    assert distance(y, case.result) < 1e-3
    y = matmul.many_rows(case.q, case.t, case.expanded(), case.scale, None, activation="gelu", how=how)
    assert distance(y, F.gelu(case.result - case.bias)) < 1e-3


def test_many_rows_in_e4m3_with_a_scale_a_row_or_one_for_all() -> None:
    case = Case(17, 768, 96)
    how = ManyRows(64, 64, 64, 4, 2)
    x = normal(17, 768, seed=7).to(E4M3_DTYPE)
    codes = case.codes.to(E4M3_DTYPE)
    wanted = x.float() @ case.codes.float().T * case.scale
    y = matmul.many_rows(x, case.t, codes, case.scale, case.bias, how=how)
    assert distance(y, wanted * case.t[:, None] + case.bias) < 1e-3
    q = matmul.many_rows(x, 0.01, codes, case.scale, None, activation="gelu", out=E4M3_DTYPE, times=16.0, how=how)
    assert distance(q.float() / 16, F.gelu(0.01 * wanted)) < (0.05 if DEVICE == "cuda" else 0.15)  # it truncates


@pytest.mark.skipif(DEVICE == "cpu", reason="Triton's interpreter rounds to e4m3 wrongly, and has no inline assembly")
def test_gelu_before_e4m3_is_gelu_everywhere() -> None:
    x = torch.linspace(-440, 440, 4096, device=DEVICE).view(64, 64).to(E4M3_DTYPE)
    eye, ones = torch.eye(64, device=DEVICE).to(E4M3_DTYPE), torch.ones(64, device=DEVICE)
    for t in (0.5, 0.02, 0.002):
        how = ManyRows(64, 64, 64, 4, 2)
        q = matmul.many_rows(x, t, eye, ones, None, activation="gelu", out=E4M3_DTYPE, times=1.5, how=how)
        wanted = F.gelu(x.float() * t) * 1.5
        assert ((q.float() - wanted).abs() <= wanted.abs() * 0.07 + 0.01).all()


def assembled(assembly: str, *operands: Tensor) -> Tensor:
    """What a few instructions on pairs of equal float16 give: `mov.b32`, and `mul`, `fma`, `fma.sat` of `f16x2`."""
    held: dict[str, Tensor] = {f"${i}": operand for i, operand in enumerate(operands, 1)}
    for line in re.findall(r"((?:mov|mul|fma)[^;]+);", assembly):
        name, into, *given = line.replace(",", "").split()
        if name == "mov.b32":
            high, low = given[0][2:6], given[0][6:]
            assert high == low, "the constants are pairs"
            held[into] = torch.tensor(struct.unpack(">e", bytes.fromhex(low))[0]).half()
            continue
        x, y, *added = (held[operand].double() for operand in given)
        result = (x * y + (added[0] if added else 0)).half()
        held[into] = result.nan_to_num(0).clamp(0, 1) if ".sat." in name else result
    return held["$0"]


@pytest.mark.parametrize("times", [2.0**-14, 1.0, 8.0, 2.0**15])
def test_gelu_in_assembly_is_gelu(times: float) -> None:
    x = torch.cat([torch.linspace(-300, 300, 60001), torch.tensor([-65504.0, -3000.0, 3000.0, 65504.0])]).half()
    y = assembled(activation._TWO_GELUS.value, x, torch.tensor(times).half())
    wanted = F.gelu(x.double()) * times
    assert not y.isnan().any()
    away = (y.double() - wanted).abs().nan_to_num(0)  # inf where float16 ends, and e4m3 has ended long before
    assert (away <= 0.006 * times + wanted.abs() * 2**-9)[wanted.abs() < 60000].all()
    assert y[wanted.abs() >= 70000].isinf().all()


@pytest.mark.parametrize(("largest", "times"), [(0.0, 2.0**15), (1e-9, 2.0**15), (0.01, 8.0), (1e9, 2.0**-14)])
def test_activations_are_multiplied_by_a_power_of_two_that_float16_has(largest: float, times: float) -> None:
    assert e4m3._power_of_two(1 / (16 * max(largest, 1e-20))) == times


def test_e4m3_results_that_are_too_large_are_cut_to_the_largest() -> None:
    case = Case(3, 64, 48)
    x = torch.full((3, 64), 4.0, device=DEVICE).to(E4M3_DTYPE)
    codes = torch.ones(48, 64, device=DEVICE).to(E4M3_DTYPE)
    how = ManyRows(64, 64, 64, 4, 2)
    q = matmul.many_rows(x, 1.0, codes, torch.ones_like(case.scale), None, out=E4M3_DTYPE, times=16.0, how=how)
    assert (q.float() == 448).all()


# -- between products --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "tokens", "heads", "head", "masked"),
    [(2, 16, 3, 32, True), (3, 40, 2, 64, False), (2, 130, 1, 24, True), (2, 64, 2, 64, True)],
)
def test_attention_is_pytorchs(texts: int, tokens: int, heads: int, head: int, masked: bool) -> None:
    width, by = heads * head, Heads(heads, heads, head, head**-0.5)
    qkv = normal(texts * tokens, 3 * width).half()
    lengths = torch.tensor([tokens, tokens // 2 + 1, 3][:texts])
    mask = (torch.arange(tokens) < lengths[:, None]).long().to(DEVICE)
    q, k, v = qkv.float().view(texts, tokens, 3, heads, head).permute(2, 0, 3, 1, 4)
    seen = mask.bool()[:, None, None] if masked else None
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).reshape(-1, width)
    assert distance(attention(qkv, by, mask if masked else None, texts), wanted) < 2e-3
    if masked:
        real = mask.bool().flatten()
        starts = F.pad(lengths.cumsum(0), (1, 0)).int().to(DEVICE)
        y = attention(qkv[real], by, None, texts, starts=starts, longest=tokens)
        assert distance(y, wanted[real]) < 2e-3


@pytest.mark.parametrize("how", [way for way in attention_ways(128, 32, across=True) if way.across], ids=str)
@pytest.mark.parametrize("window", [(-1, -1), (4, 4), (6, 0)])
@pytest.mark.parametrize("by_distance", [False, True])
def test_attention_across_texts_is_that_of_each(how: Attention, window: tuple[int, int], by_distance: bool) -> None:
    lengths, (heads, shared, head) = torch.tensor([5, 0, 1, 70, 16, 0, 0, 33, 2]), (4, 2, 24)
    starts = F.pad(lengths.cumsum(0), (1, 0)).int().to(DEVICE)
    by, rows = Heads(heads, shared, head, head**-0.5), int(lengths.sum())
    qkv = normal(rows, by.width).half()
    scores = Scores(*window, normal(heads, 9, seed=1) if by_distance else None)
    given = {"scores": scores, "starts": starts, "longest": 70}
    wanted = attention(qkv, by, None, len(lengths), **given, how=Attention(16, 16, 1, 1))
    spans = torch.stack([starts[:-1], starts[1:]]).repeat_interleave(lengths.to(DEVICE), dim=1)
    given |= {"spans": spans, "how": how}
    assert distance(attention(qkv, by, None, len(lengths), **given), wanted) < 2e-3
    qkv[6:20, by.width - 5] = torch.inf  # values of the text of 70 tokens
    made = attention(qkv, by, None, len(lengths), **given)
    of_others = [i for i in range(rows) if not 6 <= i < 76]
    assert distance(made[of_others], wanted[of_others]) < 2e-3


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("dtype", [torch.int8, E4M3_DTYPE, None])
def test_norm_adds_normalises_and_rounds(after: bool, dtype: torch.dtype | None) -> None:
    x, y, gain, bias = normal(7, 96).half(), normal(7, 96, seed=1).half(), normal(96, seed=2), normal(96, seed=3)
    kept, rounded = norm(x, y, Norm("layer", gain, bias, 1e-5), after=after, dtype=dtype)
    wanted = F.layer_norm(x.float() + y.float(), (96,), gain, bias, 1e-5)
    assert distance(kept, wanted if after else x.float() + y.float()) < 1e-3
    if dtype is not None:
        assert distance(rounded.q.float() * rounded.t[:, None], wanted) < (0.02 if dtype == torch.int8 else 0.09)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "b"), [(torch.int8, 0), (torch.int8, 32), (torch.int8, 64), (E4M3_DTYPE, 0)])
@pytest.mark.parametrize("width", [96, 312])
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # of the interpreter, for unknown ids
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_two_rows_a_program_give_what_one_gives(
    dtype: torch.dtype, b: int, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y, gain, bias = (normal(7, width, seed=i).half() for i in range(4))
    by = Norm("layer", gain[0].float(), bias[0].float(), 1e-5)
    ids, kinds = torch.randint(-1, 13, (1, 7), generator=seeded(4)).to(DEVICE), torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    tables = [((normal(n, width, seed=n) * 50).to(torch.int8), normal(n, seed=9 + n).abs()) for n in (12, 3, 9)]
    assert bool(((ids < 0) | (ids >= 12)).any()), "some ids are in no table"

    def results() -> Iterator[Tensor]:
        raw = Sums(
            torch.arange(7 * width, dtype=torch.int32, device=DEVICE).view(7, width), x[:, 0].float(), gain[0], None
        )
        made = [norm(x, y, by, after=after, dtype=dtype, b=b) for after in (True, False)]
        made += [
            norm(x, raw, by, after=True, dtype=dtype, b=b),
            norm(x, None, by, after=True, dtype=dtype, b=b),
        ]
        made += [
            embed(ids, given, None, Tables(*tables), by, dtype=dtype, kept=torch.float16, b=b)
            for given in (None, kinds.to(DEVICE))
        ]
        yield from (part for kept, rounded in made for part in (kept, *rounded))
        yield from quantise(x, dtype, b=b)
        yield norm(x, y, by, after=True, dtype=None)[0]
        yield raw.raw
        assert not raw.raw.any()

    beyond: list[Tensor] = []

    def guarded(rows: int, width: int, dtype: torch.dtype, b: int, device: torch.device) -> Rounded:
        width = matmul.filled(width, b) if b else width
        q, t = torch.zeros(rows + 1, width, dtype=dtype, device=device), torch.zeros(rows + 1, device=device)
        beyond.extend((q[rows:], t[rows:]))
        return Rounded(q[:rows], t[:rows])

    one = list(results())
    for module in ("rounding", "norm", "embedding"):
        monkeypatch.setattr(f"ternarize_cli.kernels.gpu.{module}.empty_rounded", guarded)
        monkeypatch.setattr(f"ternarize_cli.kernels.gpu.{module}.row_ways", lambda rows, width: [RowWay(2, 1)])
    for single, double in zip(one, results(), strict=True):
        assert torch.allclose(double.float(), single.float(), rtol=0.01, atol=0.01, equal_nan=True)
    assert not any(part.float().any() for part in beyond)


def test_few_rows_and_long_ones_have_programs_of_their_own() -> None:
    assert rounding.row_ways(2047, 768) == [RowWay(1, 4)]
    assert rounding.row_ways(2048, 768)[0] == RowWay(2, 1)
    assert rounding.row_ways(2048, 3072)[0] == RowWay(1, 8)


@pytest.mark.parametrize("b", [32, 64])
def test_rounded_activations_come_in_the_order_of_the_weights(b: int) -> None:
    x = normal(5, 312).half()
    usual, ordered = quantise(x, torch.int8), quantise(x, torch.int8, b=b)
    assert torch.equal(ordered.q, matmul.in_order(usual.q, b))
    assert torch.equal(ordered.t, usual.t)
    assert usual.q.abs().amax() == 127


def test_an_all_zero_row_is_rounded_to_zeros() -> None:
    rounded = quantise(torch.zeros(2, 64, device=DEVICE).half(), torch.int8)
    assert not rounded.q.any()
    assert not rounded.t.any()


@pytest.mark.parametrize(("padding", "is_cut"), [("valid", True), (0, True), (1, False)])
def test_patches_of_images_are_those_of_the_convolution(padding: Any, is_cut: bool) -> None:
    convolution, pixels = torch.nn.Conv2d(3, 20, (4, 2), (4, 2), padding).to(DEVICE), normal(2, 3, 13, 9)
    with torch.no_grad():
        wanted = convolution(pixels)
        with PatchProducts():
            made = convolution(pixels)
    assert made.dtype == (torch.float16 if is_cut else torch.float32)
    assert made.shape == wanted.shape
    assert distance(made, wanted) < 2e-3


def test_no_images_have_no_patches() -> None:
    convolution = torch.nn.Conv2d(3, 20, 4, 4).to(DEVICE)
    with torch.no_grad(), PatchProducts():
        assert convolution(normal(0, 3, 12, 8)).shape == (0, 20, 3, 2)


# -- whole encoders ----------------------------------------------------------------------------------------------------


def packed(tmp_path: Path, save: Callable[..., Path], **settings: Any) -> Any:
    """The transformers model of a tiny packed encoder on the device, run by `reference`; no bias or norm is trivial."""
    convert(save(tmp_path / "model", **settings), tmp_path / "ternary", Scheme())
    pack(tmp_path / "ternary", tmp_path / "packed")
    model = loading.load_encoder(tmp_path / "packed", backend="reference", device=DEVICE)[0].auto_model
    generator = seeded(9)
    for module in model.modules():
        if isinstance(module, PackedLinear) and module.bias is not None:
            module.bias.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
            module.backend = "reference"  # which then prepares anew
        if isinstance(module, torch.nn.LayerNorm):
            module.weight.data.copy_(1 + 0.2 * torch.randn(module.weight.shape, generator=generator))
            module.bias.data.copy_(0.3 * torch.randn(module.bias.shape, generator=generator))
    return model


def save_roberta(folder: Path) -> Path:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = XLMRobertaConfig(vocab_size=50, max_position_embeddings=40, initializer_range=0.15, **settings)
    save_tiny_bert(folder)  # for its tokenizer
    XLMRobertaModel(config).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "layerscale_value": 0.7}
    save_tiny_vit(folder)  # for its image processor
    Dinov2Model(Dinov2Config(image_size=8, patch_size=4, initializer_range=0.15, **settings)).save_pretrained(folder)
    return folder


ARITHMETICS = [(Int8, 0.06), (E4m3, 0.12)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arithmetic", "most", "save", "few"),
    [
        (Int8, 0.06, save_tiny_bert, 256),
        (Int8, 0.06, save_tiny_bert, 0),
        (Int8, 0.06, save_roberta, 256),
        (E4m3, 0.12, save_tiny_bert, 256),
    ],
)
def test_texts_give_nearly_what_the_reference_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arithmetic: Any, most: float, save: Any, few: int
) -> None:
    monkeypatch.setattr(int8, "_FEW", few)  # 0: every product is one of many rows
    monkeypatch.setattr(pass_sizes, "_FEW", 32)
    model = packed(tmp_path, save)
    ids = torch.randint(5, 40, (3, 11), generator=seeded()).to(DEVICE)
    mask = (torch.arange(11) < torch.tensor([[11], [4], [7]])).long().to(DEVICE)
    types = (torch.arange(11) > 2).long().expand(3, 11).to(DEVICE) if save is save_tiny_bert else None
    wanted = model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state
    stack = GpuEncoder(model, arithmetic)
    real = mask.bool()
    with torch.no_grad():
        assert distance(stack.texts(ids, mask, types)[real], wanted[real]) < most
        made = stack._unpadded(ids, mask, None if types is None else types.contiguous(), count_tokens(mask))
        assert distance(made[real], wanted[real]) < most
        whole = stack.texts(ids[:1], None, torch.zeros_like(ids[:1]) if save is save_tiny_bert else None)
    assert distance(whole, model(input_ids=ids[:1]).last_hidden_state) < most


@pytest.mark.slow
def test_a_padding_id_that_the_table_lacks_changes_nothing(tmp_path: Path) -> None:
    model = packed(tmp_path, save_tiny_bert)
    ids = torch.randint(5, 40, (2, 11), generator=seeded()).to(DEVICE)  # padded to 16
    wanted = model(input_ids=ids).last_hidden_state
    model.config.pad_token_id = -1
    with torch.no_grad():
        assert distance(GpuEncoder(model, Int8).texts(ids, None, None), wanted) < 0.06


@pytest.mark.slow
def test_inputs_that_are_parts_of_larger_ones(tmp_path: Path) -> None:
    model = packed(tmp_path, save_tiny_bert)
    ids = torch.randint(5, 40, (3, 20), generator=seeded()).to(DEVICE)
    mask = (torch.arange(20) < torch.tensor([[20], [4], [7]])).long().to(DEVICE)
    real = mask[:, :8].bool()
    wanted = model(input_ids=ids[:, :8], attention_mask=mask[:, :8]).last_hidden_state
    made = GpuEncoder(model, Int8).texts(ids[:, :8], mask[:, :8], None)
    assert distance(made[real], wanted[real]) < 0.06


class OnAnyDevice(GpuForward):
    device = DEVICE


@pytest.mark.slow
def test_a_model_runs_as_a_whole_in_any_mode_and_its_weights_stay_usable(tmp_path: Path) -> None:
    model = packed(tmp_path, save_tiny_bert, hidden_size=128, intermediate_size=256)
    ids = torch.randint(5, 40, (3, 9), generator=seeded()).to(DEVICE)
    wanted = model(input_ids=ids)
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.backend = "triton"
    pooler = model.pooler.dense
    pooler.backend, pooler._kernel = "triton", kernels._REGISTRY["triton"].prepare(pooler)
    model.forward = OnAnyDevice(model, "triton", Int8)
    model.forward._is_compared = True  # its linears by themselves run on a GPU only
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode():
            result = model(input_ids=ids)
        assert distance(result.last_hidden_state, wanted.last_hidden_state) < 0.06
        assert distance(result.pooler_output, wanted.pooler_output) < 0.06
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    again = pickle.loads(pickle.dumps(model.encoder.layer[0].output.dense))
    assert again.weight.untyped_storage().nbytes() == again.weight.nbytes


@pytest.fixture
def on_device(tmp_path: Path) -> Any:
    """A tiny model that runs as a whole on the device."""
    model = packed(tmp_path, save_tiny_bert)
    model.forward = OnAnyDevice(model, "reference", Int8)
    model.forward._is_compared = True
    with torch.no_grad():
        yield model


@pytest.mark.slow
def test_vectors_are_pooled_with_the_modules_that_the_model_has_now(on_device: Any) -> None:
    ids = torch.randint(5, 40, (2, 9), generator=seeded()).to(DEVICE)
    first = on_device(input_ids=ids).pooler_output
    encoder = on_device.forward._encoder
    encoder._pool = lambda *_: first  # as a recorded pass would, which reads old weights
    assert torch.equal(on_device(input_ids=ids).pooler_output, first)
    on_device.pooler.dense = torch.nn.Linear(32, 32).to(DEVICE)
    made = on_device(input_ids=ids)
    assert on_device.forward._encoder is encoder
    assert distance(made.pooler_output, on_device.pooler(made.last_hidden_state)) < 1e-5


@pytest.mark.slow
def test_a_compiled_model_is_one_graph(on_device: Any) -> None:
    given = {"input_ids": torch.randint(5, 40, (2, 9), generator=seeded()).to(DEVICE)}
    expected = on_device(**given).last_hidden_state
    torch.compiler.reset()
    made = torch.compile(on_device, backend="eager", fullgraph=True)(**given).last_hidden_state
    torch.compiler.reset()
    assert torch.equal(made, expected)


def test_a_single_layer_takes_rows_of_any_stride_and_results_beyond_float16() -> None:
    layer = random_layer(48, 64, Scheme()).to(DEVICE)
    run = kernels._REGISTRY["triton"].prepare(layer)
    x = normal(3, 5, 64)
    assert distance(run(x[:, 0]), layer(x[:, 0])) < 1e-3
    assert distance(run(1e5 * x), layer(1e5 * x)) < 1e-3
    assert run(x[:0]).shape == (0, 5, 48)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter on NaN
def test_unusual_inputs(tmp_path: Path) -> None:
    model = packed(tmp_path, save_tiny_bert)
    stack = GpuEncoder(model, Int8)
    with torch.no_grad():
        assert stack.texts(torch.zeros(0, 5, dtype=torch.long, device=DEVICE), None, None).shape == (0, 5, 32)
        with pytest.raises(InputError, match="a text has 65 tokens, and the model takes at most 64"):
            stack.texts(torch.zeros(1, 65, dtype=torch.long, device=DEVICE), None, None)
        unknown = stack.texts(torch.tensor([[2, 7, 9], [2, 7, 10**6]], device=DEVICE), None, None)
    assert unknown[0].isfinite().all()
    assert not unknown[1, 2].isfinite().any()


@pytest.mark.slow
@pytest.mark.parametrize(("arithmetic", "most"), ARITHMETICS)
@pytest.mark.parametrize("save", [save_tiny_vit, save_dino])
def test_images_give_nearly_what_the_reference_gives(tmp_path: Path, arithmetic: Any, most: float, save: Any) -> None:
    model = packed(tmp_path, save)
    if isinstance(model.ternarize_block, str):
        pytest.skip(model.ternarize_block)  # this version of transformers has other modules
    pixels = normal(2, 3, 8, 8)
    wanted = model(pixel_values=pixels).last_hidden_state
    with torch.no_grad():
        assert distance(GpuEncoder(model, arithmetic).images(pixels), wanted) < most


def test_weights_lie_in_memory_once_and_stay_those_of_the_model(tmp_path: Path) -> None:
    model = packed(tmp_path, save_tiny_bert, hidden_size=128, intermediate_size=256)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stack = GpuEncoder(model, Int8)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    layer = model.encoder.layer[0].attention.self.key
    flat = stack._blocks.products._flat[0]
    assert layer.weight.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()


@pytest.mark.slow
def test_the_largest_activations_of_a_sample_set_the_scale_of_e4m3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed(tmp_path, save_tiny_bert)
    ids = torch.randint(5, 40, (2, 9), generator=seeded()).to(DEVICE)
    wanted = model(input_ids=ids).last_hidden_state
    stack = GpuEncoder(model, E4m3)
    assert all(0 < times < 448 for times in (*stack._blocks.products._attended, *stack._blocks.products._activated))
    with torch.no_grad():
        assert distance(stack.texts(ids, None, None), wanted) < 0.25


# -- backends ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["triton", "scaled_mm"])
def test_without_a_gpu_they_say_what_is_missing(name: str) -> None:
    with pytest.raises(UnavailableError, match="torch sees no NVIDIA GPU"):
        kernels.require_backend(name)
    layer = random_layer(16, 32, Scheme())
    assert "the model is on cpu" in str(kernels._REGISTRY[name].refuses(layer))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("name", ["triton", "scaled_mm"])
def test_on_a_gpu_they_run_whole_models_and_single_layers(name: str, tmp_path: Path) -> None:
    model = packed(tmp_path, save_tiny_bert)
    ids = torch.randint(5, 40, (3, 11), generator=seeded()).cuda()
    wanted = model(input_ids=ids).last_hidden_state
    assert kernels.use_backend(model, name) == name
    for _ in range(3):  # as it is, recorded, replayed
        with torch.no_grad():
            assert distance(model(input_ids=ids).last_hidden_state, wanted) < 0.25
    layer = model.encoder.layer[0].output.dense
    x = normal(4, 7, layer.in_features)
    result = layer(x)
    layer.backend = "reference"
    assert distance(result, layer(x)) < 0.05


@pytest.mark.slow
def test_a_layer_of_scaled_mm_compiles_without_a_break() -> None:
    from ternarize_cli.kernels.scaled_mm import ScaledMm

    layer = random_layer(32, 64, Scheme()).to(DEVICE)
    run = ScaledMm().prepare(layer)
    x = normal(3, 5, 64)
    compiled = torch.compile(run, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), run(x))
    layer.backend = "reference"
    assert distance(run(x), layer(x)) < 0.05


# -- tuning ------------------------------------------------------------------------------------------------------------


def test_rows_are_measured_in_powers_of_two() -> None:
    assert [tuning.bucket(rows) for rows in (1, 16, 17, 64, 65, 32768)] == [16, 16, 32, 64, 128, 32768]


def test_one_way_or_no_gpu_takes_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tuning.fastest("one", ["only"], lambda way: 1 / 0) == "only"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tuning.fastest("two", ["first", "second"], lambda way: 1 / 0) == "first"


def test_a_tile_that_a_gpu_has_no_memory_for_is_passed_over() -> None:
    from triton.runtime.errors import OutOfResources

    def call(way: int) -> None:
        if way > 64:
            raise OutOfResources(way, 64, "shared memory")

    assert tuning.first_that_works("some", [128, 64, 32], call) == 64
    with pytest.raises(RuntimeError, match="no configuration for some works on this GPU"):
        tuning.first_that_works("some", [128, 65], call)


def test_a_pause_remembers_nothing() -> None:
    choices = tuning.Choices()
    with tuning.paused():
        assert choices.of("kind", (64, 32, 32), lambda rows: ["first", "second"], lambda way: None) == "first"
    assert not choices.made


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_what_was_measured_is_kept_and_a_damaged_file_is_not_trusted(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("TERNARIZE_CACHE", str(tmp_path))
    tuning._found.cache_clear()
    x = torch.randn(2048, 2048, device="cuda")

    def call(way: int) -> Tensor:
        if not way:
            raise RuntimeError("this way does not work")
        return x + 1 if way == 1 else x @ x @ x

    assert tuning.fastest("some", [2, 1, 0], call) == 1
    (file,) = tmp_path.glob("gpu/*.json")
    assert json.loads(file.read_text()) == {"some": "1"}
    file.write_text("{")
    tuning._found.cache_clear()
    assert tuning.found() == {}
    tuning._found.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_threads_record_one_after_the_other() -> None:
    def recorded(seed: int) -> str | None:
        weight, graphs = normal(64, 64, seed=seed), Graphs(lambda batch: batch["x"] @ weight)
        for rows in [*range(1, 60)] * 2:
            x = normal(rows, 64, seed=rows)
            assert distance(graphs({"x": x}), x @ weight) < 1e-3
        return graphs.refused

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(recorded, range(4))) == [None] * 4


@needs_native  # else nothing runs fused on the CPU, and a model that began there stays with its modules
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@torch.inference_mode()
def test_a_model_that_moves_after_its_first_call_runs_whole_on_each_device(tmp_path: Path) -> None:
    model: Any = packed(tmp_path, save_tiny_bert, hidden_size=128, intermediate_size=256).cpu()
    kernels.use_backend(model, "auto")
    ids = torch.randint(5, 40, (3, 9), generator=seeded())
    wanted, first = model(input_ids=ids).last_hidden_state, type(model.forward)
    on_card = model.cuda()(input_ids=ids.cuda()).last_hidden_state
    assert isinstance(model.forward, GpuForward)
    assert model.forward._encoder is not None
    assert distance(on_card.cpu(), wanted) < 0.06
    assert torch.equal(model.cpu()(input_ids=ids).last_hidden_state, wanted)
    assert type(model.forward) is first
