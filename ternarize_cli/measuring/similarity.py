"""Measures of similarity between two models' inner values and embeddings: pure functions of tensors and vectors.

linear CKA             ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F) of centred features X, Y, one row a token (Kornblith et al.
                       2019, arXiv 1905.00414, section 3). It is 1 for equal geometry, whatever rotation and scale, so
                       it can compare layers whose axes differ. A few features of large variance dominate it, and with
                       fewer rows than features it is biased towards 1 (Murphy et al. 2024, arXiv 2405.01012).
attention divergence   KL(teacher ‖ student) of the attention that a token pays to all others, in nats.
isotropy               the mean cosine between different inputs (Ethayarajh 2019, arXiv 1909.00512): 0 if vectors point
                       in all directions, near 1 if all lie in a narrow cone; and the share of the variance of the
                       first principal component: 1 / dim if all directions are used equally.
neighbour overlap      of the k nearest inputs of an input by one model's cosine, the share that is also among the k
                       nearest by the other model: a search over these inputs would show this difference.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "LinearCKA",
    "Mean",
    "attention_divergence",
    "first_component",
    "mean_cosine",
    "neighbour_overlap",
    "paired_cosines",
    "units",
]


class Mean:
    """A mean over values that are added in parts."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, total: float, count: int) -> None:
        """Adds `count` values whose sum is `total`."""
        self._total += total
        self._count += count

    @property
    def value(self) -> float | None:
        """The mean; None if no value was added."""
        return self._total / self._count if self._count else None


class LinearCKA:
    """Linear CKA of two models' features of the same tokens, which are added in parts.

    It keeps sums over tokens, in double precision, of features minus the first part's means. The means of all features
    are subtracted at the end: Xᵀ Y of centred features is Σ x yᵀ − Σ x Σ yᵀ / n.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._shifts: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds features x `[rows, dim]` and y `[rows, other dim]`, both float; equal rows are of one token."""
        if not len(x):
            return
        if self._shifts is None:
            self._shifts = x.mean(dim=0), y.mean(dim=0)
        x, y = x - self._shifts[0], y - self._shifts[1]
        sums = [x.sum(dim=0), y.sum(dim=0)]
        products = [x.T @ x, y.T @ y, x.T @ y]
        if self.rows:
            self._sums = [a.add_(b) for a, b in zip(self._sums, sums, strict=True)]
            self._products = [a.add_(b) for a, b in zip(self._products, products, strict=True)]
        else:
            self._sums, self._products = [s.double() for s in sums], [p.double() for p in products]
        self.rows += len(x)

    @property
    def value(self) -> float | None:
        """Linear CKA, from 0 to 1; None if the features of a model don't vary."""
        if not self.rows:
            return None
        (x, y), (xx, yy, xy) = self._sums, self._products
        norms = [
            float(torch.linalg.matrix_norm(product - torch.outer(a, b) / self.rows))
            for product, a, b in ((xx, x, x), (yy, y, y), (xy, x, y))
        ]
        return norms[2] ** 2 / (norms[0] * norms[1]) if norms[0] and norms[1] else None


def attention_divergence(teacher: Tensor, student: Tensor, mask: Tensor | None = None) -> tuple[float, int]:
    """Computes KL(teacher ‖ student) of attention rows, in nats; returns the sum over rows, and their number.

    Args:
        teacher, student: `[batch, heads, queries, keys]`, probabilities over keys.
        mask: `[batch, queries]`, 1 for real tokens; None means that all are real.
    """
    tiny = torch.finfo(torch.float32).tiny
    p, q = teacher.float(), student.float()
    rows = (torch.xlogy(p, p) - p * q.clamp_min(tiny).log()).sum(dim=-1).clamp_min(0)  # rounding can make it negative
    if mask is not None:
        rows = rows.transpose(1, 2)[mask.bool()]
    return float(rows.double().sum()), rows.numel()


def units(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1: float64 `[inputs, dim]`; a row of zeros stays."""
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def paired_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine between equal rows of `a` and `b`, float64 `[inputs]` of `[inputs, dim]` each; 0 for a row of zeros."""
    products = np.einsum("ij,ij->i", a, b, dtype=np.float64)
    norms = [np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64)) for x in (a, b)]
    cosines: np.ndarray = products / np.maximum(norms[0] * norms[1], np.finfo(np.float64).tiny)
    return cosines


def mean_cosine(vectors: np.ndarray) -> float:
    """Mean cosine over all pairs of different rows of `vectors`, `[inputs, dim]`, with two rows or more."""
    rows = units(vectors)
    total = rows.sum(axis=0)
    return float((total @ total - np.sum(rows * rows)) / (len(rows) * (len(rows) - 1)))


def first_component(vectors: np.ndarray) -> float | None:
    """Share of the variance along the first principal component, of `[inputs, dim]` scaled to length 1.

    It is None if all vectors are equal.
    """
    rows = units(vectors)
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    return float(variances[0] / variances.sum()) if variances.sum() > 0 else None


def neighbour_overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """Mean share of the k nearest rows, by cosine, that a row has in both sets of vectors, `[inputs, any dim]` each.

    `k` must be below the number of inputs.
    """
    nearest = []
    for vectors in (a, b):
        rows = units(vectors)
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k])
    return float(np.mean([len(np.intersect1d(x, y)) / k for x, y in zip(*nearest, strict=True)]))
