"""The arithmetic: rules, codes, activations, the exact product."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ternarize_cli.arithmetic import ternary
from ternarize_cli.errors import InputError
from ternarize_cli.format.scheme import LEVELS, Scheme

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


# ---- the other grids


@pytest.mark.parametrize(
    ("levels", "numbers", "codes"),
    [
        ("ternary", [0.5, -0.5, 0.51, 1.5, 9.0], [0, 0, 1, 1, 1]),
        ("binary", [0.0, -0.0, -1e-30, 1e-30, -9.0], [1, 1, -1, 1, -1]),
        ("int2", [0.0, 2.0, -2.0, 1.99, -2.01, 99.0, -99.0], [1, 3, -1, 1, -3, 3, -3]),
        ("int4", [0.5, 1.5, -1.5, 7.6, -8.4, 99.0, -99.0], [0, 2, -2, 7, -8, 7, -8]),
    ],
)
def test_rounding_takes_the_nearest_code_and_its_ties_are_fixed(
    levels: str, numbers: list[float], codes: list[int]
) -> None:
    assert ternary.round_to_levels(torch.tensor(numbers), levels).tolist() == codes


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(list(LEVELS)), st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20))
def test_no_code_is_nearer_than_the_one_taken(levels: str, numbers: list[float]) -> None:
    x = torch.tensor(numbers)
    codes = ternary.round_to_levels(x, levels)
    distances = (x[:, None].double() - torch.tensor(LEVELS[levels]).double()).abs()
    assert set(codes.tolist()) <= set(LEVELS[levels])
    assert torch.equal((x.double() - codes.double()).abs(), distances.amin(dim=1))


@pytest.mark.parametrize(("levels", "code"), [("ternary", 0), ("binary", 1), ("int2", 1), ("int4", 0)])
def test_a_zero_scale_has_one_code(levels: str, code: int) -> None:
    codes = ternary.codes_of(torch.tensor([[5.0, -5.0, 0.0, 1e30]]), torch.tensor([[0.0]]), levels)
    assert codes.tolist() == [[code] * 4]
    assert ternary.scale_of(torch.zeros(2, 3), Scheme(levels=levels)).tolist() == [[0.0], [0.0]]


def grid_error(row: Tensor, scale: Tensor, levels: str) -> float:
    codes = ternary.codes_of(row[None], scale.reshape(1, 1), levels)
    return float((row[None].double() - codes.double() * scale.double()).square().sum())


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["binary", "int2"]), rows)
def test_the_binary_and_int2_scales_are_the_best_of_all(levels: str, numbers: list[float]) -> None:
    row = torch.tensor(numbers)
    magnitude, best = row.double().abs(), float("inf")
    for threshold in [*magnitude.unique(), float("inf")] if levels == "int2" else [float("inf")]:
        code = torch.where(magnitude >= threshold, 3.0, 1.0).double()
        scale = (magnitude * code).sum() / code.square().sum()
        best = min(best, float((magnitude - scale * code).square().sum()))
    got = grid_error(row, ternary.scale_of(row[None], Scheme(levels=levels)), levels)
    assert got <= best + 1e-6 * float(magnitude.square().sum()) + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("size", "excess"), [(16, 1.06), (64, 1.03), (1000, 1.01)])
def test_the_int4_scale_is_nearly_the_best_of_a_fine_grid(size: int, excess: float) -> None:
    blocks = torch.randn(20, size, generator=torch.Generator().manual_seed(size))
    clips = torch.linspace(0.1, 1.2, 1500).unsqueeze(1) / 7.5
    scale, found, best = ternary.int4_scale(blocks), 0.0, 0.0
    for row, s in zip(blocks, scale, strict=True):
        tried = ternary.round_to_levels(row / (clips * row.abs().max()), "int4")
        refitted = (tried * row).sum(dim=1) / tried.square().sum(dim=1)
        best += min(grid_error(row, r, "int4") for r in refitted[::3])
        found += grid_error(row, s, "int4")
    assert found <= excess * best


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**31))
def test_an_int4_scale_does_not_depend_on_other_blocks(size: int, count: int, seed: int) -> None:
    blocks = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(torch.cat([ternary.int4_scale(block[None]) for block in blocks]), ternary.int4_scale(blocks))


def test_more_levels_fit_better() -> None:
    weight = torch.randn(8, 96, generator=torch.Generator().manual_seed(3))
    errors = []
    for levels in ("binary", "ternary", "int2", "int4"):
        scale = ternary.scale_of(weight, Scheme(levels=levels))
        errors.append(float((weight - ternary.dequantize(ternary.codes_of(weight, scale, levels), scale)).norm()))
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("width", [16_512, 16_513, 33_100])
def test_sums_of_wide_int4_layers_are_exact(width: int) -> None:
    codes = torch.full((1, width), -8)
    codes[0, -1] = 7
    y = ternary.ternary_linear(torch.full((1, width), 127.0), codes, torch.ones(1), None)
    assert float(y) == float(torch.tensor(127.0 * (7 - 8 * (width - 1)), dtype=torch.float64).float())


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
        {"levels": "int3"},
        {"levels": "int2", "rule": "absmean"},
    ],
)
def test_a_scheme_refuses_what_it_does_not_know(arguments: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Scheme(**arguments)  # type: ignore[arg-type]


def test_a_beta_without_the_rule_absmean_is_refused() -> None:
    with pytest.raises(
        InputError, match="beta is the threshold of the rule absmean, and the rule is optimal"
    ) as caught:
        Scheme(beta=2.0)
    assert caught.value.hint == "--rule absmean, or no --beta"
    assert Scheme("absmean") == Scheme("absmean", 2.0) != Scheme("absmean", 1.5)


@pytest.mark.parametrize("beta", [0, -1, 1000, float("nan")])
def test_a_beta_that_is_no_threshold_is_refused(beta: float) -> None:
    with pytest.raises(InputError, match="it must be above 0 and below 1000"):
        Scheme("absmean", beta)
