"""The arithmetic: rules, codes, activations, the exact product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ternarize_cli import ternary
from ternarize_cli.errors import InputError
from ternarize_cli.scheme import Scheme

ROW, TENSOR = Scheme(), Scheme(granularity="tensor")


def squared_error(row: Tensor, scale: Tensor) -> float:
    codes = ternary.codes_of(row[None], scale.reshape(1, 1))
    return float((row[None].double() - codes.double() * scale.double()).square().sum())


def brute_force_error(row: Tensor) -> float:
    """The least error over every support that a threshold can select, each with its own best scale."""
    magnitude = row.double().abs()
    errors = [float(magnitude.square().sum())]
    for threshold in magnitude.unique():
        chosen = magnitude >= threshold
        scale = magnitude[chosen].mean()
        errors.append(float((magnitude[chosen] - scale).square().sum() + magnitude[~chosen].square().sum()))
    return min(errors)


values = st.floats(-100, 100, width=32, allow_nan=False)
rows = st.one_of(
    st.lists(values, min_size=1, max_size=24),
    st.lists(st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.5, 2.0]), min_size=1, max_size=24),  # ties and zeros
    st.builds(lambda v, n: [v] * n, values, st.integers(1, 12)),
)


@settings(max_examples=300, deadline=None)
@given(rows)
def test_optimal_is_the_best_over_all_thresholds(numbers: list[float]) -> None:
    row = torch.tensor(numbers)
    best = brute_force_error(row)
    got = squared_error(row, ternary.scale_of(row[None], ROW))
    assert got <= best + 1e-6 * float(row.double().square().sum()) + 1e-12


@pytest.mark.parametrize(
    ("row", "scale"),
    [([0.0, 0.0], 0.0), ([3.0], 3.0), ([-2.0, 2.0, 0.0], 2.0), ([5.0, 0.1], 5.0), ([1.0, 1.0, 0.6], 2.6 / 3)],
)
def test_optimal_scale_of_small_rows(row: list[float], scale: float) -> None:
    assert float(ternary.scale_of(torch.tensor([row]), ROW)) == pytest.approx(scale)


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("rule", ["optimal", "absmean"])
def test_a_weight_that_is_not_finite_is_refused(bad: float, rule: str) -> None:
    with pytest.raises(ValueError, match="not finite"):
        ternary.scale_of(torch.tensor([[1.0, bad]]), Scheme(rule=rule))


def test_absmean_is_beta_times_the_mean_magnitude_of_the_tensor() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.0, 4.0]])
    scheme = Scheme(rule="absmean", beta=0.5, granularity="tensor")
    scale = ternary.scale_of(weight, scheme)
    assert scale.tolist() == [1.0]
    assert ternary.codes_of(weight, scale).tolist() == [[1, -1], [0, 1]]


def test_codes_round_half_to_even_and_clip() -> None:
    weight = torch.tensor([[0.5, -0.5, 0.51, 1.5, 9.0, -9.0]])
    assert ternary.codes_of(weight, torch.tensor([[1.0]])).tolist() == [[0, 0, 1, 1, 1, -1]]


@pytest.mark.parametrize(
    ("granularity", "group", "shape"), [("tensor", None, (1,)), ("row", None, (3, 1)), ("group", 4, (3, 2))]
)
def test_scales_have_the_shape_of_the_format(granularity: str, group: int | None, shape: tuple[int, ...]) -> None:
    weight = torch.randn(3, 8)
    scale = ternary.scale_of(weight, Scheme(granularity=granularity, group_size=group))
    assert scale.shape == shape
    assert ternary.codes_of(weight, scale).shape == weight.shape


def test_finer_scales_never_fit_worse() -> None:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1))
    errors = []
    for granularity, group in (("tensor", None), ("row", None), ("group", 16)):
        scale = ternary.scale_of(weight, Scheme(granularity=granularity, group_size=group))
        errors.append(float((weight - ternary.dequantize(ternary.codes_of(weight, scale), scale)).norm()))
    assert errors[0] >= errors[1] >= errors[2]


def test_groups_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="groups of 5 do not divide 8 inputs"):
        ternary.scale_of(torch.randn(2, 8), Scheme(granularity="group", group_size=5))


def test_activations_are_int8_per_token_and_a_zero_token_stays_zero() -> None:
    x = torch.tensor([[127.0, -64.0, 0.4], [0.0, 0.0, 0.0]])
    q, t = ternary.quantize_tokens(x)
    assert q.tolist() == [[127, -64, 0], [0, 0, 0]]
    assert t.flatten().tolist() == [1.0, 0.0]


@pytest.mark.parametrize("scale_shape", [(1,), (5, 1), (5, 3)])
def test_ternary_linear_is_the_integer_product_times_the_scales(scale_shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(4, 12, generator=generator)
    codes = torch.randint(-1, 2, (5, 12), generator=generator)
    scale, bias = torch.rand(scale_shape, generator=generator), torch.randn(5, generator=generator)
    q, t = ternary.quantize_tokens(x)
    wide = ternary.expand_scale(scale, 5, 12).double().expand(5, 12)
    expected = (q.double() @ (codes.double() * wide).T) * t.double() + bias.double()
    got = ternary.ternary_linear(x, codes, scale, bias)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


def test_rows_of_a_table_keep_their_sign_and_their_largest_value() -> None:
    q, scale = ternary.quantize_rows(torch.tensor([[1.27, -0.635], [0.0, 0.0]]))
    assert scale.dtype == torch.float16
    assert q.tolist() == [[127, -64], [0, 0]] or q.tolist() == [[127, -63], [0, 0]]


@pytest.mark.parametrize(
    "arguments",
    [
        {"rule": "best"},
        {"beta": 0.0},
        {"granularity": "column"},
        {"granularity": "group"},
        {"group_size": 4},
        {"activation_bits": 4},
        {"table_bits": 3},
    ],
)
def test_a_scheme_refuses_what_it_does_not_know(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Scheme(**arguments)  # type: ignore[arg-type]
