"""A ternary linear in training: dense products of rounded values, and gradients that go straight through the rounding.

What a step computes besides products are passes over weights and activations, and PyTorch makes each operation a
pass of its own. On a CPU the compiled library does each part in one pass, if it was built and the scales are a row's or
the tensor's; on a GPU, functions that torch compiles do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ternarize_cli.arithmetic.elementwise import fused
from ternarize_cli.arithmetic.gpu_training import compiles
from ternarize_cli.arithmetic.ternary import codes_of, expand_scale, quantize_tokens
from ternarize_cli.errors import UnavailableError
from ternarize_cli.format.scheme import LEVELS
from ternarize_cli.runtime.native import training
from ternarize_cli.runtime.native.library import Library, library
from ternarize_cli.runtime.native.threads import set_threads

__all__ = ["products_in", "trained_linear"]

_NEAREST_INTEGER = ("ternary", "int4")
"""The levels whose codes are the nearest integers."""
_OF_LIBRARY = (torch.float32, torch.bfloat16)
"""The dtypes of products for which the compiled library rounds, in float32."""


_PRODUCTS: ContextVar[torch.dtype | None] = ContextVar("products", default=None)


@contextmanager
def products_in(dtype: torch.dtype | None) -> Iterator[None]:
    """While the body runs, trained linears multiply in a dtype, unless autocast is on; None: in that of activations."""
    token = _PRODUCTS.set(dtype)
    try:
        yield
    finally:
        _PRODUCTS.reset(token)


def trained_linear(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, levels: str = "ternary", *, activation_bits: int = 8
) -> Tensor:
    """Computes a ternary layer in training: dense products of rounded values, gradients as if nothing were rounded.

    The scale's gradient is that of `codes · scale`; the gradient of the dense weights goes to `weight` unchanged.

    Args:
        x: `[..., in]` float. Products are in the dtype of autocast if it is on, else in that of `products_in` or `x`.
        weight: the latent weight, `[out, in]`.
        scale: `[1]`, `[out, 1]` or `[out, in/g]`.
        bias: `[out]` or None.
        levels: name of the grid of codes.
        activation_bits: 8 rounds activations to int8; 16 multiplies `x` unrounded.

    Returns:
        `[..., out]` in the dtype of autocast if it is on, else in that of `x`.
    """
    device = x.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else _PRODUCTS.get() or x.dtype
    rounded = _rounded_once(x, dtype) if activation_bits == 8 else x.detach().to(dtype)
    y: Tensor = _TrainedLinear.apply(x, rounded, weight, scale, bias, levels)  # type: ignore[no-untyped-call]
    return y if autocast else y.to(x.dtype)


def _rounded_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds activations to symmetric int8, once for all linears that read the same tensor, which keeps the result.

    A tensor without gradient keeps none: it may be an input, which lives longer than its batch.
    """
    if not x.requires_grad:
        return _rounded(x, dtype)
    of = dtype, x._version
    kept: Any = getattr(x, "rounded", None)
    if kept is None or kept[0] != of:
        with torch.no_grad():
            kept = of, _rounded(x.detach(), dtype)
        x.rounded = kept  # type: ignore[attr-defined]
    made: Tensor = kept[1]
    return made


