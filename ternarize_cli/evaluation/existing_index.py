"""Scores a student's queries against documents that the teacher encoded: the index that is already there.

People who have an index of the teacher's vectors can take the student for the queries alone, and encode no document
again. How well that works depends on how near the student's vectors are to the teacher's, not only on how well the
student searches its own documents.

    score     nDCG@10 of the student's queries in the teacher's documents, by exact search; in a task of scored pairs
              the Spearman correlation of the scores and the cosines between the student's vector of the first sentence
              and the teacher's of the second
    overlap   share of the ten documents (second sentences) that the teacher's queries find among the teacher's
              documents which the student's queries find there, too

Vectors are compared by cosine. Nothing is encoded for this: they are the vectors behind the two models' own scores.
"""

from dataclasses import dataclass

import numpy as np

from ternarize_cli.evaluation.bootstrap import retention_interval
from ternarize_cli.evaluation.document_search import exact_index, grades_of, own_rows, precision_and_ndcg, search
from ternarize_cli.evaluation.retrieval import Retrieval
from ternarize_cli.evaluation.samples import Samples, Sides
from ternarize_cli.evaluation.scored_pairs import Pairs
from ternarize_cli.index.truth import recall
from ternarize_cli.measuring.similarity import paired_cosines, units

__all__ = ["ExistingIndex", "existing_index"]


@dataclass(frozen=True)
class ExistingIndex:
    """The student's queries in the teacher's documents; all numbers are None if `reason` says why there are none.

    Attributes:
        of_documents: whether the task is retrieval, which the gate counts, and not pairs of sentences.
        score: nDCG@10, or the Spearman correlation of pairs.
        retention: `score` / the teacher's queries in the same documents; None if the teacher scores 0 or less.
        low, high: bounds of the retention's 95% interval; None if there are too few items.
        query_cosine, document_cosine: mean cosine of the two models' vectors of queries (first sentences) and of
            documents (second sentences).
        overlap: mean share of the teacher's ten nearest documents of a query that the student's query finds, too.
        reason: why there are no numbers.
    """

    of_documents: bool
    score: float | None = None
    retention: float | None = None
    low: float | None = None
    high: float | None = None
    query_cosine: float | None = None
    document_cosine: float | None = None
    overlap: float | None = None
    reason: str | None = None


def existing_index(data: Retrieval | Pairs, student: Sides, teacher: Sides, *, seed: int = 0) -> ExistingIndex:
    """Searches the teacher's documents by the student's queries.

    Args:
        data: the task.
        student, teacher: each model's vectors of the task's texts.
        seed: seed of the bootstrap.
    """
    of_documents = isinstance(data, Retrieval)
    widths = student.queries.shape[1], teacher.documents.shape[1]
    if widths[0] != widths[1]:
        return ExistingIndex(of_documents, reason=f"vectors of {widths[0]} numbers don't fit an index of {widths[1]}")
    asked, reference, documents = (
        units(x).astype(np.float32) for x in (student.queries, teacher.queries, teacher.documents)
    )
    if isinstance(data, Retrieval):
        index, own, grades = exact_index(documents), own_rows(data), grades_of(data)
        found = [search(index, queries, own) for queries in (asked, reference)]
        kept, whole = (Samples("mean", precision_and_ndcg(rows, grades)[1]) for rows in found)
    else:
        different = sorted({text: row for row, text in enumerate(data.second)}.values())
        found = [search(exact_index(documents[different]), queries) for queries in (asked, reference)]
        gold = np.asarray(data.scores, dtype=np.float64)
        kept, whole = (Samples("spearman", paired_cosines(x, documents), gold) for x in (asked, reference))
    score, best = kept.value(), whole.value()
    low, high = (best > 0 and retention_interval(kept, whole, seed=seed)) or (None, None)
    return ExistingIndex(
        of_documents,
        score=score,
        retention=score / best if best > 0 else None,
        low=low,
        high=high,
        query_cosine=float(paired_cosines(student.queries, teacher.queries).mean()),
        document_cosine=float(paired_cosines(student.documents, teacher.documents).mean()),
        overlap=recall(*found),
    )
