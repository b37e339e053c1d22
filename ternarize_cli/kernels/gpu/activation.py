"""Activations for use in kernels: of float32; and GELU of pairs of float16 that are then rounded to e4m3."""

import triton
import triton.language as tl

__all__ = ["activated", "gelu_times"]


@triton.jit
def activated(x, NAME: tl.constexpr, NATIVE: tl.constexpr):
    """Computes an activation, one of `format.block.ACTIVATIONS`, of float32 `x`.

    All but ReLU are x·(1 + tanh(half)) / 2, with a polynomial `half`. For SiLU and quick GELU that is the sigmoid. For
    GELU, Φ is within 2.6e-5 of a logistic function of a polynomial, which was fitted to it. The GPU's own tanh has a
    relative error of 2^-11, which is that of a float16 result.
    """
    if NAME == "relu":
        return tl.maximum(x, 0.0)
    else:
        if NAME == "silu":
            half = 0.5 * x
        elif NAME == "quick_gelu":
            half = 0.851 * x
        elif NAME == "gelu_tanh":
            half = x * (0.7978845608 + 0.0356774081 * x * x)
        else:
            square = tl.minimum(x * x, 25.0)
            half = x * (0.79750788 + square * (0.037005655 - 0.00035151 * square))
        if NATIVE:
            t = tl.inline_asm_elementwise(
                "tanh.approx.f32 $0, $1;", "=f,f", [half], dtype=tl.float32, is_pure=True, pack=1
            )
        else:
            t = 2.0 / (1.0 + tl.exp2(tl.minimum(-2.8853901 * half, 126.0))) - 1.0
        return 0.5 * x + 0.5 * x * t


# x·Φ(x)·times of two float16 at a time. Φ is 0.5 + x·(e + s·(d + s·(c + s·(b + s·a)))), s = x², cut off below 0 and
# above 1; a to e, 1.705e-5, -5.598e-4, 7.8125e-3, -.06305 and .3972, were fitted to it and are float16 themselves.
_TWO_GELUS = tl.constexpr(
    "{ .reg .b32 s, r, a, b, c, d, e, f; "
    "mov.b32 a, 0x011E011E; mov.b32 b, 0x90969096; mov.b32 c, 0x20002000; "
    "mov.b32 d, 0xAC09AC09; mov.b32 e, 0x365B365B; mov.b32 f, 0x38003800; "
    "mul.rn.f16x2 s, $1, $1; fma.rn.f16x2 r, s, a, b; fma.rn.f16x2 r, s, r, c; fma.rn.f16x2 r, s, r, d; "
    "fma.rn.f16x2 r, s, r, e; fma.rn.sat.f16x2 r, $1, r, f; mul.rn.f16x2 r, $1, r; mul.rn.f16x2 $0, r, $2; }"
)


@triton.jit
def gelu_times(x, times):
    """Computes GELU of `x`, times `times`, as float16 for e4m3. Runs on GPUs only; x must be above -65,504.

    It handles two values an instruction and needs no tanh, of which a multiprocessor computes only 16 a clock. The
    error of GELU is at most .005, 4e-4 rms (normal inputs), which makes the error of rounding to e4m3 .03% larger.
    """
    x, times = x.to(tl.float16), times.to(tl.float16)
    return tl.inline_asm_elementwise(_TWO_GELUS, "=r,r,r", [x, times], dtype=tl.float16, is_pure=True, pack=2)
