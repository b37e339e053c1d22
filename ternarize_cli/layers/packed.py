"""Defines frozen layers in the packed format; kernel backends run the linears."""

from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ternarize_cli.arithmetic import packing, tables, ternary
from ternarize_cli.errors import FormatError, InputError, UnavailableError
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.layers import forks, operators
from ternarize_cli.layers.checks import check_ids, check_scale

__all__ = ["Packed", "PackedEmbedding", "PackedLinear"]


class Packed(nn.Module):
    """Base class that keeps scales in float16 when a model is cast: `model.to(torch.bfloat16)` would round them.

    Attributes:
        weight_scale: the scales, float16.
        generation: how often this layer's buffers were loaded or moved; what was prepared from older buffers is stale.
        changes: a count for the whole process, which grows when buffers of any packed layer are loaded or moved, or
            when its backend is chosen.
    """

    weight_scale: Tensor
    generation = 0
    changes: ClassVar[int] = 0

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        scale, device = self.weight_scale, self.weight_scale.device
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        if self.weight_scale.dtype != scale.dtype:
            self.weight_scale = scale.to(self.weight_scale.device)
        self._renew()
        if self.weight_scale.device != device:
            self._moved()
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._renew()

    def _renew(self) -> None:
        self.generation += 1
        Packed.changes += 1

    def _moved(self) -> None:
        """Is called after the buffers have come to another device."""


