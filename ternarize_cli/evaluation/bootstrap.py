"""Computes 95% intervals of scores by a paired bootstrap over the items of a task.

A task's items (queries, pairs, texts) are a sample of all possible items. Drawing as many of them again, with
repetition, shows how much a score depends on the sample (Efron 1979). The interval holds the middle 95% of the scores
over many draws (the percentile method).

Retention is a ratio of two scores on the *same* items. Both are computed from the same draw:

    draw        items 4 1 4 0 …
    student     score of 4 1 4 0 …  ┐
    teacher     score of 4 1 4 0 …  ┴─▶  student / teacher

An item that is hard for one model is mostly hard for the other, so most of the noise cancels, and a ratio is known
better than either score. The interval of a mean over tasks comes from the means over their draws. Tasks with equally
many items share their draws: they may consist of the same items (images scored twice, texts with and without typos),
which must then be drawn together; for unrelated items a shared draw does no harm.

A draw is stored as the number of times that it has each item. Items are sorted once; a running sum of these numbers in
sorted order gives the ranks in every draw, so that nothing is sorted again.

A score or ratio of a draw may be undefined: all pairs are alike, none is relevant, or the teacher scores zero or less.
If this happens in more than one draw in twenty, there is no interval.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ternarize_cli.evaluation.samples import Samples

__all__ = ["interval", "mean_retention_interval", "retention_interval"]

Bounds = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]
"""A function from the counts of items in each draw, [draws, items], to a score for each draw, [draws]."""

_LEVEL = 0.95
_AT_ONCE = 1_000_000
"""The most items drawn at once, over several resamples, which bounds memory."""


def interval(samples: Samples, *, resamples: int = 1000, seed: int = 0) -> Bounds | None:
    """Computes the 95% interval of a single score.

    Args:
        samples: the items behind the score.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        The bounds, low and high; None with fewer than two items, or if too many draws leave the score undefined.
    """
    return _bounds(_scores([samples], resamples, seed)[0])


def retention_interval(student: Samples, teacher: Samples, *, resamples: int = 1000, seed: int = 0) -> Bounds | None:
    """Computes the 95% interval of student / teacher on the same items.

    Args:
        student, teacher: the items behind the two scores.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        The bounds, low and high; None with fewer than two items, or if too many draws leave the ratio undefined.

    Raises:
        ValueError: the two are not scores of the same items.
    """
    return _bounds(_retentions(student, teacher, resamples, seed))


def mean_retention_interval(
    pairs: Sequence[tuple[Samples, Samples]], *, resamples: int = 1000, seed: int = 0
) -> Bounds | None:
    """Computes the 95% interval of the mean retention over several tasks.

    Args:
        pairs: for each task, the items behind the student's and the teacher's score.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        The bounds, low and high; None without tasks, or if a task has fewer than two items or too many undefined draws.
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
    retention: np.ndarray = kept / np.where(whole > 0, whole, np.nan)
    return retention


def _scores(models: Sequence[Samples], resamples: int, seed: int) -> np.ndarray:
    """Computes the scores of all models on the same draws: [models, resamples]; NaN where a score is undefined."""
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
    """Spearman's correlation: Pearson's correlation of the ranks, with ties at their mean rank."""
    assert samples.gold is not None
    of_values, of_gold = _ranks(samples.values), _ranks(samples.gold)

    def statistic(counts: np.ndarray) -> np.ndarray:
        a, b = of_values(counts), of_gold(counts)
        weighted = counts * a
        correlations: np.ndarray = (weighted * b).sum(1) / np.sqrt((weighted * a).sum(1) * (counts * b * b).sum(1))
        return correlations

    return statistic


def _ranks(values: np.ndarray) -> Statistic:
    """Makes a function from counts [draws, items] to each item's rank in each draw, minus the mean rank."""
    order, starts, group = _ties(values)

    def ranks(counts: np.ndarray) -> np.ndarray:
        tied = np.add.reduceat(counts[:, order], starts, axis=1)
        middle = np.cumsum(tied, axis=1) - tied / 2
        return middle[:, group] - len(values) / 2

    return ranks


def _average_precision(samples: Samples) -> Statistic:
    """Average precision, as in scikit-learn: the sum over thresholds of precision times gained recall."""
    gold = samples.gold
    assert gold is not None
    order, starts, _ = _ties(-samples.values)

    def statistic(counts: np.ndarray) -> np.ndarray:
        relevant = np.add.reduceat((counts * gold)[:, order], starts, axis=1)
        hits = np.cumsum(relevant, axis=1)
        found = np.cumsum(np.add.reduceat(counts[:, order], starts, axis=1), axis=1)
        precision: np.ndarray = (relevant * hits / np.maximum(found, 1)).sum(1) / hits[:, -1]
        return precision

    return statistic


def _ties(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorts values; returns the order, the start of each distinct value in it, and each item's distinct value."""
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return np.argsort(values, kind="stable"), np.cumsum(sizes) - sizes, group


_STATISTICS: dict[str, Callable[[Samples], Statistic]] = {
    "mean": _mean,
    "spearman": _spearman,
    "average_precision": _average_precision,
}
