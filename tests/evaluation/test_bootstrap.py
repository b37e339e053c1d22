"""Confidence intervals: they agree with closed forms, and say nothing where nothing is known."""

import numpy as np
import pytest

from ternarize_cli.evaluation.bootstrap import interval, mean_retention_interval, retention_interval
from ternarize_cli.evaluation.samples import Samples

N = 2000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def mean(values: np.ndarray) -> Samples:
    return Samples("mean", values)


def correlated(rng: np.random.Generator, rho: float, items: int = N) -> Samples:
    gold, noise = rng.normal(size=(2, items))
    return Samples("spearman", rho * gold + np.sqrt(1 - rho**2) * noise, gold)


def width(bounds: tuple[float, float] | None) -> float:
    assert bounds is not None
    return bounds[1] - bounds[0]


# Closed forms.


def test_a_mean_of_normals_has_the_interval_of_1_96_standard_errors(rng: np.random.Generator) -> None:
    x = rng.normal(0.6, 0.2, N)
    half = 1.96 * x.std(ddof=1) / np.sqrt(N)
    assert interval(mean(x), resamples=4000) == pytest.approx((x.mean() - half, x.mean() + half), abs=0.05 * half)


def test_a_ratio_of_paired_means_has_the_interval_of_the_delta_method(rng: np.random.Generator) -> None:
    teacher = rng.normal(0.6, 0.2, N)
    student = 0.95 * teacher + rng.normal(0, 0.05, N)
    ratio = student.mean() / teacher.mean()
    half = 1.96 * (student - ratio * teacher).std(ddof=1) / (teacher.mean() * np.sqrt(N))
    found = retention_interval(mean(student), mean(teacher), resamples=4000)
    assert found == pytest.approx((ratio - half, ratio + half), abs=0.06 * half)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_spearman_has_the_interval_of_fishers_z(rng: np.random.Generator, rho: float) -> None:
    samples = correlated(rng, rho)
    r = samples.value()
    # Bonett and Wright (2000): the variance of z is (1 + r²/2) / (n - 3) for Spearman's coefficient.
    half = 1.96 * np.sqrt((1 + r**2 / 2) / (N - 3))
    low, high = np.tanh(np.arctanh(r) + np.array([-half, half]))
    assert interval(samples, resamples=4000) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_the_mean_over_tasks_has_the_error_of_independent_tasks(rng: np.random.Generator) -> None:
    pairs, variances, ratios = [], [], []
    for size in (400, 800, 1600):
        teacher = rng.normal(0.5, 0.1, size)
        student = 0.9 * teacher + rng.normal(0, 0.1, size)
        ratio = student.mean() / teacher.mean()
        pairs.append((mean(student), mean(teacher)))
        ratios.append(ratio)
        variances.append((student - ratio * teacher).var(ddof=1) / (teacher.mean() ** 2 * size))
    half = 1.96 * np.sqrt(sum(variances)) / len(pairs)
    middle = np.mean(ratios)
    found = mean_retention_interval(pairs, resamples=4000)
    assert found == pytest.approx((middle - half, middle + half), abs=0.06 * half)


def test_tasks_over_the_same_items_do_not_count_as_independent(rng: np.random.Generator) -> None:
    teacher = rng.uniform(0.4, 0.6, 500)
    pair = mean(teacher + rng.normal(0, 0.1, 500)), mean(teacher)
    assert mean_retention_interval([pair, pair]) == pytest.approx(retention_interval(*pair), abs=1e-12)


def test_nineteen_of_twenty_intervals_hold_the_truth(rng: np.random.Generator) -> None:
    held = 0
    for trial in range(200):
        low, high = interval(mean(rng.normal(0.6, 0.2, 100)), resamples=400, seed=trial) or (np.nan, np.nan)
        held += low <= 0.6 <= high
    assert 0.89 <= held / 200 <= 0.99


# Pairing and statistics.


def test_pairing_makes_a_ratio_surer_than_its_scores(rng: np.random.Generator) -> None:
    teacher = rng.uniform(0, 1, 500)
    student = 0.97 * teacher + rng.normal(0, 0.01, 500)
    paired = width(retention_interval(mean(student), mean(teacher)))
    shuffled = width(retention_interval(mean(rng.permutation(student)), mean(teacher)))
    assert paired < shuffled / 10


def test_a_model_keeps_all_of_itself(rng: np.random.Generator) -> None:
    samples = correlated(rng, 0.8, 50)
    assert retention_interval(samples, samples) == (1.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("statistic", ["spearman", "average_precision"])
def test_resampled_scores_are_the_scores_of_the_resamples(rng: np.random.Generator, statistic: str) -> None:
    values = rng.integers(0, 9, 40) / 8  # many ties
    gold = (rng.random(40) < 0.4).astype(float) if statistic == "average_precision" else rng.integers(0, 6, 40) / 1.0
    samples = Samples(statistic, values, gold)
    draws = np.random.default_rng(3).integers(0, 40, (500, 40))
    expected = np.quantile([samples.value(rows) for rows in draws], [0.025, 0.975])
    assert interval(samples, resamples=500, seed=3) == pytest.approx(tuple(expected), abs=1e-12)


def test_the_same_seed_gives_the_same_interval(rng: np.random.Generator) -> None:
    samples = correlated(rng, 0.5, 100)
    assert interval(samples, seed=1) == interval(samples, seed=1) != interval(samples, seed=2)


# Nothing to say.


def test_one_item_has_no_interval() -> None:
    assert interval(mean(np.array([0.5]))) is None
    assert interval(Samples("spearman", np.array([0.5]), np.array([1.0]))) is None
    assert mean_retention_interval([]) is None


def test_a_teacher_at_zero_leaves_retention_without_an_interval() -> None:
    teacher = mean(np.array([0.1, -0.1] * 50))
    assert retention_interval(mean(np.full(100, 0.5)), teacher) is None


def test_equal_scores_have_an_interval_of_no_width() -> None:
    assert interval(mean(np.full(10, 0.25))) == (0.25, 0.25)


def test_a_model_that_finds_all_pairs_alike_has_no_interval(rng: np.random.Generator) -> None:
    assert interval(Samples("spearman", np.ones(50), rng.normal(size=50))) is None


def test_scores_of_other_items_are_not_compared(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="not scored on the same items"):
        retention_interval(mean(np.ones(3)), mean(np.ones(4)))
    with pytest.raises(ValueError, match="not scored on the same items"):
        retention_interval(correlated(rng, 0.5, 50), correlated(rng, 0.5, 50))
