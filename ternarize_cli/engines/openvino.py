"""Rivals run by OpenVINO on the CPU: fp32, bf16, and int8 by NNCF's post-training quantisation.

All read the ONNX export. int8 is `nncf.quantize` for transformers: weights per channel, activations with fixed ranges,
found on calibration batches (minutes for a large model), SmoothQuant and bias correction included. Where accuracy
counts, calibrate on real text; `bench` has none and feeds random values, which cost the same time. On a CPU with bf16
units OpenVINO runs what int8 leaves in bf16; that is its own choice and stays so. Its threads sleep between calls.

NNCF reports its use to its makers unless told that it runs in a test system. A command that measures must not call
anybody, so it is told so.
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
from ternarize_cli.measuring.timing import Point

__all__ = ["forward_of_openvino", "int8_model"]

_RANDOM = 32, 64
"""Random inputs that `bench` calibrates on: how many, and texts of how many tokens."""


def int8_model(folder: Path, calibration: Sequence[inputs.Batch]) -> Path:
    """The model in `folder` as int8: the path of `model.xml` in its own folder.

    Args:
        folder: the full-precision model.
        calibration: batches without padding, which would widen the ranges; 300 of one text each are NNCF's custom.
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
    """Compiles an ONNX or OpenVINO file for the CPU, with as many threads as torch uses now.

    Args:
        path: `model.onnx` or `model.xml`.
        precision: "f32" or "bf16" for what is not quantised; None leaves the choice to OpenVINO.
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
    batch = inputs.random_batch(folder, Point(count, tokens), seed=0)
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
