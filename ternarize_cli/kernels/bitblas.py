"""BitBLAS: int8 activations × 2-bit weights on NVIDIA GPUs (extra `ternarize-cli[bitblas]`).

The library (arXiv 2411.15438 uses it) generates a CUDA kernel per weight shape and compiles it with nvcc, which takes
some seconds a shape. Its last release was made for CUDA 12 and cards up to Ada; what it takes to run it elsewhere is
gathered here:

- its shared objects link the CUDA 12 runtime and NVRTC, which newer torch builds don't bring: the extra's wheels do,
  and they are loaded ahead of the import;
- Hopper and newer: kernels are generated for sm_80 and handed to the driver as PTX, which compiles it for the card.
  nvcc takes that extra target from NVCC_APPEND_FLAGS (`_compiling`);
- its kernel for one row is wrong, so rows are padded to 16 and the row count stays dynamic. Every operator is compared
  with the integer product when it is built, and refused if it differs.
"""

import ctypes
import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ternarize_cli.errors import UnavailableError
from ternarize_cli.kernels import Kernel, register
from ternarize_cli.ternary import quantize_tokens

if TYPE_CHECKING:
    from ternarize_cli.layers import PackedLinear

__all__ = ["BitBlas"]

_MULTIPLE = 16
_MIN_ROWS = 16
_TUNED_ROWS = [16, 32, 64, 128, 256, 512, 1024]
_PTX_FOR_THE_DRIVER = "-gencode arch=compute_80,code=compute_80"


@register
class BitBlas:
    """int8 × int2 through BitBLAS operators."""

    name = "bitblas"
    device = "cuda"
    weights = "int2, laid out at load"
    levels: tuple[str, ...] = ("ternary",)
    granularities: tuple[str, ...] = ("row", "tensor")

    def missing(self) -> str | None:
        """Needs an NVIDIA GPU (Ampere or newer), nvcc, and the package with its CUDA 12 libraries."""
        reasons = []
        if not torch.cuda.is_available():
            reasons.append("torch sees no NVIDIA GPU")
        elif torch.cuda.get_device_capability() < (8, 0):
            reasons.append(f"{torch.cuda.get_device_name()} is older than Ampere")
        if importlib.util.find_spec("bitblas") is None:
            reasons.append("the package bitblas is not installed (pip install 'ternarize-cli[bitblas]')")
        if shutil.which("nvcc") is None:
            reasons.append("nvcc is not on PATH (it compiles the kernels)")
        return "; ".join(reasons) or None

    def refuses(self, layer: "PackedLinear") -> str | None:
        """Takes int8 activations and widths that are multiples of 16, on a GPU."""
        if layer.weight.device.type != "cuda":
            return f"the model is on {layer.weight.device}, and bitblas runs on cuda"
        if layer.scheme.activation_bits != 8:
            return "its activations are not int8"
        if layer.in_features % _MULTIPLE or layer.out_features % _MULTIPLE:
            return f"a linear is {layer.out_features} × {layer.in_features}, and bitblas takes multiples of {_MULTIPLE}"
        return None

    def prepare(self, layer: "PackedLinear") -> Kernel:
        """Builds the operator for this shape (once) and lays the weights out for it."""
        operator = _operator(layer.out_features, layer.in_features)
        weight = operator.transform_weight(layer.codes())
        scale = layer.weight_scale.float().flatten()
        bias, out_features = layer.bias, layer.out_features

        def run(x: Tensor) -> Tensor:
            q, t = quantize_tokens(x.reshape(-1, x.shape[-1]))
            y = _multiply(operator, q, weight).float() * scale * t
            if bias is not None:
                y = y + bias.float()
            return y.to(x.dtype).reshape(*x.shape[:-1], out_features)

        return run


def _multiply(operator: Any, q: Tensor, weight: Tensor) -> Tensor:
    """int32 `[rows, out]` of integer-valued `q` `[rows, in]`; few rows are padded with zeros."""
    rows = len(q)
    if rows < _MIN_ROWS:
        q = torch.nn.functional.pad(q, (0, 0, 0, _MIN_ROWS - rows))
    return operator(q.to(torch.int8).contiguous(), weight)[:rows]


@lru_cache(maxsize=64)
def _operator(out_features: int, in_features: int) -> Any:
    """The operator for a weight shape, checked against the integer product.

    Raises:
        UnavailableError: BitBLAS could not be loaded, could not build it, or computes something else.
    """
    _load_cuda_12()
    hopper = torch.cuda.get_device_capability() >= (9, 0)
    try:
        import bitblas

        config = bitblas.MatmulConfig(
            M=_TUNED_ROWS,
            N=out_features,
            K=in_features,
            A_dtype="int8",
            W_dtype="int2",
            accum_dtype="int32",
            out_dtype="int32",
            layout="nt",
            with_bias=False,
        )
        with _compiling(as_ampere=hopper):
            operator = bitblas.Matmul(config, target="cuda -arch=sm_80" if hopper else None, enable_tuning=False)
        _check(operator, out_features, in_features)
    except (ImportError, OSError, RuntimeError, ValueError, AttributeError, TypeError) as e:
        text = " ".join(str(e).split())[:200]
        raise UnavailableError(
            f"bitblas could not build its kernel for {out_features} × {in_features}: {type(e).__name__}: {text}",
            hint="ternarize doctor, or another --backend",
        ) from e
    return operator


def _check(operator: Any, out_features: int, in_features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-1, 2, (out_features, in_features), generator=generator, dtype=torch.int8)
    weight = operator.transform_weight(codes.cuda())
    for rows in (1, 17, 130):
        q = torch.randint(-127, 128, (rows, in_features), generator=generator).float()
        got = _multiply(operator, q.cuda(), weight).cpu()
        if not torch.equal(got.float(), q @ codes.float().T):
            raise RuntimeError(f"its results are wrong at {rows} rows")


def _load_cuda_12() -> None:
    """Loads the CUDA 12 libraries that BitBLAS links from their wheels, where they are installed.

    Not globally: their symbols must not stand in for those of the newer CUDA that torch has loaded.
    """
    for package, pattern in (("nvidia.cuda_runtime", "libcudart.so.12*"), ("nvidia.cuda_nvrtc", "libnvrtc.so.12*")):
        try:
            spec = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            continue
        for root in (spec.submodule_search_locations or []) if spec else []:
            for library in sorted((Path(root) / "lib").glob(pattern)):
                ctypes.CDLL(str(library))


@contextmanager
def _compiling(*, as_ampere: bool) -> Iterator[None]:
    """Keeps nvcc's warnings about BitBLAS's headers off stderr, and where asked compiles for sm_80 with PTX beside it.

    The one patch point is the method that calls nvcc for the library; nvcc takes more flags from the environment.
    """
    from bitblas.builder.lib_generator import LibraryGenerator

    original = LibraryGenerator.compile_lib

    def compile_lib(self: Any, *args: Any, **kwargs: Any) -> Any:
        flags = os.environ.get("NVCC_APPEND_FLAGS")
        os.environ["NVCC_APPEND_FLAGS"] = " ".join(
            filter(None, [flags, "-w", _PTX_FOR_THE_DRIVER if as_ampere else ""])
        )
        if as_ampere:
            self.arch.compute_capability = "80"
        try:
            return original(self, *args, **kwargs)
        finally:
            if flags is None:
                del os.environ["NVCC_APPEND_FLAGS"]
            else:
                os.environ["NVCC_APPEND_FLAGS"] = flags

    LibraryGenerator.compile_lib = compile_lib
    try:
        yield
    finally:
        LibraryGenerator.compile_lib = original