class _TrainedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rounded: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, levels: str
    ) -> Tensor:
        dtype = rounded.dtype
        dense = _dense_weight(weight, scale, levels, dtype)
        ctx.save_for_backward(rounded, dense, weight, scale)
        ctx.levels, ctx.dtype = levels, x.dtype
        return F.linear(rounded, dense, None if bias is None else bias.to(dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rounded, dense, weight, scale = ctx.saved_tensors
        (of_output,) = gradients
        of_x = of_weight = of_scale = of_bias = None
        if ctx.needs_input_grad[0]:
            of_x = (of_output @ dense).to(ctx.dtype)
        rows = of_output.flatten(0, -2)
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
            product = rows.T @ rounded.flatten(0, -2)
            of_weight, of_scale = _weight_gradients(product, weight, scale, ctx.levels)
        if ctx.needs_input_grad[4]:
            of_bias = _column_sums(rows)
        return of_x, None, of_weight, of_scale, of_bias, None


@fused
def _fused_dense_weight(weight: Tensor, scale: Tensor, levels: str, dtype: torch.dtype) -> Tensor:
    return (codes_of(weight.float(), scale, levels) * expand_scale(scale, *weight.shape)).to(dtype)


@fused
def _fused_weight_gradients(product: Tensor, weight: Tensor, scale: Tensor, levels: str) -> tuple[Tensor, Tensor]:
    product = product.float()
    each = product * codes_of(weight.float(), scale, levels)
    if scale.dim() == 2:
        return product, each.unflatten(1, (scale.shape[1], -1)).sum(dim=-1)
    return product, each.sum().reshape(1)


@fused
def _fused_rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    q, t = quantize_tokens(x)
    return (q * t).to(dtype)


@fused
def _fused_column_sums(rows: Tensor) -> Tensor:
    return rows.float().sum(dim=0)


def _column_sums(rows: Tensor) -> Tensor:
    if rows.is_cuda and len(rows) and compiles():
        from ternarize_cli.arithmetic.gpu_training.column_sums import column_sums

        return column_sums(rows)
    return _fused_column_sums(rows)


def _dense_weight(weight: Tensor, scale: Tensor, levels: str, dtype: torch.dtype) -> Tensor:
    """Computes codes · scale."""
    lib = _library(weight, scale)
    if lib is None or dtype not in _OF_LIBRARY or not _is_simple(scale, levels):
        return _fused_dense_weight(weight, scale, levels, dtype)
    dense = torch.empty_like(weight, dtype=dtype)
    training.round_weights(lib, _array(weight), _of_rows(scale, weight), _range(levels), _array(dense))
    return dense


def _weight_gradients(product: Tensor, weight: Tensor, scale: Tensor, levels: str) -> tuple[Tensor, Tensor]:
    """Computes the gradients of the latent weight and of the scale from the gradient of the dense weights."""
    lib = _library(weight, scale)
    if lib is None or product.dtype not in _OF_LIBRARY or not product.is_contiguous() or not _is_simple(scale, levels):
        return _fused_weight_gradients(product, weight, scale, levels)
    of_rows = weight.new_empty(len(product))
    wide = None if product.dtype == torch.float32 else torch.empty_like(weight)
    given = _array(product), _array(weight), _of_rows(scale, weight), _range(levels), _array(of_rows)
    training.scale_gradients(lib, *given, None if wide is None else _array(wide))
    of_scale = of_rows.view(-1, 1) if scale.dim() == 2 else of_rows.sum().view(1)
    return product if wide is None else wide, of_scale


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rounds activations to symmetric int8, with one scale per token."""
    lib = _library(x)
    if lib is None or dtype not in _OF_LIBRARY:
        return _fused_rounded(x, dtype)
    made = torch.empty_like(x, dtype=dtype)
    training.round_activations(lib, *(_array(t).reshape(-1, x.shape[-1]) for t in (x, made)))
    return made


@cache
def _opened() -> Library | None:
    try:
        opened = library()
    except UnavailableError:
        return None
    set_threads(torch.get_num_threads)
    return opened


def _library(*tensors: Tensor) -> Library | None:
    """The library, if it takes these tensors: contiguous float32 of the CPU, no subclass such as fake tensors."""
    fits = all(
        type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous()
        for t in tensors
    )
    return _opened() if fits else None


def _is_simple(scale: Tensor, levels: str) -> bool:
    return levels in _NEAREST_INTEGER and (scale.dim() == 1 or scale.shape[1] == 1)


def _of_rows(scale: Tensor, weight: Tensor) -> Any:
    return _array(scale.flatten().expand(len(weight)).contiguous())


def _range(levels: str) -> tuple[int, int]:
    return LEVELS[levels][0], LEVELS[levels][-1]


def _array(tensor: Tensor) -> Any:
    """Gives a tensor's memory as an array; bfloat16, which NumPy lacks, as uint16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
