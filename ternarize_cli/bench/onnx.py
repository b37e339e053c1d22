"""Rivals run by ONNX Runtime on the CPU: fp32, and int8 by dynamic quantisation.

int8 is what `onnxruntime.quantization.quantize_dynamic` makes of the fp32 export: weights of matrix products as int8
with a scale per output channel, word tables as int8 with one scale, activations as uint8 with a scale found anew for
each call. Scales per channel matter: with one scale per matrix all-MiniLM-L6-v2 keeps a mean cosine of .970 to its fp32
vectors, with one per channel .993. ONNX Runtime's own graph optimiser, run before it, made nothing faster.

On x86 without VNNI two neighbouring products of uint8 and int8 are added up in 16 bits, which overflow; as its
documentation advises, weights then use 7 of their 8 bits.
"""

import platform
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from ternarize_cli.bench import exports, machine
from ternarize_cli.bench.baselines import Forward, on_cpu, rival

__all__ = ["forward_of_onnx", "int8_model", "weight_bits"]

NEEDS = ("onnx", "onnxscript", "onnxruntime")


@rival("onnx-fp32", "ONNX Runtime, fp32", needs=NEEDS)
def _onnx_fp32(folder: Path, device: str) -> Forward:
    on_cpu("onnx-fp32", device)
    return forward_of_onnx(exports.onnx_export(folder))


@rival("onnx-int8", "ONNX Runtime, dynamic int8 quantisation, weights per channel", needs=NEEDS)
def _onnx_int8(folder: Path, device: str) -> Forward:
    on_cpu("onnx-int8", device)
    return forward_of_onnx(int8_model(folder))


def weight_bits() -> int:
    """Bits of an int8 weight that are used on this machine: 7 on x86 without VNNI, else 8."""
    wide = {"avx512_vnni", "avx_vnni", "amx_int8"} & set(machine.facts()["isa"])
    return 7 if platform.machine().lower() in ("x86_64", "amd64") and not wide else 8


def int8_model(folder: Path) -> Path:
    """The model in `folder` as int8 ONNX, made of its fp32 export: the path of `model.onnx` in its own folder."""
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
            )

    decides = {name: version(name) for name in ("torch", "transformers", "onnxscript", "onnxruntime")}
    return exports.kept(folder, "onnx-int8", decides | {"bits": bits}, make) / "model.onnx"


def forward_of_onnx(path: Path) -> Forward:
    """Loads an export into ONNX Runtime, with as many threads as torch uses now."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # Idle threads would go on spinning for a while, and slow down whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def forward(ids: Tensor, mask: Tensor) -> Tensor:
        fed = {name: tensor.numpy() for name, tensor in zip(exports.INPUTS, (ids, mask), strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return forward
