"""Defines trainable layers, which compute in eval mode exactly what the packed layers made from them compute."""

from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.arithmetic import tables, ternary
from ternarize_cli.arithmetic.elementwise import fused
from ternarize_cli.arithmetic.trained_linear import trained_linear
from ternarize_cli.arithmetic.trained_lookup import looked_up
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.layers.checks import check_ids

__all__ = ["SimulatedEmbedding", "TernaryLinear"]


class TernaryLinear(nn.Linear):
    """A trainable ternary linear, with a latent weight and a learnable scale.

    Attributes:
        weight: float `[out, in]`, or `[in, out]` if the layer is transposed.
        weight_scale: float32 `[1]`, `[out, 1]` or `[out, in/g]`, by the granularity of the scheme.
        bias: float `[out]`, or None.
        scheme: the quantisation scheme.
        transposed: whether the layer replaces transformers' Conv1D, which stores its weight transposed.
    """

    weight_scale: nn.Parameter

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        scheme: Scheme,
        device: Any = None,
        dtype: Any = None,
        transposed: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.scheme, self.transposed = scheme, transposed
        if transposed:
            self.weight = nn.Parameter(torch.empty(in_features, out_features, device=device, dtype=dtype))
        shape = ternary.scale_shape(out_features, in_features, scheme.granularity, scheme.group_size)
        self.weight_scale = nn.Parameter(torch.ones(shape, device=device, dtype=torch.float32))

    @property
    def matrix(self) -> Tensor:
        """The latent weight as `[out, in]`, even if it is stored as `[in, out]`."""
        return self.weight.T if self.transposed else self.weight

    def codes(self) -> Tensor:
        """Computes the codes of the latent weights on the scheme's grid: float32 `[out, in]`, without gradient."""
        return ternary.codes_of(self.matrix.detach().float(), self.weight_scale.detach(), self.scheme.levels)

    @torch.no_grad()
    def settle(self, margin: float) -> None:
        """Moves each latent weight to within `margin` times its scale of its rounded value; codes do not change.

        Calibration leaves many latent weights at the threshold between two codes, where the first steps of training
        would change their codes all at once.
        """
        codes, wide = self.codes(), ternary.expand_scale(self.weight_scale, *self.matrix.shape)
        away = (self.matrix / wide.clamp_min(torch.finfo(torch.float32).tiny) - codes).clamp(-margin, margin)
        self.matrix.copy_(torch.where(wide > 0, wide * (codes + away), self.matrix))

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., in]` to `[..., out]` in the dtype of `x`."""
        bits = self.scheme.activation_bits
        if not self.training:
            return ternary.ternary_linear(x, self.codes(), self.weight_scale.half(), self.bias, activation_bits=bits)
        return trained_linear(x, self.matrix, self.weight_scale, self.bias, self.scheme.levels, activation_bits=bits)


class SimulatedEmbedding(nn.Embedding):
    """A trainable embedding table whose rows are rounded as those of the packed table will be.

    Attributes:
        weight: float `[rows, dim]`.
        table_bits: width of a number of the packed table in bits: 4, 8, 16 or 32.
        in_place: whether the backward pass adds to `weight.grad` where it exists, instead of making a gradient of the
            whole table for the few rows that were looked up; `torch.autograd.grad` and hooks of the tensor then find
            none.
    """

    in_place = False

    def __init__(self, rows: int, dim: int, padding_idx: int | None, table_bits: int, **factory: Any) -> None:
        super().__init__(rows, dim, padding_idx, **factory)
        self.table_bits = table_bits

    def forward(self, ids: Tensor) -> Tensor:
        """Looks up rounded rows: int64 ids `[...]` to `[..., dim]` in the dtype of `weight`.

        Raises:
            FormatError: an id on the CPU is no row of the table.
        """
        check_ids(ids, self.num_embeddings)
        rows = looked_up(self.weight, ids, self.padding_idx) if self.in_place else super().forward(ids)
        if self.training and self.table_bits == 8:
            return ternary.straight_through(_rounded_rows(rows.detach()), rows)
        if self.table_bits == 4:  # the search for scales is slow, so it runs once for each distinct id
            used, place = ids.unique(return_inverse=True)
            rounded = tables.round_rows(self.weight.detach()[used], 4)[place]
        elif self.table_bits == 32:
            return rows
        else:
            rounded = tables.round_rows(rows.detach(), self.table_bits)
        return ternary.straight_through(rounded, rows) if self.training else rounded


@fused
def _rounded_rows(rows: Tensor) -> Tensor:
    return tables.round_rows(rows, 8)
