"""Rivals run by OpenVINO on the CPU: fp32, bf16, and int8 by NNCF's post-training quantisation.

All read the ONNX export. int8 is made by `nncf.quantize` for transformers: weights per channel, activations with fixed
ranges from calibration batches (minutes for a large model), with SmoothQuant and bias correction. If accuracy matters,
calibrate on real text; `bench` uses random values, with which a pass takes as long. On a CPU with bf16 units, OpenVINO
runs all operations that are not int8 in bf16; this default of OpenVINO is kept. Its threads sleep between calls.

NNCF sends usage reports to its makers unless it believes to run in a test system. A command that measures must not use
the network, so NNCF gets this setting.
"""

import hashlib
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.engines import exports, inputs
from ternarize_cli.engines.baselines import Forward, rival
from ternarize_cli.measuring.timing import GridPoint

__all__ = ["forward_of_openvino", "int8_model"]

_RANDOM = 32, 64
"""Number of random inputs with which `bench` calibrates, and number of tokens of each text."""


def int8_model(folder: Path, calibration: Sequence[inputs.Batch]) -> Path:
    """Converts a model to int8, unless the result exists; returns the path of `model.xml`.

    Args:
        folder: the folder of the full-precision model.
        calibration: batches without padding, which would widen the ranges; NNCF recommends 300 of one text each.
    """

    def make(output: Path) -> None:
        os.environ.setdefault("NNCF_CI", "1")
        with exports.quiet():
            import nncf
            import openvino

            feeds = [[tensor.numpy() for tensor in batch] for batch in calibration]
            model = nncf.quantize(
                openvino.Core().read_model(exports.onnx_export(folder)),
                nncf.Dataset(feeds),
                model_type=nncf.ModelType.TRANSFORMER,
                subset_size=len(feeds),
            )
            openvino.save_model(model, output / "model.xml", compress_to_fp16=False)

    digest = hashlib.sha256()
    for batch in calibration:
        for tensor in batch:
            digest.update(repr(tensor.tolist()).encode())
    libraries = ("torch", "transformers", "onnxscript", "openvino", "nncf")
    decides = {name: version(name) for name in libraries} | {"calibration": digest.hexdigest()}
    return exports.kept(folder, "openvino-int8", decides, make) / "model.xml"


def forward_of_openvino(path: Path, *, precision: str | None = None) -> Forward:
    """Compiles an ONNX or OpenVINO file for the CPU, with the number of threads that torch uses now.

    Args:
        path: path of `model.onnx` or `model.xml`.
        precision: "f32" or "bf16" for operations that are not quantised; None leaves the choice to OpenVINO.
    """
    import openvino

    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    hint = {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    request = openvino.Core().compile_model(path, "CPU", settings | hint).create_infer_request()

    def forward(*batch: Tensor) -> Tensor:
        return torch.from_numpy(request.infer([tensor.numpy() for tensor in batch])[0])

    return forward


def _int8_of_random_inputs(folder: Path) -> Path:
    count, tokens = _RANDOM
    batch = inputs.random_batch(folder, GridPoint(count, tokens), seed=0)
    return int8_model(folder, list(zip(*(tensor.split(1) for tensor in batch), strict=True)))


def _without_bf16() -> str | None:
    import openvino

    found = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return None if "BF16" in found else "OpenVINO finds no bf16 units in this CPU"


_NEEDS = ("onnx", "onnxscript")
_SHARED: dict[str, Any] = {"runtime": "openvino", "cpu_only": True}


@rival("openvino-fp32", "OpenVINO, fp32", needs=_NEEDS, make=exports.onnx_export, **_SHARED)
def _openvino_fp32(path: Path, device: str) -> Forward:
    return forward_of_openvino(path, precision="f32")


@rival("openvino-bf16", "OpenVINO, bf16", needs=_NEEDS, make=exports.onnx_export, missing=_without_bf16, **_SHARED)
def _openvino_bf16(path: Path, device: str) -> Forward:
    return forward_of_openvino(path, precision="bf16")


@rival(
    "openvino-int8",
    "OpenVINO, NNCF int8, calibrated on random inputs",
    needs=(*_NEEDS, "nncf"),
    make=_int8_of_random_inputs,
    **_SHARED,
)
def _openvino_int8(path: Path, device: str) -> Forward:
    return forward_of_openvino(path)
