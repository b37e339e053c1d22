"""First and second moments of a linear's inputs and wanted outputs, gathered batch by batch.

An embedding is a pooled sum over tokens. Errors that differ from token to token average out there; an error that the
tokens of a text share stays. So two covariances are kept, over tokens and over the texts' means, and the one that the
codes are fitted to is their sum:

    H = Cov_tokens(x, x) + pooled · Cov_texts(x̄, x̄)

and likewise for the outputs. All are about the mean over tokens, since a bias takes care of that.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch", "Moments", "Rows"]


@dataclass(frozen=True)
class Batch:
    """The size and the padding of a batch.

    Attributes:
        size: number of texts or images.
        mask: bool `[size, tokens]`, False for padding; None where nothing is padded.
    """

    size: int
    mask: Tensor | None

    def rows(self, x: Tensor) -> "Rows":
        """Takes what is no padding out of `x`: `[size, tokens, d]`, `[size · k, tokens, d]`, `[size, d]`."""
        width = x.shape[-1]
        if self.mask is not None and x.shape[:-1] == self.mask.shape:
            weight = self.mask / self.mask.sum(dim=1, keepdim=True)
            return Rows(x[self.mask], torch.einsum("btd,bt->bd", x, weight.to(x.dtype)))
        flat = x.reshape(-1, width)
        texts = flat.reshape(self.size, -1, width).mean(dim=1) if flat.shape[0] % self.size == 0 else flat
        return Rows(flat, texts)


@dataclass(frozen=True)
class Rows:
    """Activations of the tokens of a batch.

    Attributes:
        tokens: the activations `[n, d]`.
        texts: the means `[m, d]` of the tokens of each text.
    """

    tokens: Tensor
    texts: Tensor


class Moments:
    """First and second moments of two variables a and b, such as a linear's outputs and inputs.

    Call `add` for each batch, then `means`, `covariance` and `noise`. Products are float32, sums float64.
    """

    def __init__(self) -> None:
        self._tokens = _Sums()
        self._texts = _Sums()

    def add(self, a: Rows, b: Rows) -> None:
        """Adds a batch, in which the rows of a and of b belong to the same tokens."""
        self._tokens.add(a.tokens, b.tokens)
        self._texts.add(a.texts, b.texts)

    @property
    def count(self) -> int:
        """The number of tokens that were added."""
        return self._tokens.count

    def means(self) -> tuple[Tensor, Tensor]:
        """Computes the means over tokens of a `[d_a]` and of b `[d_b]`, float64."""
        return self._tokens.a / self._tokens.count, self._tokens.b / self._tokens.count

    def covariance(self, pooled: float) -> Tensor:
        """Computes Cov_tokens(a, b) + pooled · Cov_texts(a, b), float64 `[d_a, d_b]`, about the means over tokens."""
        a, b = self.means()
        return self._tokens.about(a, b) + pooled * self._texts.about(a, b)

    def noise(self, pooled: float) -> float:
        """Estimates how far a finite sample moves the eigenvalues of `covariance(pooled)` if a and b are one variable.

        A covariance of n samples is off by about its trace / n in every direction (Ledoit and Wolf 2004, section 2).
        """
        a, b = self.means()
        traces = (sums.about(a, b).trace() / sums.count for sums in (self._tokens, self._texts))
        tokens, texts = (float(trace) for trace in traces)
        return tokens + pooled * texts


class _Sums:
    def __init__(self) -> None:
        self.count = 0
        self.a = self.b = self.product = torch.zeros(())

    def add(self, a: Tensor, b: Tensor) -> None:
        self.count += a.shape[0]
        self.a = self.a.to(a.device) + a.sum(dim=0, dtype=torch.float64)
        self.b = self.b.to(b.device) + b.sum(dim=0, dtype=torch.float64)
        self.product = self.product.to(a.device) + (a.T @ b).double()

    def about(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean of (x − a)(y − b)ᵀ."""
        mean_a, mean_b = self.a / self.count, self.b / self.count
        return self.product / self.count - torch.outer(mean_a, mean_b) + torch.outer(mean_a - a, mean_b - b)