class PackedLinear(Packed):
    """A frozen linear with codes of few bits in the packed format; a kernel backend runs it.

    Buffers:
        weight: uint8 `[out, width]`, codes as the codec packs them; `width` bytes hold the `in` codes of a row.
        weight_scale: float16 `[1]`, `[out, 1]` or `[out, in/g]`, by the granularity of the scheme.
        bias: float `[out]`, or None.

    Attributes:
        shared: names of the backends that `auto` prefers for this layer, since they run all packed layers of its
            encoder; empty if there are none.
    """

    weight: Tensor
    bias: Tensor | None
    prepare: ClassVar[Callable[["PackedLinear"], tuple[str, Callable[[Tensor], Tensor]]] | None] = None
    """Chooses a backend for a layer and prepares it; importing `kernels` sets this to `kernels.prepare`."""
    shared: tuple[str, ...] = ()

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
        self.transposed = False  # whether the source's weight is [in, out]; the packed weight never is
        shape = ternary.scale_shape(out_features, in_features, scheme.granularity, scheme.group_size)
        width = self.codec.width(in_features)
        self.register_buffer("weight", torch.zeros(out_features, width, dtype=torch.uint8, device=device))
        self.register_buffer("weight_scale", torch.zeros(shape, dtype=torch.float16, device=device))
        self.register_buffer("bias", torch.zeros(out_features, device=device, dtype=dtype) if bias else None)
        self._backend = self._asked = "auto"
        self._kernel: Any = None
        self._number = operators.number_of(self._run)

    @property
    def backend(self) -> str:
        """The name of the backend that runs this layer; "auto" until one has been chosen for its device."""
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        self._backend, self._asked, self._kernel = name, name, None
        Packed.changes += 1

    def codes(self) -> Tensor:
        """Unpacks the codes: int8 `[out, in]`."""
        return packing.unpack(self.codec, self.weight, self.in_features)

    def check(self, name: str) -> None:
        """Checks the codes and scales.

        Raises:
            FormatError: a code is invalid, or a scale is negative or not finite; the message calls the layer `name`.
        """
        try:
            self.codec.check(self.weight.detach().cpu().numpy(), self.in_features)
        except ValueError as e:
            raise FormatError(f"{name}.weight: {e}") from e
        check_scale(self.weight_scale, f"{name}.weight_scale")

    def forward(self, x: Tensor) -> Tensor:
        """Maps `[..., in]` to `[..., out]` in the dtype of `x`.

        Raises:
            InputError: the layer is in training mode and asked for gradients, which its codes do not have.
        """
        if torch.compiler.is_compiling():
            made: Tensor = torch.ops.ternarize.linear(x, self._number, self.out_features)
            return made
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        forks.before_forward()
        if self.training and x.requires_grad and torch.is_grad_enabled():
            raise InputError(
                "a packed model can't be trained: its weights are codes",
                hint="train the checkpoint that it was packed from (ternarize distill), and pack the result",
            )
        y: Tensor = self.ensure_kernel()(x)
        return y

    def ensure_kernel(self) -> Callable[[Tensor], Tensor]:
        """Prepares the backend, unless it was prepared since the layer was last loaded or moved.

        Returns:
            The function that maps `[..., in]` to `[..., out]`.

        Raises:
            UnavailableError: the backend can't run on this machine or can't run this layer, or `ternarize_cli.kernels`
                was not imported.
        """
        kernel = self._kernel
        if kernel is None:
            if (prepare := type(self).prepare) is None:
                raise UnavailableError("no kernels are loaded", hint="import ternarize_cli.kernels")
            self._backend, kernel = prepare(self)
            self._kernel = kernel
        run: Callable[[Tensor], Tensor] = kernel
        return run

    def release(self) -> None:
        """Frees the memory of what the backend prepared; the next `forward` prepares it again."""
        self._kernel = None

    def extra_repr(self) -> str:
        """Describes the layer for `print(model)`."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, levels={self.scheme.levels}, codec={self.codec.name}, backend={self._backend}"

    def _renew(self) -> None:
        super()._renew()
        self._kernel = None

    def _moved(self) -> None:
        self._backend = self._asked  # the backend that `auto` chose may not run on this device

    def __getstate__(self) -> dict[str, Any]:
        buffers = dict(self._buffers)
        if self.weight.untyped_storage().nbytes() > self.weight.nbytes:  # a view of a block's weights
            buffers["weight"] = self.weight.clone()
        # Prepared kernels can't be copied or pickled. A reference makes another process import `kernels`.
        return {**self.__dict__, "_buffers": buffers, "_kernel": None, "_prepared_by": type(self).prepare}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._number = operators.number_of(self._run)


class PackedEmbedding(Packed):
    """A frozen embedding table of 8 or 4 bits a number, in the format of `arithmetic.tables`.

    Buffers:
        weight: int8 `[rows, dim]` for 8 bits; uint8 `[rows, ceil(dim/2)]`, two numbers a byte, for 4 bits.
        weight_scale: float16 `[rows, 1]` for 8 bits; `[rows, ceil(dim/32)]`, one for 32 numbers, for 4 bits.
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
        # An empty tensor with the dtype of the output, so that casting the model casts the output.
        self.register_buffer("_like", torch.empty(0, dtype=dtype, device=device), persistent=False)
        self.register_buffer("weight", torch.zeros(shape, dtype=kind, device=device))
        self.register_buffer("weight_scale", torch.zeros(scales, dtype=torch.float16, device=device))

    def check(self, name: str) -> None:
        """Checks the codes and scales.

        Raises:
            FormatError: padding is not zero, or a scale is negative or not finite; the message calls the table `name`.
        """
        try:
            tables.check_codes(self.weight, self.embedding_dim, self.table_bits)
        except ValueError as e:
            raise FormatError(f"{name}.weight: {e}") from e
        check_scale(self.weight_scale, f"{name}.weight_scale")

    def forward(self, ids: Tensor) -> Tensor:
        """Looks up rows: int64 ids `[...]` to `[..., dim]`, in the float dtype that the model was cast to.

        Raises:
            FormatError: an id on the CPU is no row of the table.
        """
        if not torch.compiler.is_compiling():
            forks.before_forward()
        check_ids(ids, self.num_embeddings)
        codes = tables.unpack_codes(self.weight[ids], self.embedding_dim, self.table_bits)
        return tables.restore_rows(codes, self.weight_scale[ids]).to(self._like.dtype)

    def extra_repr(self) -> str:
        """Describes the layer for `print(model)`."""
        return f"{self.num_embeddings}, {self.embedding_dim}, int{self.table_bits}"
