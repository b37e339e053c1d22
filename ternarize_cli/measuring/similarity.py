"""How alike two models are inside, and how their embeddings lie: pure functions of tensors and vectors.

linear CKA             ‖Yᵀ X‖²_F / (‖Xᵀ X‖_F ‖Yᵀ Y‖_F) of centred features X, Y, one row a token (Kornblith et al.
                       2019, arXiv 1905.00414, section 3). 1 for the same geometry, whatever its rotation and scale;
                       so it compares layers whose axes differ. A few features of large variance decide it, and
                       with fewer rows than features it leans to 1 (Murphy et al. 2024, arXiv 2405.01012).
attention divergence   KL(teacher ‖ student) of the attention that a token pays to all others, in nats.
isotropy               the mean cosine between different inputs (Ethayarajh 2019, arXiv 1909.00512): 0 where vectors
                       point everywhere, near 1 where all lie in a narrow cone; and the share of the variance that
                       the first principal component has: 1 / dim where all directions are used alike.
neighbour overlap      of the k inputs that are nearest to an input by the cosine of one model, the share that is
                       also among the k nearest by the other: what search over these inputs would notice.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["LinearCKA", "Mean", "attention_divergence", "first_component", "mean_cosine", "neighbour_overlap", "units"]


class Mean:
    """A mean over values that come in parts."""

    def __init__(self) -> None:
        self._total, self._count = 0.0, 0

    def add(self, total: float, count: int) -> None:
        """Adds `count` values of this sum."""
        self._total += total
        self._count += count

    @property
    def value(self) -> float | None:
        """None if there was no value."""
        return self._total / self._count if self._count else None


class LinearCKA:
    """Linear CKA of two models' features of the same tokens, which come in parts.

    Kept are sums over tokens, in double precision, of features less the first part's means; the means of all are taken
    off at the end: Xᵀ Y of centred features is Σ x yᵀ − Σ x Σ yᵀ / n.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._shifts: tuple[Tensor, Tensor] | None = None
        self._sums: list[Tensor] = []
        self._products: list[Tensor] = []

    def add(self, x: Tensor, y: Tensor) -> None:
        """x: `[rows, dim]` float, y: `[rows, other dim]` float, row by row of the same token."""
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
        """From 0 to 1; None if the features of a model don't vary."""
        if not self.rows:
            return None
        (x, y), (xx, yy, xy) = self._sums, self._products
        norms = [
            float(torch.linalg.matrix_norm(product - torch.outer(a, b) / self.rows))
            for product, a, b in ((xx, x, x), (yy, y, y), (xy, x, y))
        ]
        return norms[2] ** 2 / (norms[0] * norms[1]) if norms[0] and norms[1] else None


def attention_divergence(teacher: Tensor, student: Tensor, mask: Tensor | None = None) -> tuple[float, int]:
    """KL(teacher ‖ student) of attention rows, as their sum and their number.

    Args:
        teacher, student: `[batch, heads, queries, keys]`, probabilities over keys.
        mask: `[batch, queries]`, 1 for real tokens; None: all are.
    """
    tiny = torch.finfo(torch.float32).tiny
    p, q = teacher.float(), student.float()
    rows = (torch.xlogy(p, p) - p * q.clamp_min(tiny).log()).sum(dim=-1).clamp_min(0)  # but for rounding it is
    if mask is not None:
        rows = rows.transpose(1, 2)[mask.bool()]
    return float(rows.double().sum()), rows.numel()


def units(vectors: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64 `[inputs, dim]`; a row of zeros stays."""
    vectors = vectors.astype(np.float64)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def mean_cosine(vectors: np.ndarray) -> float:
    """Over all pairs of different rows of `[inputs, dim]`, two or more."""
    rows = units(vectors)
    total = rows.sum(axis=0)
    return float((total @ total - np.sum(rows * rows)) / (len(rows) * (len(rows) - 1)))


def first_component(vectors: np.ndarray) -> float | None:
    """The share of the variance of `[inputs, dim]`, as unit vectors, along the first principal component.

    None if all are the same.
    """
    rows = units(vectors)
    variances = np.linalg.svd(rows - rows.mean(axis=0), compute_uv=False) ** 2
    return float(variances[0] / variances.sum()) if variances.sum() > 0 else None


def neighbour_overlap(a: np.ndarray, b: np.ndarray, k: int) -> float:
    """The share of each row's k nearest rows, by cosine, that two sets of vectors `[inputs, any dim]` agree on.

    `k` is below the number of inputs.
    """
    nearest = []
    for vectors in (a, b):
        rows = units(vectors)
        cosines = rows @ rows.T
        np.fill_diagonal(cosines, -np.inf)
        nearest.append(np.argpartition(-cosines, k - 1, axis=1)[:, :k])
    return float(np.mean([len(np.intersect1d(x, y)) / k for x, y in zip(*nearest, strict=True)]))
