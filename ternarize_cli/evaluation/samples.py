"""Collects the items behind a score, from which a confidence interval is computed.

MTEB writes a model's predictions (`mteb.evaluate(prediction_folder=…)`): the similarity of each pair, the documents
found for each query, the label given to each text. With the task's data they give a score for each item; all items
together give MTEB's main score, except that MTEB rounds scores of retrieval to five decimals.

    statistic            an item                                 its value
    mean                 a query, a text, an image, a draw       its own score, such as nDCG@10
    spearman             a pair of sentences                     the model's similarity; gold is the pair's score
    average_precision    a pair of sentences                     the model's similarity; gold is 1 or 0
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, f1_score

from ternarize_cli.errors import TernarizeError
from ternarize_cli.storage.bounds import read_json

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

__all__ = ["Samples", "Score", "Sides", "samples_of"]

_MAX_PREDICTIONS = 16 << 30


def _spearman(values: np.ndarray, gold: np.ndarray) -> float:
    return float(spearmanr(values, gold).statistic)


def _average_precision(values: np.ndarray, gold: np.ndarray) -> float:
    return float(average_precision_score(gold, values))


_OF_PAIRS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "spearman": _spearman,
    "average_precision": _average_precision,
}


@dataclass(frozen=True)
class Samples:
    """The items behind a score.

    Attributes:
        statistic: name of the statistic that makes a score of the items; the docstring of this module lists them.
        values: float64 `[items]`.
        gold: `[items]`, the true scores or labels for a statistic of pairs; else None.
    """

    statistic: str
    values: np.ndarray
    gold: np.ndarray | None = None

    def value(self, rows: np.ndarray | None = None) -> float:
        """Computes the score of all items, or of the items at `rows`, int `[n]`, which may repeat items."""
        values = self.values if rows is None else self.values[rows]
        if self.gold is None:
            return float(values.mean())
        return _OF_PAIRS[self.statistic](values, self.gold if rows is None else self.gold[rows])


@dataclass(frozen=True)
class Sides:
    """A model's vectors of the two sides of a task, float32, in the order of the task's data.

    Attributes:
        queries: vectors of queries, or of the first sentences of pairs, `[queries, dim]`.
        documents: vectors of documents, or of the second sentences of pairs, `[documents, dim]`.
    """

    queries: np.ndarray
    documents: np.ndarray
    NAMES: ClassVar = ("queries", "documents")


@dataclass(frozen=True)
class Score:
    """A model's main score on a task: `metric` is MTEB's name for it, `size` counts pairs, queries or texts.

    `samples` are the items behind the score; None if MTEB does not write them. `vectors` are the vectors of the query
    images of an image task, [size, dim]; None for texts. `sides` are the vectors of the texts of a retrieval task or of
    scored pairs; None for other tasks, and where nobody asked for them.
    """

    task: str
    metric: str
    size: int
    value: float
    samples: Samples | None = field(default=None, repr=False, compare=False)
    vectors: np.ndarray | None = field(default=None, repr=False, compare=False)
    sides: Sides | None = field(default=None, repr=False, compare=False)


# MTEB's names of main scores, and of the similarities behind them in its predictions.
_CORRELATIONS = {
    "cosine_spearman": "cosine_scores",
    "spearman": "similarity_scores",
    "euclidean_spearman": "euclidean_distances",  # negative distances, in this task
    "manhattan_spearman": "manhattan_distances",
}
_PRECISIONS = {
    "cosine_ap": ("cosine_scores", 1),
    "similarity_ap": ("similarity_scores", 1),
    "dot_ap": ("dot_scores", 1),
    "euclidean_ap": ("euclidean_distances", -1),
    "manhattan_ap": ("manhattan_distances", -1),
}
_TREC_NAMES = {"ndcg": "ndcg_cut", "map": "map_cut", "recall": "recall", "precision": "P", "hit_rate": "success"}


def samples_of(
    task: "AbsTask", predictions: Path, split: str, subset: str, scores: Mapping[str, Any] | None = None
) -> Samples | None:
    """Collects the items behind the main score of a task that MTEB has evaluated.

    Args:
        task: the task, with its data loaded. MTEB unloads data that it loads itself, so call `task.load_data()` first.
        predictions: the folder that was MTEB's `prediction_folder`.
        split, subset: the split and subset of the task's data.
        scores: MTEB's result for this split and subset; only clustering needs it, because MTEB's predictions don't say
            which texts a draw took.

    Returns:
        The items in the order of the task's data, so that the items of two models can be paired; None if the
        predictions are missing or not enough (macro F1, cross-validation, several labels a text, …).
    """
    from mteb import abstasks  # imported here, since it takes seconds and not every caller needs it

    metric = task.metadata.main_score
    if isinstance(task, abstasks.AbsTaskClustering | abstasks.AbsTaskClusteringLegacy):
        return _of_draws(metric, scores or {})
    file = predictions / task.prediction_file_name
    if task.dataset is None or not file.is_file():
        return None
    written = read_json(file, limit=_MAX_PREDICTIONS, error=TernarizeError)
    found = written.get(subset, written.get("parallel", {})).get(split)
    data = task.dataset.get(subset, task.dataset)
    if found is None or split not in data:
        return None
    if isinstance(task, abstasks.AbsTaskSTS):
        return _of_scored_pairs(metric, found, data[split]["score"])
    if isinstance(task, abstasks.AbsTaskPairClassification):
        rows = data[split]
        labels = rows[task.label_column_name]
        return _of_labelled_pairs(metric, found, labels[0] if len(rows) == 1 else labels)  # one row: an older layout
    if isinstance(task, abstasks.AbsTaskBitextMining):
        rows = data[split]
        gold = [pair[1] for pair in rows["gold"]] if "gold" in rows else range(len(rows))
        return _of_translations(metric, found.get(subset) or found.get("sentence1-sentence2"), gold)
    if isinstance(task, abstasks.AbsTaskRetrieval):
        return _of_queries(task, metric, found, data[split])
    if isinstance(task, abstasks.AbsTaskZeroShotClassification):
        number = {text: i for i, text in enumerate(task.get_candidate_labels())}
        labels = [number.get(label, label) for label in data[split][task.label_column_name]]
        return _of_labels(metric, [np.argmax(found, axis=1)], labels)
    several = isinstance(task, abstasks.AbsTaskMultilabelClassification)
    if isinstance(task, abstasks.AbsTaskClassification) and not (several or task.is_cross_validation):
        return _of_labels(metric, found, data[split][task.label_column_name])
    return None


def _mean(values: Any) -> Samples:
    return Samples("mean", np.asarray(values, dtype=np.float64))


def _of_draws(metric: str, scores: Mapping[str, Any]) -> Samples | None:
    """Takes V-measures as items, by level (and draw) or by set of texts."""
    draws = scores.get("v_measures")
    if metric != "v_measure" or not draws:
        return None
    return _mean(list(chain.from_iterable(draws.values())) if isinstance(draws, Mapping) else draws)


def _of_scored_pairs(metric: str, found: Mapping[str, Any], gold: Sequence[float]) -> Samples | None:
    values = found.get(_CORRELATIONS.get(metric, ""))
    if values is None:
        return None
    return Samples("spearman", np.asarray(values, dtype=np.float64), np.asarray(gold, dtype=np.float64))


def _of_labelled_pairs(metric: str, found: Mapping[str, Any], labels: Sequence[int]) -> Samples | None:
    """Takes as items the values of the similarity with the largest average precision, which is MTEB's main score."""
    names = _PRECISIONS if metric == "max_ap" else {metric} & _PRECISIONS.keys()
    gold = np.asarray(labels, dtype=np.int64)
    tried = [
        Samples("average_precision", sign * np.asarray(found[key], dtype=np.float64), gold)
        for key, sign in (_PRECISIONS[name] for name in names)
    ]
    return max(tried, key=Samples.value, default=None)


