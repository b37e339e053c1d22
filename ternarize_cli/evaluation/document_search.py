"""Searches the documents of a retrieval task by their vectors, and measures what is found.

    precision@10   number of relevant documents among the ten found, divided by ten
    nDCG@10        Σ gradeᵢ / log₂(i + 1) over the ranks i = 1 … 10, divided by the largest possible sum

Both are those of trec_eval. A query that is a document, too, does not find itself (`retrieval`).
"""

from collections.abc import Mapping, Sequence

import faiss
import numpy as np
from pytrec_eval import RelevanceEvaluator

from ternarize_cli.evaluation.retrieval import Retrieval

__all__ = ["K", "exact_index", "grades_of", "own_rows", "precision_and_ndcg", "search"]

K = 10
"""Number of documents that a search finds."""


def exact_index(vectors: np.ndarray) -> faiss.Index:
    """Makes an index that compares a query with every row of `vectors`, float32 `[documents, dim]` (inner product)."""
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return index


def search(index: faiss.Index, queries: np.ndarray, own: np.ndarray | None = None) -> np.ndarray:
    """Searches K rows for each query.

    Args:
        index: an index that is filled.
        queries: float32 `[queries, dim]`.
        own: int `[queries]`, a row that each query must not find, -1 for none; None if there is no such row.

    Returns:
        Rows of the index, best first, int64 `[queries, up to K]`; -1 where there are no more.
    """
    if own is None:
        return index.search(queries, min(K, index.ntotal))[1]
    found = index.search(queries, min(K + 1, index.ntotal))[1]
    others = np.argsort(found == own[:, None], axis=1, kind="stable")  # the own row last
    return np.take_along_axis(np.where(found == own[:, None], -1, found), others, axis=1)[:, :K]


def precision_and_ndcg(found: np.ndarray, grades: Sequence[Mapping[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Computes the precision@10 and the nDCG@10 of each query, both float64 `[queries]`.

    Args:
        found: the rows that a search found, best first, int `[queries, up to K]`; -1 where it found none.
        grades: for each query, a dict from the rows of documents that answer it to their grades, above 0.
    """
    truth = {str(i): {str(row): grade for row, grade in good.items()} for i, good in enumerate(grades)}
    run = {
        str(i): {str(row): float(-rank) for rank, row in enumerate(rows) if row >= 0} for i, rows in enumerate(found)
    }
    scored = RelevanceEvaluator(truth, {f"P.{K}", f"ndcg_cut.{K}"}).evaluate(run)
    precision, ndcg = (
        np.array([scored[str(i)][f"{name}_{K}"] for i in range(len(found))]) for name in ("P", "ndcg_cut")
    )
    return precision, ndcg


def own_rows(data: Retrieval) -> np.ndarray | None:
    """The row of the document that each query is itself, int `[queries]`, -1 if none; None if no query is one."""
    if not data.among_documents:
        return None
    rows = {record["id"]: row for row, record in enumerate(data.corpus)}
    return np.array([rows.get(query, -1) for query in data.queries])


def grades_of(data: Retrieval) -> list[dict[int, int]]:
    """Maps, for each query, the rows of the documents that answer it to their grades."""
    rows = {record["id"]: row for row, record in enumerate(data.corpus)}
    return [
        {rows[document]: grade for document, grade in data.relevant[query].items() if grade > 0}
        for query in data.queries
    ]
