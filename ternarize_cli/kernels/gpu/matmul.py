"""Products of 8-bit activations and ternary weights, in Triton.

    kernel      weights                           result
    few_rows    2 bits, unpacked in registers     finished, or raw sums to which several programs add (split inputs)
    many_rows   int8 or e4m3, expanded            finished

2-bit weights are stored as in the file: byte j of a row holds the codes + 1 of inputs 4j to 4j + 3. Unpacked, bits 0-1
of b consecutive bytes are every fourth of 4b inputs, and so are bits 2-3, 4-5 and 6-7. So activations are stored in
that order: in blocks of 4b, first the inputs 0, 4, 8, …, then 1, 5, 9, … (`in_order`; `rounding.store_rounded` stores
them so). A row is padded with zeros to whole blocks, and the number of rows to a multiple of 64. Expanded weights are
in natural order.

Sums are int32 and exact, or float32 for e4m3. A finished result is `sum · weight scale · token scale + bias`, in this
order.

Kernels begin with `gdc_wait`: if the launch allows it (programmatic dependent launch, sm_90), a kernel is set up while
the one before still runs.
"""

import os
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.tools.tensor_descriptor import TensorDescriptor

from ternarize_cli.kernels.gpu.activation import activated, gelu_times

__all__ = [
    "FewRows",
    "ManyRows",
    "block_of",
    "expand",
    "few_rows",
    "filled",
    "in_order",
    "launch_options",
    "lay_out",
    "many_rows",
    "on_gpu",
    "overlaps",
]

_FILLED = 64
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def on_gpu() -> bool:
    """Whether kernels are compiled; Triton's interpreter knows neither inline assembly nor `gdc_wait`."""
    return not INTERPRETED


@cache
def overlaps() -> bool:
    """Whether the GPU can set up a kernel while the one before runs."""
    return on_gpu() and torch.cuda.get_device_capability() >= (9, 0)


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """Waits for the kernel before; a kernel calls it before it reads or writes anything."""
    if OVERLAP:
        gdc_wait()
        gdc_launch_dependents()


@triton.jit
def nearest(x):
    """Rounds `x` to integers, half to even; needs |x| < 2^22."""
    return (x + 12582912.0) - 12582912.0


def _unpacking(which: int) -> tl.constexpr:
    """Assembly that unpacks four codes at a time. It adds 0x7f to 0, 1, 2, which gives 0x7f, 0x80, 0x81."""
    return tl.constexpr(
        f"{{ .reg .b32 t; shr.b32 t, $1, {2 * which}; and.b32 t, t, 0x03030303; "
        "add.u32 t, t, 0x7f7f7f7f; xor.b32 $0, t, 0x80808080; }"
    )


_UNPACK_0, _UNPACK_1, _UNPACK_2, _UNPACK_3 = map(_unpacking, range(4))


