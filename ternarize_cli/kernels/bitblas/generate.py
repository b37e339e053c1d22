"""Has BitBLAS write one kernel, in a process of its own: `python -m ternarize_cli.kernels.bitblas.generate`.

BitBLAS brings its own TVM, links CUDA 12 and needs a visible GPU to be imported, so the process that runs models never
imports it. This process reads JSON from stdin (outputs, inputs, activations, target) and writes the CUDA source, with
`init` and `call`, to the file that the JSON names. Two public hooks keep BitBLAS from calling nvcc itself, which it
would do twice and for the wrong GPU: TVM's registry of functions and the operator's `lib_generator`.
"""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["main", "mended", "source"]

_TUNED_ROWS = [16, 32, 64, 128, 256, 512, 1024]
_EIGHT_ZEROS = re.compile(r"make_int2\((\(signed char\)0(, )?){8}\)")
_SUMS = {"int8": "int32", "float16": "float32"}


def source(outputs: int, inputs: int, activations: str, target: str) -> str:
    """Has BitBLAS write the CUDA source of the product of `[rows, inputs]` and 2-bit `[outputs, inputs]`, any rows.

    Args:
        outputs, inputs: widths, multiples of 16.
        activations: "int8" (int32 sums) or "float16" (float32 sums).
        target: a target of TVM, such as "cuda -arch=sm_80".

    Raises:
        RuntimeError: BitBLAS wrote no kernel; its reason is on stderr.
    """
    import bitblas
    from bitblas.builder.lib_generator import LibraryGenerator

    bitblas.tvm.register_func("tilelang_callback_cuda_compile", lambda code, target: "", override=True)

    class Kept(LibraryGenerator):  # type: ignore[misc]
        def compile_lib(self, timeout: float | None = None, with_tl: bool = False) -> None:
            pass

        def load_lib(self) -> Any:
            return SimpleNamespace(init=lambda: None)

    config = bitblas.MatmulConfig(
        M=_TUNED_ROWS,
        N=outputs,
        K=inputs,
        A_dtype=activations,
        W_dtype="int2",
        accum_dtype=_SUMS[activations],
        out_dtype=_SUMS[activations],
        layout="nt",
        with_bias=False,
    )
    operator = bitblas.Matmul(config, target=target, enable_tuning=False, from_database=True)
    operator.lib_generator = Kept(operator.arch)
    operator._build_default_module(operator.target)
    if not operator.wrapped_source:
        raise RuntimeError("bitblas wrote no kernel")
    return mended(str(operator.wrapped_source))


def mended(code: str) -> str:
    """Rewrites zeros of 8 bytes, which stand for a tile beyond the edge, in the form that CUDA's headers know."""
    return _EIGHT_ZEROS.sub("make_int2(0, 0)", code)


def main() -> None:
    """Reads the request from stdin and writes the CUDA source."""
    wanted = json.load(sys.stdin)
    file = Path(wanted.pop("file"))
    file.write_text(source(**wanted), encoding="utf-8")


if __name__ == "__main__":
    main()
