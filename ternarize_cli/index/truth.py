"""Queries with their true neighbours, stored with an index so that recall can be measured without the vectors.

The neighbours are found while the index is built, by comparing each query with all vectors. Queries are the user's, or
documents drawn at random. A query that is a document, too, does not count as its own neighbour (`queries.own_rows`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth

from ternarize_cli.errors import DataError
from ternarize_cli.storage.arrays import read_npz

__all__ = ["DEPTH", "QUERIES", "Truth", "find_truth", "read_truth", "recall", "without_own"]

QUERIES = 1000
"""Number of documents that are drawn as queries."""
DEPTH = 100
"""Number of neighbours that are stored for each query."""
_ENOUGH = 10
_ARRAYS = {"queries": (np.float32, 2), "own": (np.int64, 1), "neighbours": (np.int64, 2), "scores": (np.float32, 2)}


@dataclass(frozen=True)
class Truth:
    """Queries and their true neighbours.

    Attributes:
        queries: float32 `[queries, dim]`.
        own: int64 `[queries]`, the row of the document that is the query itself, or -1.
        neighbours: int64 `[queries, up to DEPTH]`, rows of the nearest vectors, nearest first, without `own`.
        scores: float32 `[queries, up to DEPTH]`, inner products or squared distances of the neighbours.
    """

    queries: np.ndarray
    own: np.ndarray
    neighbours: np.ndarray
    scores: np.ndarray

    def write(self, path: Path) -> None:
        """Writes an .npz file."""
        with path.open("wb") as stream:
            np.savez(stream, queries=self.queries, own=self.own, neighbours=self.neighbours, scores=self.scores)

    def joined(self, other: "Truth", metric: int, *, all_of: int) -> "Truth":
        """Joins the neighbours of these queries with those among added vectors, and keeps the nearest of both.

        If deletions have left fewer neighbours than DEPTH, the result has no more than these.

        Args:
            other: the neighbours of these queries among the added vectors.
            metric: faiss.METRIC_INNER_PRODUCT or faiss.METRIC_L2.
            all_of: number of vectors among which the neighbours in `self` were found.
        """
        known = self.neighbours.shape[1]
        depth = DEPTH if known >= all_of - int((self.own >= 0).all()) else known
        scores = np.hstack([self.scores, other.scores])
        rows = np.hstack([self.neighbours, other.neighbours])
        nearest = -scores if metric == faiss.METRIC_INNER_PRODUCT else scores
        order = np.argsort(nearest, axis=1, kind="stable")[:, :depth]
        return Truth(self.queries, self.own, np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))

    def without(self, dead: np.ndarray) -> "Truth":
        """Removes deleted rows from the neighbours.

        Queries that then know fewer than 10 neighbours are removed, too, unless none knows more. The lists of the
        others are cut to the length of the shortest, because all have one length.

        Args:
            dead: int64 `[deleted]`, the deleted rows.
        """
        if not len(dead):
            return self
        live = ~np.isin(self.neighbours, dead)
        order = np.argsort(~live, axis=1, kind="stable")
        count = live.sum(axis=1)
        kept = count >= min(_ENOUGH, count.max(initial=0))
        width = int(count[kept].min()) if kept.any() else 0
        rows, scores = (np.take_along_axis(a, order, 1)[kept, :width] for a in (self.neighbours, self.scores))
        return Truth(self.queries[kept], np.where(np.isin(self.own, dead), -1, self.own)[kept], rows, scores)


def read_truth(path: Path, *, count: int | None = None, dim: int | None = None) -> Truth:
    """Reads what `Truth.write` wrote.

    Args:
        path: the .npz file.
        count: number of vectors in the index, which bounds the rows of neighbours; None does not check them.
        dim: number of dimensions of the queries; None does not check it.

    Raises:
        DataError: the file is damaged, an array has the wrong shape or dtype, or a row is out of range.
    """
    found = read_npz(path, DataError, _ARRAYS)
    wrong = _fault(found, np.iinfo(np.int64).max if count is None else count, dim)
    if wrong is not None:
        raise DataError(f"{path} is damaged: {wrong}", hint="build the index again")
    return Truth(**found)


def _fault(found: Mapping[str, np.ndarray], count: int, dim: int | None) -> str | None:
    """Says what is wrong with the arrays of a truth file; None if nothing is."""
    queries, own, neighbours = found["queries"], found["own"], found["neighbours"]
    for name, (dtype, dimensions) in _ARRAYS.items():
        array = found[name]
        if array.dtype != dtype or array.ndim != dimensions:
            return f"{name} is {array.dtype} of {array.ndim} dimensions, not {np.dtype(dtype)} of {dimensions}"
        if len(array) != len(queries):
            return f"{name} has {len(array)} rows for {len(queries)} queries"
    if neighbours.shape != found["scores"].shape:
        return f"neighbours have the shape {neighbours.shape}, and scores {found['scores'].shape}"
    if dim is not None and len(queries) and queries.shape[1] != dim:
        return f"queries have {queries.shape[1]} dimensions, not {dim}"
    if not np.isfinite(queries).all() or not np.isfinite(found["scores"]).all():
        return "a query or a score is not finite"
    for name, rows, least in (("own", own, -1), ("neighbours", neighbours, 0)):
        if rows.size and not least <= rows.min() <= rows.max() < count:
            return f"{name} has rows from {rows.min()} to {rows.max()}, and the index has {count} vectors"
    return None


def find_truth(
    queries: np.ndarray, own: np.ndarray, vectors: Iterable[np.ndarray], count: int, metric: int = faiss.METRIC_L2
) -> Truth:
    """Finds the true neighbours of each query by comparing it with every vector.

    Args:
        queries: float32 `[queries, dim]`.
        own: int64 `[queries]`, the row of the document that is the query itself, or -1.
        vectors: all vectors in order, in blocks of float32 `[rows, dim]`.
        count: number of all vectors.
        metric: faiss.METRIC_INNER_PRODUCT or faiss.METRIC_L2.
    """
    depth = min(DEPTH, count - int((own >= 0).any()))
    if depth < 1 or not len(queries):
        return Truth(queries[:0], own[:0], np.zeros((0, 0), np.int64), np.zeros((0, 0), np.float32))
    scores, found = knn_ground_truth(queries, vectors, min(depth + 1, count), metric)
    others = np.argsort(found == own[:, None], axis=1, kind="stable")[:, :depth]
    return Truth(queries, own, np.take_along_axis(found, others, 1), np.take_along_axis(scores, others, 1))


def without_own(found: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """Removes the query itself from each row of `found` `[queries, more than k]`, and keeps the first `k`."""
    others = np.argsort(found == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, others, axis=1)[:, :k]


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Recall@k: the share of the true neighbours (`true`, `[queries, k]`) that are in `found` `[queries, k]`."""
    hits = (found[:, :, None] == true[:, None, :]).any(axis=1)
    return float(hits.mean()) if hits.size else 1.0