@triton.jit
def _codes(packed, WHICH: tl.constexpr, NATIVE: tl.constexpr):
    """Unpacks the int8 codes in bits 2·WHICH and 2·WHICH + 1 of uint8 `packed`."""
    if not NATIVE:
        return ((packed >> (2 * WHICH)) & 3).to(tl.int8) - 1
    elif WHICH == 0:
        return tl.inline_asm_elementwise(_UNPACK_0, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
    elif WHICH == 1:
        return tl.inline_asm_elementwise(_UNPACK_1, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
    elif WHICH == 2:
        return tl.inline_asm_elementwise(_UNPACK_2, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)
    else:
        return tl.inline_asm_elementwise(_UNPACK_3, "=r,r", [packed], dtype=tl.int8, is_pure=True, pack=4)


def block_of(*inputs: int) -> int:
    """Chooses b for layers of these numbers of inputs: the value with the least padding; 64 if 32 has as little."""
    return min((64, 32), key=lambda b: sum(-n % (4 * b) for n in inputs))


def filled(inputs: int, b: int) -> int:
    """Rounds the inputs of a row up to whole blocks of 4b."""
    return -(-inputs // (4 * b)) * 4 * b


def lay_out(codes: Tensor, b: int) -> Tensor:
    """Packs int8 codes `[out, in]` to uint8 `[out rounded up to a multiple of 64, filled / 4]`."""
    rows, inputs = codes.shape
    padded = F.pad(codes, (0, filled(inputs, b) - inputs, 0, -rows % _FILLED))
    parts = (padded + 1).to(torch.uint8).view(len(padded), -1, 4)
    return parts[..., 0] | parts[..., 1] << 2 | parts[..., 2] << 4 | parts[..., 3] << 6


def in_order(x: Tensor, b: int) -> Tensor:
    """Reorders `[rows, in]` to `[rows, filled]`, the order of the packed weights."""
    padded = F.pad(x, (0, filled(x.shape[1], b) - x.shape[1]))
    return padded.view(len(x), -1, b, 4).transpose(2, 3).flatten(1).contiguous()


class FewRows(NamedTuple):
    """The configuration of `few_rows`: rows and outputs of a program, warps, pipeline stages, parts of the inputs."""

    rows: int = 16
    outputs: int = 32
    warps: int = 4
    stages: int = 4
    parts: int = 1


@triton.jit(do_not_specialize=["rows"])
def _few_rows(
    x_ptr, t_ptr, w_ptr, scale_ptr, bias_ptr, y_ptr, rows, outputs,
    BLOCKS: tl.constexpr, PARTS: tl.constexpr, ACTIVATION: tl.constexpr, BIAS: tl.constexpr,
    NATIVE: tl.constexpr, OVERLAP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, B)
    here = m < rows
    begin(OVERLAP)
    total = tl.zeros((BN, BM), tl.int32)
    first = tl.program_id(2) * (BLOCKS // PARTS)
    for block in range(first, first + BLOCKS // PARTS):
        packed = tl.load(w_ptr + n[:, None] * (BLOCKS * B) + block * B + k[None, :])
        for i in tl.static_range(4):
            at = block * 4 * B + i * B + k
            x = tl.load(x_ptr + m[None, :] * (BLOCKS * 4 * B) + at[:, None], here[None, :], 0)
            total = tl.dot(_codes(packed, i, NATIVE), x, total, out_dtype=tl.int32)
    inside = here[None, :] & (n < outputs)[:, None]
    at = m[None, :] * outputs + n[:, None]
    if PARTS > 1:
        tl.atomic_add(y_ptr + at, total, inside, sem="relaxed")
    else:
        scale = tl.load(scale_ptr + n, n < outputs, 0.0)
        y = total.to(tl.float32) * scale[:, None] * tl.load(t_ptr + m, here, 0.0)[None, :]
        if BIAS:
            y += tl.load(bias_ptr + n, n < outputs, 0.0)[:, None]
        if ACTIVATION is not None:
            y = activated(y, ACTIVATION, NATIVE)
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), inside)


def few_rows(
    x: Tensor, t: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None, b: int, *,
    activation: str | None = None, out: torch.dtype = torch.float16, how: FewRows = FewRows(),
    sums: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Multiplies few rows, int8 `[rows, in]`, by 2-bit weights: `[rows, out]`.

    Args:
        x: the activations in the order of `in_order`.
        t: their scales, float32 `[rows]`.
        weight: weights as `lay_out` packs them.
        scale: float32 `[out]`, scales of the weights.
        bias: float32 `[out]`, or None.
        b: block size with which the weights were packed.
        activation: one of `format.block.ACTIVATIONS`, which is applied to the result; None for none.
        out: dtype of the result.
        how: the configuration. If the inputs are cut into several parts, which must divide the blocks, only raw sums
            are computed and added to `sums`.
        sums: int32 `[rows, out]`, to which raw sums are added.
    """
    rows, outputs = len(x), len(scale)
    y = torch.empty(rows, outputs, dtype=out, device=x.device) if sums is None else sums
    overlap = overlaps()
    _few_rows[(triton.cdiv(outputs, how.outputs), triton.cdiv(rows, how.rows), how.parts)](
        x, t, weight, scale, bias, y, rows, outputs,
        BLOCKS=weight.shape[1] // b, PARTS=how.parts, ACTIVATION=activation, BIAS=bias is not None,
        NATIVE=on_gpu(), OVERLAP=overlap, BM=how.rows, BN=how.outputs, B=b,
        num_warps=how.warps, num_stages=how.stages, **launch_options(overlap),
    )  # fmt: skip
    return y


def launch_options(overlap: bool) -> dict[str, Any]:
    """Launch options that let kernels be set up ahead, if `overlap`."""
    return {"launch_pdl": True} if overlap else {}


@triton.jit
def _expand(w_ptr, y_ptr, count, BYTES: tl.constexpr, OVERLAP: tl.constexpr):
    at = tl.program_id(0) * BYTES + tl.arange(0, BYTES)
    begin(OVERLAP)
    packed = tl.load(w_ptr + at, at < count, 0).to(tl.int32)
    spread = (packed & 3) | (packed & 12) << 6 | (packed & 48) << 12 | (packed & 192) << 18
    tl.store(y_ptr + at, (spread + 0x7F7F7F7F) ^ -0x7F7F7F80, at < count)  # 0, 1, 2 and 0x7f are 0x7f, 0x80, 0x81


def expand(weights: Tensor, codes: Tensor) -> None:
    """Expands weights that `lay_out` packed, of one layer or several, to int8 codes in natural order."""
    overlap = overlaps()
    _expand[(triton.cdiv(weights.numel(), 2048),)](
        weights,
        codes.view(torch.int32),
        weights.numel(),
        BYTES=2048,
        OVERLAP=overlap,
        num_warps=8,
        **launch_options(overlap),
    )


class ManyRows(NamedTuple):
    """The configuration of `many_rows`: rows, outputs, inputs of a tile, warps, stages, programs a multiprocessor."""

    rows: int = 128
    outputs: int = 256
    inputs: int = 128
    warps: int = 8
    stages: int = 3
    programs: int = 1


@triton.jit
def _finished(
    total, scale_ptr, bias_ptr, token, n, outputs, first, EXACT: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    """Finishes sums: `sum · weight scale · token scale + bias`; the scales of these outputs begin at `first`."""
    if EXACT:  # conversions are slow: an integer below 2^22 is in the mantissa of 1.5 · 2^23 + integer
        sums = (total + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0
    else:
        sums = total
    y = sums * tl.load(scale_ptr + first + n, n < outputs, 0.0)[None, :] * token
    if BIAS:
        y += tl.load(bias_ptr + first + n, n < outputs, 0.0)[None, :]
    return y


@triton.jit(do_not_specialize=["rows", "programs"])
def _many_rows(
    x_desc, w_desc, y_desc, t_ptr, scale_ptr, bias_ptr, factor, times, rows, outputs, programs,
    INPUTS: tl.constexpr, EXACT: tl.constexpr, TOKEN: tl.constexpr, ACTIVATION: tl.constexpr, GATED: tl.constexpr,
    BIAS: tl.constexpr, TIMES: tl.constexpr, NATIVE: tl.constexpr, OVERLAP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(rows, BM), tl.cdiv(outputs, BN)
    in_group = GROUP * across
    begin(OVERLAP)
    for tile in tl.range(tl.program_id(0), down * across, programs, flatten=True):
        first = tile // in_group * GROUP
        size = min(down - first, GROUP)
        row = (first + tile % in_group % size) * BM
        column = tile % in_group // size * BN
        if EXACT:
            total = tl.zeros((BM, BN), tl.int32)
        else:
            total = tl.zeros((BM, BN), tl.float32)
        if GATED:
            other = tl.zeros_like(total)
            for k in range(0, INPUTS, BK):
                x = x_desc.load([row, k])
                total = tl.dot(x, w_desc.load([column, k]).T, total, out_dtype=total.dtype)
                other = tl.dot(x, w_desc.load([outputs + column, k]).T, other, out_dtype=total.dtype)
        else:
            for k in range(0, INPUTS, BK):
                total = tl.dot(x_desc.load([row, k]), w_desc.load([column, k]).T, total, out_dtype=total.dtype)
        m, n = row + tl.arange(0, BM), column + tl.arange(0, BN)
        if TOKEN:
            token = tl.load(t_ptr + m, m < rows, 0.0)[:, None]
        else:
            token = factor
        y = _finished(total, scale_ptr, bias_ptr, token, n, outputs, 0, EXACT, BIAS)
        if ACTIVATION == "gelu" and TIMES and NATIVE and not GATED:
            y = gelu_times(y, times)  # storing cuts larger values to 448
        else:
            if ACTIVATION is not None:
                y = activated(y, ACTIVATION, NATIVE)
            if GATED:
                y *= _finished(other, scale_ptr, bias_ptr, token, n, outputs, outputs, EXACT, BIAS)
            if TIMES:
                y = tl.minimum(tl.maximum(y * times, -448.0), 448.0)
        y_desc.store([row, column], y.to(y_desc.dtype))


def many_rows(
    x: Tensor, t: Tensor | float, weight: Tensor, scale: Tensor, bias: Tensor | None, *, activation: str | None = None,
    gated: bool = False, out: torch.dtype = torch.float16, times: float = 0.0, how: ManyRows = ManyRows(),
) -> Tensor:  # fmt: skip
    """Multiplies many rows by expanded weights, both int8 or both e4m3: `[rows, in]` to `[rows, out]`.

    Widths must be multiples of 16; int8 allows at most 33,000 inputs.

    Args:
        x: the activations.
        t: their scales, float32 `[rows]`, or one scale for all rows.
        weight: `[at least out, at least in]`, with zeros beyond `in`; `[2 * out, …]` if gated.
        scale: float32 `[out]`, scales of the weights; `[2 * out]` if gated.
        bias: float32, shaped like `scale`, or None.
        activation: one of `format.block.ACTIVATIONS`, which is applied to the result; None for none.
        gated: the second half of the weights' rows gives a second result, by which the activated one is multiplied.
        out: dtype of the result.
        times: for results in e4m3, a power of two in float16's range, by which they are multiplied before they are cut
            to ±448; 0 does neither.
        how: the configuration.
    """
    rows, inputs = x.shape
    outputs = len(scale) // 2 if gated else len(scale)
    y = torch.empty(rows, outputs, dtype=out, device=x.device)
    tiles = triton.cdiv(rows, how.rows) * triton.cdiv(outputs, how.outputs)
    programs = min(_multiprocessors(x.device) * how.programs, tiles)
    overlap = overlaps()
    known = isinstance(t, float)
    _many_rows[(programs,)](
        TensorDescriptor.from_tensor(x, [how.rows, how.inputs]),
        TensorDescriptor.from_tensor(weight, [how.outputs, how.inputs]),
        TensorDescriptor.from_tensor(y, [how.rows, how.outputs]),
        None if known else t, scale, bias, t if known else 1.0, times, rows, outputs, programs,
        INPUTS=inputs, EXACT=x.dtype == torch.int8, TOKEN=not known, ACTIVATION=activation, GATED=gated,
        BIAS=bias is not None, TIMES=times > 0,
        NATIVE=on_gpu(), OVERLAP=overlap, BM=how.rows, BN=how.outputs, BK=how.inputs, GROUP=8,
        num_warps=how.warps, num_stages=how.stages, **launch_options(overlap),
    )  # fmt: skip
    return y


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 4
    return torch.cuda.get_device_properties(device).multi_processor_count
