"""How sure a score is: 95% intervals from a paired bootstrap over the items of a task.

A task's items (queries, pairs, texts) are a sample of all that could have been asked. Drawing as many of them again,
with repetition, shows how much a score depends on which were asked (Efron 1979). The interval holds the middle 95% of
the scores over many draws, which is the percentile method.

Retention is a ratio of two scores on the *same* items. Both are computed from the same draw:

    draw        items 4 1 4 0 …
    student     score of 4 1 4 0 …  ┐
    teacher     score of 4 1 4 0 …  ┴─▶  student / teacher

What makes an item hard makes it hard for both, so most of the noise cancels, and a ratio is known better than either
score. A mean over tasks is bounded by the means over their draws. Tasks of the same number of items share their draws:
they may be made of the same items (images scored twice, texts with and without typos), whose luck is then the same; and
where they are not, a shared draw means nothing.

A draw is kept as how often it has each item. Items are sorted once; with the counts in that order a running sum gives
the ranks of every draw, so that nothing is sorted again.

A draw may leave a score or ratio undefined: all pairs alike, no relevant one, a teacher that scores zero or less. Where
more than one draw in twenty does, there is no interval.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ternarize_cli.evaluation.samples import Samples

__all__ = ["interval", "mean_retention_interval", "retention_interval"]

Bounds = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]
"""How often each draw has each item, [draws, items] → a score for each draw, [draws]."""

_LEVEL = 0.95
_AT_ONCE = 1_000_000
"""Items drawn at once, over several resamples: it bounds memory."""


def interval(samples: Samples, *, resamples: int = 1000, seed: int = 0) -> Bounds | None:
    """The 95% interval of a single score.

    Args:
        samples: the items behind the score.
        resamples: draws.
        seed: of the draws.

    Returns:
        low and high; None with fewer than two items, or where too many draws leave the score undefined.
    """
    return _bounds(_scores([samples], resamples, seed)[0])


def retention_interval(student: Samples, teacher: Samples, *, resamples: int = 1000, seed: int = 0) -> Bounds | None:
    """The 95% interval of student / teacher on the same items; args and returns as `interval`.

    Raises:
        ValueError: the two are not scores of the same items.
    """
    return _bounds(_retentions(student, teacher, resamples, seed))


def mean_retention_interval(
    pairs: Sequence[tuple[Samples, Samples]], *, resamples: int = 1000, seed: int = 0
) -> Bounds | None:
    """The 95% interval of the mean of the retentions of several tasks, each a pair of student and teacher.

    Args and returns as `interval`; None also without any task.
    """
    if not pairs:
        return None
    draws = [_retentions(student, teacher, resamples, seed) for student, teacher in pairs]
    return _bounds(np.mean(draws, axis=0))


def _retentions(student: Samples, teacher: Samples, resamples: int, seed: int) -> np.ndarray:
    alike = student.statistic == teacher.statistic and student.values.shape == teacher.values.shape
    golds = [samples.gold if samples.gold is not None else np.empty(0) for samples in (student, teacher)]
    if not alike or not np.array_equal(golds[0], golds[1]):
        raise ValueError("student and teacher are not scored on the same items")
    kept, whole = _scores([student, teacher], resamples, seed)
    return kept / np.where(whole > 0, whole, np.nan)


def _scores(models: Sequence[Samples], resamples: int, seed: int) -> np.ndarray:
    """The scores of each draw, the same draws for all models: [models, resamples]; NaN where one is undefined."""
    items = len(models[0].values)
    if items < 2:
        return np.full((len(models), resamples), np.nan)
    statistics = [_STATISTICS[samples.statistic](samples) for samples in models]
    generator = np.random.default_rng(seed)
    scores = []
    step = max(1, _AT_ONCE // items)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        rows = generator.integers(items, size=(draws, items)) + items * np.arange(draws)[:, None]
        counts = np.bincount(rows.ravel(), minlength=draws * items).reshape(draws, items).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.append([statistic(counts) for statistic in statistics])
    return np.concatenate(scores, axis=1)


def _bounds(draws: np.ndarray) -> Bounds | None:
    defined = draws[np.isfinite(draws)]
    if len(defined) < _LEVEL * len(draws):
        return None
    low, high = np.quantile(defined, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def _mean(samples: Samples) -> Statistic:
    return lambda counts: counts @ samples.values / len(samples.values)


def _spearman(samples: Samples) -> Statistic:
    """Pearson's correlation of the ranks, ties at their mean rank."""
    assert samples.gold is not None
    of_values, of_gold = _ranks(samples.values), _ranks(samples.gold)

    def statistic(counts: np.ndarray) -> np.ndarray:
        a, b = of_values(counts), of_gold(counts)
        weighted = counts * a
        return (weighted * b).sum(1) / np.sqrt((weighted * a).sum(1) * (counts * b * b).sum(1))

    return statistic


def _ranks(values: np.ndarray) -> Statistic:
    """The rank of each item in each draw, minus the mean rank: [draws, items] → [draws, items]."""
    order, starts, group = _ties(values)

    def ranks(counts: np.ndarray) -> np.ndarray:
        tied = np.add.reduceat(counts[:, order], starts, axis=1)
        middle = np.cumsum(tied, axis=1) - tied / 2
        return middle[:, group] - len(values) / 2

    return ranks


def _average_precision(samples: Samples) -> Statistic:
    """The sum over thresholds of precision times gained recall, as in scikit-learn."""
    gold = samples.gold
    assert gold is not None
    order, starts, _ = _ties(-samples.values)

    def statistic(counts: np.ndarray) -> np.ndarray:
        relevant = np.add.reduceat((counts * gold)[:, order], starts, axis=1)
        hits = np.cumsum(relevant, axis=1)
        found = np.cumsum(np.add.reduceat(counts[:, order], starts, axis=1), axis=1)
        return (relevant * hits / np.maximum(found, 1)).sum(1) / hits[:, -1]

    return statistic


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ascending order of values, where in it each distinct value starts, and which of these each item has."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.argsort(values, kind="stable"), np.cumsum(sizes) - sizes, group


_STATISTICS: dict[str, Callable[[Samples], Statistic]] = {
    "mean": _mean,
    "spearman": _spearman,
    "average_precision": _average_precision,
}
