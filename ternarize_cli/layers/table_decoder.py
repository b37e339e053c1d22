"""Defines the decoder of a masked language model whose weight is tied to a compressed word table."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["TableDecoder"]

_ROWS = 8192


class TableDecoder(nn.Module):
    """A linear whose weight is the rows that an embedding gives: it scores each token of the vocabulary.

    The rows are restored 8,192 at a time whenever they are needed, so that the table is held in its packed form only.

    Attributes:
        bias: float `[rows]`, or None.
    """

    bias: nn.Parameter | None

    def __init__(self, table: nn.Module, bias: nn.Parameter | None) -> None:
        """Makes a decoder for a `PackedEmbedding` or `SimulatedEmbedding`, which stays the child of its own parent."""
        super().__init__()
        self._tables = [table]  # in a list, so that its tensors are stored once, under the embedding's name
        self.bias = bias

    @property
    def table(self) -> nn.Module:
        """The embedding whose rows are the weight."""
        return self._tables[0]

    @property
    def weight(self) -> Tensor:
        """The stored tensor of the table (codes, if it has them), which transformers asks whether it was loaded."""
        stored: Tensor = self.table.weight  # type: ignore[assignment]
        return stored

    @property
    def out_features(self) -> int:
        """The number of rows of the table."""
        return int(self.table.num_embeddings)  # type: ignore[arg-type]

    @property
    def in_features(self) -> int:
        """The number of columns of the table."""
        return int(self.table.embedding_dim)  # type: ignore[arg-type]

    def rows(self, start: int, end: int, device: torch.device) -> Tensor:
        """Restores rows of the table: float `[end - start, in]`."""
        found: Tensor = self.table(torch.arange(start, end, device=device))
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., in]` to `[..., rows]` in the dtype of `x`."""
        count = self.out_features
        pieces = [(start, min(start + _ROWS, count)) for start in range(0, count, _ROWS)]
        made = torch.cat([F.linear(x, self.rows(*piece, x.device).to(x.dtype)) for piece in pieces], dim=-1)
        return made if self.bias is None else made + self.bias.to(x.dtype)

    def extra_repr(self) -> str:
        """Describes the layer for `print(model)`."""
        return f"in_features={self.in_features}, out_features={self.out_features}, tied to its table"
