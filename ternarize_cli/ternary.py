r"""Ternary arithmetic: rules that choose a scale, codes, and the exact integer product.

A weight matrix W `[out, in]` becomes codes c in {-1, 0, +1} and scales s with W ≈ s·c. One scale covers a *block*: a
row, the whole tensor, or a group of consecutive inputs of a row. The codes always follow from the scale,

    c = clip(round_half_even(W / s), -1, 1),

so a latent weight and a scale are all that a trainable checkpoint needs, and |w| = s/2 is the threshold.

**absmean** (arXiv 2411.15438, eq. 1–2): s = beta · mean|W|. A larger beta gives more zeros.

**optimal** minimises ‖W − s·c‖² exactly. For a fixed support of k weights the best scale is their mean magnitude and
the error is ‖W‖² − (Σ|w|)²/k, so the best support of size k is the k largest, and one sort with a prefix sum finds the
best k: the maximiser of (prefix sum)²/k. At the maximum the k-th magnitude is above s/2 and the next one below it,
so the rule for c above gives back exactly that support.

Activations are int8, symmetric, one scale per token: q = round(x / t) with t = max|x| / 127. The product q·cᵀ is a sum
of at most `in` terms of magnitude at most 127: float32 holds it exactly while 127·in < 2²⁴, whatever the order of
summation. That makes `ternary_linear` the definition that every integer kernel must equal.
"""

import torch
from torch import Tensor

from ternarize_cli.scheme import Scheme

__all__ = [
    "codes_of",
    "dequantize",
    "expand_scale",
    "fake_quantize_tokens",
    "quantize_rows",
    "quantize_tokens",
    "scale_of",
    "scale_shape",
    "straight_through",
    "ternary_linear",
]

INT8_MAX = 127


def scale_shape(out_features: int, in_features: int, granularity: str, group_size: int | None) -> tuple[int, ...]:
    """Shape of a layer's scales: `[1]` per tensor, `[out, 1]` per row, `[out, in/g]` per group.

    Raises:
        ValueError: the group size does not divide `in_features`.
    """
    if granularity == "tensor":
        return (1,)
    if granularity == "row":
        return (out_features, 1)
    if group_size is None or in_features % group_size:
        raise ValueError(f"groups of {group_size} do not divide {in_features} inputs")
    return (out_features, in_features // group_size)


def scale_of(weight: Tensor, scheme: Scheme) -> Tensor:
    """The scales that a scheme's rule gives a weight matrix.

    Args:
        weight: `[out, in]`, any float dtype.

    Returns:
        float32 scales, shaped as `scale_shape` says; 0 for an all-zero block.

    Raises:
        ValueError: a weight is not finite, or the group size does not divide `in`.
    """
    if not torch.isfinite(weight).all():
        raise ValueError("a weight is not finite")
    out_features, in_features = weight.shape
    shape = scale_shape(out_features, in_features, scheme.granularity, scheme.group_size)
    magnitude = weight.detach().abs().double()
    blocks = magnitude.reshape(-1, in_features // shape[1] if len(shape) == 2 else weight.numel())
    if scheme.rule == "absmean":
        scale = scheme.beta * blocks.mean(dim=1)
    else:
        prefix = blocks.sort(dim=1, descending=True).values.cumsum(dim=1)
        count = torch.arange(1, blocks.shape[1] + 1, dtype=torch.float64, device=weight.device)
        best = (prefix.square() / count).argmax(dim=1, keepdim=True)
        scale = (prefix.gather(1, best) / (best + 1)).squeeze(1)
    return scale.float().reshape(shape)


def expand_scale(scale: Tensor, out_features: int, in_features: int) -> Tensor:
    """Scales `[1]`, `[out, 1]` or `[out, in/g]` as a tensor that broadcasts against `[out, in]`."""
    if scale.dim() == 2 and scale.shape[1] > 1:
        return scale.repeat_interleave(in_features // scale.shape[1], dim=1)
    return scale


def codes_of(weight: Tensor, scale: Tensor) -> Tensor:
    """`clip(round_half_even(weight / scale), -1, 1)` as floats `[out, in]`; 0 where the scale is 0."""
    wide = expand_scale(scale, *weight.shape)
    codes = (weight / wide.clamp_min(torch.finfo(torch.float32).tiny)).round_().clamp_(-1, 1)
    return codes * (wide > 0)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """The dense weights `codes * scale`, float32 `[out, in]`."""
    return codes.float() * expand_scale(scale.float(), *codes.shape)


def straight_through(value: Tensor, smooth: Tensor) -> Tensor:
    """`value` forward, the gradient of `smooth` backward (and that of `value` where it has one)."""
    return value + (smooth - smooth.detach())


def quantize_tokens(x: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per token.

    Args:
        x: `[..., in]` float.

    Returns:
        q: float32 `[..., in]` holding integers in [-127, 127]; t: float32 `[..., 1]`, with x ≈ q·t. An all-zero
        token has t = 0.
    """
    x = x.float()
    t = x.abs().amax(dim=-1, keepdim=True) / INT8_MAX
    return (x / t.clamp_min(torch.finfo(torch.float32).tiny)).round_(), t


def fake_quantize_tokens(x: Tensor) -> Tensor:
    """`quantize_tokens` and back, with a straight-through gradient; same shape and dtype as `x`."""
    q, t = quantize_tokens(x.detach())
    return straight_through((q * t).to(x.dtype), x)


def quantize_rows(table: Tensor) -> tuple[Tensor, Tensor]:
    """Int8 rows of an embedding table, with the float16 scale of the packed format.

    Args:
        table: `[..., dim]` float.

    Returns:
        q: float32 `[..., dim]` holding integers in [-127, 127]; scale: float16 `[..., 1]`.
    """
    table = table.float()
    scale = (table.abs().amax(dim=-1, keepdim=True) / INT8_MAX).half()
    wide = scale.float()
    q = (table / wide.clamp_min(torch.finfo(torch.float32).tiny)).round_().clamp_(-INT8_MAX, INT8_MAX)
    return q * (wide > 0), scale


def ternary_linear(x: Tensor, codes: Tensor, scale: Tensor, bias: Tensor | None, *, activation_bits: int = 8) -> Tensor:
    """The definition of a ternary layer's output.

    Args:
        x: `[..., in]` float.
        codes: `[out, in]`, values in {-1, 0, 1}, any dtype.
        scale: `[1]`, `[out, 1]` or `[out, in/g]`; used as float32.
        bias: `[out]` or None.
        activation_bits: 8 multiplies int8 activations exactly; 16 multiplies `x` as it is.

    Returns:
        `[..., out]` in the dtype of `x`.
    """
    codes, scale = codes.float(), scale.float()
    if activation_bits != 8:
        y = x.float() @ dequantize(codes, scale).T
    else:
        q, t = quantize_tokens(x)
        if scale.dim() == 2 and scale.shape[1] > 1:
            grouped = codes.unflatten(1, (scale.shape[1], -1))
            sums = torch.einsum("...gi,ogi->...og", q.unflatten(-1, (scale.shape[1], -1)), grouped)
            y = (sums * scale).sum(dim=-1) * t
        else:
            y = (q @ codes.T) * scale.flatten() * t
    if bias is not None:
        y = y + bias.float()
    return y.to(x.dtype)