def _of_translations(metric: str, found: Sequence[Mapping[str, Any]] | None, gold: Sequence[int]) -> Samples | None:
    """Takes as item of a sentence the F1 of its translation, as a class; their mean is F1 weighted by support."""
    if found is None or metric not in ("f1", "accuracy"):
        return None
    right, given = np.asarray(gold), np.asarray([neighbour["corpus_id"] for neighbour in found])
    if metric == "accuracy":
        return _mean(right == given)
    classes, place = np.unique(right, return_inverse=True)
    return _mean(f1_score(right, given, labels=classes, average=None, zero_division=0)[place])


def _of_queries(task: Any, metric: str, found: dict[str, dict[str, float]], data: Any) -> Samples | None:
    from mteb._evaluators.retrieval_metrics import calculate_retrieval_scores

    matched = re.fullmatch(rf"({'|'.join(_TREC_NAMES)})_at_(\d+)", metric)
    if matched is None:
        return None
    if task.ignore_identical_ids:
        found = {query: {d: s for d, s in ranked.items() if d != query} for query, ranked in found.items()}
    scored = calculate_retrieval_scores(found, data["relevant_docs"], [int(matched[2])], task.skip_first_result)
    name = f"{_TREC_NAMES[matched[1]]}_{matched[2]}"
    return _mean([scored.all_scores[q][name] for q in data["queries"]["id"] if q in scored.all_scores])


def _of_labels(metric: str, draws: Sequence[Sequence[Any]], labels: Sequence[Any]) -> Samples | None:
    """Takes as item of a text the share of the draws that gave it the right label."""
    if metric != "accuracy":
        return None
    right = np.asarray(list(labels))
    return _mean(np.mean([np.asarray(draw) == right for draw in draws], axis=0))
