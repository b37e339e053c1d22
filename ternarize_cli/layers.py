"""The modules that take the place of `nn.Linear` and `nn.Embedding`.

    stage    linear          embedding             weights
    latent   TernaryLinear   SimulatedEmbedding    dense parameters; ternarised on the fly, trainable
    packed   PackedLinear    PackedEmbedding       buffers in the packed format; run by a kernel backend

In eval mode a latent layer computes what its packed twin computes: the codes from the float32 scale, multiplied by the
float16-rounded scale of the packed file, int8 activations, the same order of operations. In training mode it uses the
straight-through estimator: dense float arithmetic on the same values, gradients to the latent weight, the scale, and
the input as if nothing had been rounded.
"""

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ternarize_cli import tables, ternary
from ternarize_cli.errors import FormatError
from ternarize_cli.fusion import fused
from ternarize_cli.packing import codec_for
from ternarize_cli.scheme import Scheme

__all__ = ["Packed", "PackedEmbedding", "PackedLinear", "SimulatedEmbedding", "TernaryLinear", "check_scale"]


class TernaryLinear(nn.Linear):
    """A trainable ternary linear: latent `weight` `[out, in]` and learnable `weight_scale`.

    In place of transformers' Conv1D it is `transposed`: `weight` is `[in, out]`, as the source has it.
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
        """The latent weight as `[out, in]`, whichever way it is stored."""
        return self.weight.T if self.transposed else self.weight

    def codes(self) -> Tensor:
        """float32 `[out, in]`, the codes of the scheme's grid; no gradient."""
        return ternary.codes_of(self.matrix.detach().float(), self.weight_scale.detach(), self.scheme.levels)

    @torch.no_grad()
    def settle(self, margin: float) -> None:
        """Moves latent weights to within `margin` scales of their codes, which stay.

        Calibration leaves many of them at the very edge between two codes, where the first steps of training would
        turn them over all at once.
        """
        codes, wide = self.codes(), ternary.expand_scale(self.weight_scale, *self.matrix.shape)
        away = (self.matrix / wide.clamp_min(torch.finfo(torch.float32).tiny) - codes).clamp(-margin, margin)
        self.matrix.copy_(torch.where(wide > 0, wide * (codes + away), self.matrix))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` → `[..., out]` in the dtype of `x`."""
        bits = self.scheme.activation_bits
        if not self.training:
            return ternary.ternary_linear(x, self.codes(), self.weight_scale.half(), self.bias, activation_bits=bits)
        return ternary.trained_linear(
            x, self.matrix, self.weight_scale, self.bias, self.scheme.levels, activation_bits=bits
        )


class SimulatedEmbedding(nn.Embedding):
    """A trainable embedding whose rows are rounded as the packed table will be, to `table_bits` of 4, 8, 16 or 32."""

    def __init__(self, rows: int, dim: int, padding_idx: int | None, table_bits: int, **factory: Any) -> None:
        super().__init__(rows, dim, padding_idx, **factory)
        self.table_bits = table_bits

    def forward(self, ids: Tensor) -> Tensor:
        """ids `[...]` → `[..., dim]`."""
        _check_ids(ids, self.num_embeddings)
        rows = super().forward(ids)
        if self.training and self.table_bits == 8:
            return ternary.straight_through(_rounded_rows(rows.detach()), rows)
        if self.table_bits == 4:  # the search for scales is slow: once for each id
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


class Packed(nn.Module):
    """Keeps the float16 scales of the format when a model is cast: `model.to(torch.bfloat16)` would round them.

    Attributes:
        generation: how often buffers were loaded or moved; what was prepared from them before is stale.
        changes: the same, and choices of a backend, of all layers of all models.
    """

    weight_scale: Tensor
    generation = 0
    changes: ClassVar[int] = 0

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        scale = self.weight_scale
        super()._apply(*args, **kwargs)
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        self._renew()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._renew()

    def _renew(self) -> None:
        self.generation += 1
        Packed.changes += 1


class PackedLinear(Packed):
    """A frozen ternary linear in the packed format; a kernel backend runs it.

    Buffers:
        weight: uint8 `[out, width]` as the codec packs it; weight_scale: float16 `[1]`, `[out, 1]` or `[out, in/g]`;
            bias: `[out]`.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool,
        scheme: Scheme,
        device: Any = None,
        dtype: Any = None,
        codec: str | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.scheme = in_features, out_features, scheme
        self.codec = codec_for(scheme.levels, codec)
        self.transposed = False  # whether the source's weight is [in, out]; ours never is
        shape = ternary.scale_shape(out_features, in_features, scheme.granularity, scheme.group_size)
        width = self.codec.width(in_features)
        self.register_buffer("weight", torch.zeros(out_features, width, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scale", torch.zeros(shape, dtype=torch.float16, device=device))
        self.register_buffer("bias", torch.zeros(out_features, device=device, dtype=dtype) if bias else None)
        self._backend = "auto"
        self._kernel: Any = None

    @property
    def backend(self) -> str:
        """The name of the backend that runs this layer; "auto" until it has run."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend, self._kernel = name, None
        Packed.changes += 1

    def codes(self) -> Tensor:
        """int8 `[out, in]`."""
        return self.codec.unpack(self.weight, self.in_features)

    def check(self, name: str) -> None:
        """Raises FormatError, naming the tensor, if the buffers hold an invalid code or a scale that is no scale."""
        try:
            self.codec.check(self.weight, self.in_features)
        except ValueError as e:
            raise FormatError(f"{name}.weight: {e}") from e
        check_scale(self.weight_scale, f"{name}.weight_scale")

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` → `[..., out]` in the dtype of `x`."""
        self.ensure_kernel()
        return self._kernel(x)

    def ensure_kernel(self) -> None:
        """Prepares the backend, if that has not happened since the layer was loaded or moved.

        Raises:
            UnavailableError: the backend can't run here or can't run this layer.
        """
        if self._kernel is None:
            from ternarize_cli import kernels

            self._backend, self._kernel = kernels.prepare(self)

    def release(self) -> None:
        """Drops what the backend prepared; it is prepared again when the layer runs on its own."""
        self._kernel = None

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, levels={self.scheme.levels}, codec={self.codec.name}, backend={self._backend}"

    def _renew(self) -> None:
        super()._renew()
        self._kernel = None

    def __getstate__(self) -> dict[str, Any]:
        buffers = {**self._buffers, "weight": self.weight.clone()}  # it may be a part of a whole block's
        return {**self.__dict__, "_buffers": buffers, "_kernel": None}  # kernels hold what can't be copied or pickled


class PackedEmbedding(Packed):
    """A frozen embedding table of 8 or 4 bits (see `tables`).

    Buffers:
        weight: int8 `[rows, dim]`, or uint8 `[rows, ceil(dim/2)]`; weight_scale: float16 `[rows, 1]`, or
        `[rows, ceil(dim/32)]`.
    """

    weight: Tensor
    _like: Tensor

    def __init__(
        self,
        rows: int,
        dim: int,
        padding_idx: int | None,
        table_bits: int = 8,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim, self.padding_idx = rows, dim, padding_idx
        self.table_bits = table_bits
        shape, kind, scales = tables.stored_shapes(rows, dim, table_bits)
        # carries the dtype of the output, so that casting the model casts it
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.register_buffer("weight", torch.zeros(shape, dtype=kind, device=device))
        self.register_buffer("weight_scale", torch.zeros(scales, dtype=torch.float16, device=device))

    def check(self, name: str) -> None:
        """Raises FormatError, naming the tensor, if the padding is not zero or a scale is no scale."""
        try:
            tables.check_codes(self.weight, self.embedding_dim, self.table_bits)
        except ValueError as e:
            raise FormatError(f"{name}.weight: {e}") from e
        check_scale(self.weight_scale, f"{name}.weight_scale")

    def forward(self, ids: Tensor) -> Tensor:
        """ids `[...]` → `[..., dim]`."""
        _check_ids(ids, self.num_embeddings)
        codes = tables.unpack_codes(self.weight[ids], self.embedding_dim, self.table_bits)
        return tables.restore_rows(codes, self.weight_scale[ids]).to(self._like.dtype)

    def extra_repr(self) -> str:
        """Shown by `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, int{self.table_bits}"


def _check_ids(ids: Tensor, rows: int) -> None:
    """Says in words that an id is beyond a table; on a GPU, where looking would cost a wait, torch says it later."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or not ids.numel():
        return
    if int(ids.max()) >= rows or int(ids.min()) < 0:
        raise FormatError(
            f"an id is beyond a table of {rows} rows: the tokenizer is another model's, or the text is too long",
            hint="fetch or make the model again",
        )


def check_scale(scale: Tensor, name: str) -> None:
    """Raises FormatError unless every scale is finite and not negative."""
    bad = ~torch.isfinite(scale) | (scale < 0)
    if bad.any():
        value = float(scale[bad].flatten()[0])
        raise FormatError(f"{name}: a scale is {value}; scales are finite and not negative")
