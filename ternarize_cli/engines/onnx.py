"""Rivals run by ONNX Runtime on the CPU: fp32, and int8 by dynamic quantisation.

For int8, `onnxruntime.quantization.quantize_dynamic` converts the fp32 export: weights of matrix products to int8 with
a scale per output channel, word tables to int8 with one scale, activations to uint8 with a scale computed in each call.
Scales per channel matter: with one scale per matrix all-MiniLM-L6-v2 keeps a mean cosine of .970 to its fp32
vectors, with one per channel .993. Running ONNX Runtime's graph optimiser before made nothing faster.

On x86 without VNNI, two neighbouring products of uint8 and int8 are added in 16 bits, which can overflow. Weights then
use 7 of their 8 bits, as ONNX Runtime's documentation advises.
"""

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ternarize_cli.engines import exports
from ternarize_cli.engines.baselines import EXACT, ROUNDED, Forward, rival
from ternarize_cli.engines.onnx_session import forward_of_onnx
from ternarize_cli.measuring import machine

__all__ = ["int8_model", "weight_bits"]


_LARGE = 1_500_000_000
"""Bytes of an export above which the result takes a second file: one file holds at most 2^31 bytes."""


def weight_bits() -> int:
    """Number of bits of an int8 weight that are used on this machine: 7 on x86 without VNNI, else 8."""
    wide = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine.instruction_sets())
    return 7 if platform.machine().lower() in ("x86_64", "amd64") and not wide else 8


def int8_model(folder: Path) -> Path:
    """Converts the model's fp32 export to int8, unless the result exists; returns the path of `model.onnx`."""
    bits = weight_bits()

    def make(output: Path) -> None:
        source = exports.onnx_export(folder)
        with exports.quiet():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(
                source,
                output / "model.onnx",
                per_channel=True,
                reduce_range=bits == 7,
                weight_type=QuantType.QInt8,
                use_external_data_format=exports.bytes_of(source.parent) > _LARGE,
            )

    decides = {name: version(name) for name in ("torch", "transformers", "onnxscript", "onnxruntime")}
    return exports.cached_export(folder, "onnx-int8", decides | {"bits": bits}, make) / "model.onnx"


_SHARED: dict[str, Any] = {"needs": ("onnx", "onnxscript"), "runtime": "onnxruntime", "cpu_only": True}


@rival(
    "onnx-int8",
    "ONNX Runtime, dynamic int8 quantisation, weights per channel",
    make=int8_model,
    tolerance=ROUNDED,
    **_SHARED,
)
@rival("onnx-fp32", "ONNX Runtime, fp32", make=exports.onnx_export, tolerance=EXACT, **_SHARED)
def _onnx(path: Path, device: str) -> Forward:
    return forward_of_onnx(path)
