"""Reads pairs for a cross-encoder, and scores cross-encoders by the order that their scores give.

    NAME             what the file has                        metric
    NAME             sentence1, sentence2, score              Spearman correlation of scores and the file's scores
    NAME             query, passage, score (relevance)        nDCG@10 over the passages of each query
    NAME-mrr         the same                                 reciprocal rank of the first relevant passage
    NAME             texts and a class 0, 1, …, for a model   accuracy of the label with the highest score
                     with several labels
    NAME-teacher     pairs, and a teacher is given            Spearman correlation of scores and the teacher's scores

The score may be missing if there is a teacher. Relevance above 0 counts as relevant. Metrics of rankings are those of
pytrec_eval. Scores are logits: the activation of a cross-encoder does not change their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from ternarize_cli.data.lines import digest_of, readable_file
from ternarize_cli.data.pairs import PAIR_TABLES, pair_columns, read_text_pairs
from ternarize_cli.errors import DataError, InputError, counted
from ternarize_cli.evaluation.samples import Samples, Score
from ternarize_cli.evaluation.scored_pairs import score_in

__all__ = ["RankedPairs", "read_ranked_pairs", "scores_of"]


@dataclass(frozen=True)
class RankedPairs:
    """Pairs of texts to be scored, in file order.

    Attributes:
        name: name of the task.
        path: path of the file.
        sha256: the sha256 of the file.
        first, second: the texts of each pair.
        scores: the file's score of each pair; None if it has none.
        queries: whether the first texts are queries, whose second texts are ranked.
    """

    name: str
    path: Path
    sha256: str
    first: list[str]
    second: list[str]
    scores: list[float] | None
    queries: bool
    modalities: ClassVar = frozenset({"text"})

    @property
    def size(self) -> int:
        """Number of pairs."""
        return len(self.first)

    def task_names(self, *, taught: bool) -> list[str]:
        """The names of the tasks that these pairs may be scored by; `taught` says whether there is a teacher."""
        of_file = [self.name, *([f"{self.name}-mrr"] if self.queries else [])] if self.scores is not None else []
        return [*of_file, *([f"{self.name}-teacher"] if taught else [])]


def read_ranked_pairs(path: Path, name: str) -> RankedPairs:
    """Reads pairs for a cross-encoder.

    Args:
        path: the file: CSV, TSV, JSONL or Parquet, with the columns that `data.pairs` knows.
        name: name of the task.

    Raises:
        DataError: the file is missing or empty, its columns hold no pairs, a text is empty, a score is no finite
            number, all scores are equal, or no passage of any query is relevant.
    """
    path = readable_file(path)
    columns = pair_columns(path)
    if columns is None:
        raise DataError(
            f"{path} holds no pairs of texts",
            hint=f"columns sentence1, sentence2, score or query, passage, score; {', '.join(PAIR_TABLES)}",
        )
    pairs = list(read_text_pairs(path, columns))
    scores = [score_in(pair.score, pair.where) for pair in pairs] if columns.score else None
    if scores is not None and len(set(scores)) == 1:
        raise DataError(f"{path}: every score is {scores[0]:g}, so no order is wanted", hint="use different scores")
    if scores is not None and columns.are_queries and max(scores) <= 0:
        raise DataError(f"{path}: no passage is relevant to its query", hint="relevance is a number above 0")
    texts = [pair.first for pair in pairs], [pair.second for pair in pairs]
    return RankedPairs(name, path, digest_of([path], "ranked", *columns.names), *texts, scores, columns.are_queries)


def scores_of(data: RankedPairs, found: np.ndarray, taught: np.ndarray | None = None) -> list[Score]:
    """Scores a cross-encoder on a file of pairs, by each metric that the file allows.

    Args:
        data: the pairs.
        found: the model's logits of the pairs, `[pairs]` or `[pairs, labels]`.
        taught: the teacher's logits of the pairs; None without a teacher.

    Raises:
        InputError: there are neither scores nor a teacher, or the model has another number of labels than its teacher,
            or several labels and the file's scores are not classes.
    """
    made: list[Score] = []
    if data.scores is not None:
        made += _of_file(data, found, data.scores)
    if taught is not None:
        if taught.shape != found.shape:
            raise InputError(
                f"the model gives scores {list(found.shape)} and its teacher {list(taught.shape)}",
                hint="--against is the model that this one was made of",
            )
        samples = Samples("spearman", found.ravel().astype(np.float64), taught.ravel().astype(np.float64))
        made.append(_score(f"{data.name}-teacher", "spearman", data.size, samples))
    if not made:
        raise InputError(f"{data.path} has no column of scores, and there is no teacher", hint="--against MODEL")
    return made


def _of_file(data: RankedPairs, found: np.ndarray, wanted: Sequence[float]) -> list[Score]:
    gold = np.asarray(wanted, dtype=np.float64)
    if found.ndim > 1:
        labels, given = found.shape[1], counted(found.shape[1], "label")
        if not np.isin(gold, np.arange(labels)).all():
            raise InputError(
                f"the model gives {given}, and scores in {data.path} are not classes from 0 to {labels - 1}",
                hint="the column score or label holds the number of the right label",
            )
        right = (found.argmax(axis=1) == gold).astype(np.float64)
        return [_score(data.name, "accuracy", data.size, Samples("mean", right))]
    if not data.queries:
        return [_score(data.name, "spearman", data.size, Samples("spearman", found.astype(np.float64), gold))]
    by_query = _ranking(data, found, gold)
    return [
        _score(name, metric, len(values), Samples("mean", values))
        for name, (metric, values) in zip((data.name, f"{data.name}-mrr"), by_query.items(), strict=True)
    ]


def _ranking(data: RankedPairs, found: np.ndarray, gold: np.ndarray) -> dict[str, np.ndarray]:
    """Computes nDCG@10 and the reciprocal rank of each query that has a relevant passage, in the file's order."""
    import pytrec_eval

    run: dict[str, dict[str, float]] = {}
    relevant: dict[str, dict[str, int]] = {}
    levels = {value: i for i, value in enumerate(sorted({0.0, *gold[gold > 0]}))}
    whole = bool((gold[gold > 0] == gold[gold > 0].round()).all())  # TREC's gains are whole numbers
    for i, query in enumerate(data.first):
        gain = 0 if gold[i] <= 0 else int(gold[i]) if whole else levels[gold[i]]
        run.setdefault(query, {})[str(i)] = float(found[i])
        relevant.setdefault(query, {})[str(i)] = gain
    kept = [query for query in run if any(relevant[query].values())]
    number = {query: str(i) for i, query in enumerate(kept)}
    evaluator = pytrec_eval.RelevanceEvaluator({number[q]: relevant[q] for q in kept}, {"ndcg_cut.10", "recip_rank"})
    results = evaluator.evaluate({number[q]: run[q] for q in kept})
    of = {"ndcg_at_10": "ndcg_cut_10", "mrr": "recip_rank"}
    return {name: np.array([results[number[q]][key] for q in kept]) for name, key in of.items()}


def _score(task: str, metric: str, size: int, samples: Samples) -> Score:
    value = samples.value()
    return Score(task, metric, size, value if np.isfinite(value) else 0.0, samples)
