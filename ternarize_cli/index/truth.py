"""Queries whose true neighbours are known, kept beside an index so that it can be judged and tuned without its vectors.

They are found while the vectors are at hand, by comparing each query with all of them. Queries are the user's, or
documents drawn at random; such a document does not count as its own neighbour.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from faiss.contrib.exhaustive_search import knn_ground_truth

from ternarize_cli.errors import DataError

__all__ = ["DEPTH", "QUERIES", "Truth", "find_truth", "read_truth", "recall", "without_own"]

QUERIES = 1000
"""How many documents are drawn as queries."""
DEPTH = 100
"""How many neighbours of each query are kept."""


@dataclass(frozen=True)
class Truth:
    """Queries and their neighbours.

    Attributes:
        queries: float32 `[queries, dim]`.
        own: int64 `[queries]`, the row of the document that the query is, or -1.
        neighbours: int64 `[queries, up to DEPTH]`, rows of the nearest vectors, nearest first, `own` left out.
    """

    queries: np.ndarray
    own: np.ndarray
    neighbours: np.ndarray

    def write(self, path: Path) -> None:
        """Writes an .npz file."""
        with path.open("wb") as stream:
            np.savez(stream, queries=self.queries, own=self.own, neighbours=self.neighbours)


def read_truth(path: Path) -> Truth:
    """Reads what `Truth.write` wrote.

    Raises:
        DataError: it is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return Truth(stored["queries"], stored["own"], stored["neighbours"])
    except (OSError, ValueError, KeyError, EOFError) as e:
        raise DataError(f"{path} is damaged: {e}", hint="build the index again") from e


def find_truth(
    queries: np.ndarray, own: np.ndarray, vectors: Iterable[np.ndarray], count: int, metric: int = faiss.METRIC_L2
) -> Truth:
    """Compares every query with every vector.

    Args:
        queries, own: as in `Truth`.
        vectors: all vectors in order, float32 `[rows, dim]` at a time.
        count: of all vectors.
        metric: faiss.METRIC_INNER_PRODUCT or faiss.METRIC_L2.
    """
    depth = min(DEPTH, count - int((own >= 0).any()))
    if depth < 1 or not len(queries):
        return Truth(queries[:0], own[:0], np.zeros((0, 0), np.int64))
    _, found = knn_ground_truth(queries, vectors, min(depth + 1, count), metric)
    return Truth(queries, own, without_own(found, own, depth))


def without_own(found: np.ndarray, own: np.ndarray, k: int) -> np.ndarray:
    """The first `k` of each row of `found` `[queries, more than k]` that are not the query itself."""
    others = np.argsort(found == own[:, None], axis=1, kind="stable")
    return np.take_along_axis(found, others, axis=1)[:, :k]


def recall(found: np.ndarray, true: np.ndarray) -> float:
    """Recall@k: the share of the true neighbours `[queries, k]` that are among those found `[queries, k]`."""
    hits = (found[:, :, None] == true[:, None, :]).any(axis=1)
    return float(hits.mean()) if hits.size else 1.0
