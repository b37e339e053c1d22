"""Rivals run by OpenVINO on the CPU: fp32, bf16, and int8 by NNCF's post-training quantisation.

All read the ONNX export. int8 is made by `nncf.quantize` for transformers: weights per channel, activations with fixed
ranges from calibration batches (minutes for a large model), with SmoothQuant and bias correction. If accuracy matters,
calibrate on real text; `bench` uses random values, with which a pass takes as long. On a CPU with bf16 units, OpenVINO
runs all operations that are not int8 in bf16; this default of OpenVINO is kept. Its threads sleep between calls.

OpenVINO runs in processes of its own, one for each model; `openvino_runtime` says why.
"""

import functools
import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.engines import exports, inputs, openvino_runtime
from ternarize_cli.engines.baselines import EXACT, ROUNDED, Forward, rival
from ternarize_cli.measuring.child import Child
from ternarize_cli.measuring.timing import GridPoint

__all__ = ["OpenVinoForward", "int8_model"]

_RANDOM = 32, 64
"""Number of random inputs with which `bench` calibrates, and number of tokens of each text."""


def int8_model(folder: Path, calibration: Sequence[inputs.Batch]) -> Path:
    """Converts a model to int8, unless the result exists; returns the path of `model.xml`.

    Args:
        folder: the folder of the full-precision model.
        calibration: batches without padding, which would widen the ranges; NNCF recommends 300 of one text each.

    Raises:
        TernarizeError: NNCF failed, or its process was ended, for example because memory was short.
    """

    def make(output: Path) -> None:
        feeds = [[tensor.numpy() for tensor in batch] for batch in calibration]
        source = exports.onnx_export(folder)
        Child("NNCF").call(openvino_runtime.quantise, source, feeds, output / "model.xml")

    digest = hashlib.sha256()
    for batch in calibration:
        for tensor in batch:
            digest.update(repr(tensor.tolist()).encode())
    libraries = ("torch", "transformers", "onnxscript", "openvino", "nncf")
    decides = {name: version(name) for name in libraries} | {"calibration": digest.hexdigest()}
    return exports.cached_export(folder, "openvino-int8", decides, make) / "model.xml"


class OpenVinoForward:
    """The `Forward` of an ONNX or OpenVINO file on the CPU, with the number of threads that torch uses now.

    Args:
        path: path of `model.onnx` or `model.xml`.
        precision: "f32" or "bf16" for operations that are not quantised; None leaves the choice to OpenVINO.
        alone: run in this process, which does nothing else.

    Attributes:
        threads: number of OpenVINO's threads.

    Raises:
        TernarizeError: OpenVINO failed, or its process ended. A pass can also raise this.
    """

    def __init__(self, path: Path, *, precision: str | None = None, alone: bool = False) -> None:
        settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        if precision:
            settings["INFERENCE_PRECISION_HINT"] = precision
        self._call: Callable[..., Any] = _here if alone else Child("OpenVINO").call
        self.threads: int = self._call(openvino_runtime.load, path, settings)

    def __call__(self, *batch: Tensor) -> Tensor:
        """Runs a batch: [batch, tokens, width]."""
        return torch.from_numpy(self._call(openvino_runtime.infer, *(tensor.numpy() for tensor in batch)))


def _here(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def _int8_of_random_inputs(folder: Path) -> Path:
    count, tokens = _RANDOM
    batch = inputs.random_batch(folder, GridPoint(count, tokens), seed=0)
    return int8_model(folder, list(zip(*(tensor.split(1) for tensor in batch), strict=True)))


@functools.cache
def _without_bf16() -> str | None:
    found = Child("OpenVINO").call(openvino_runtime.runs_bf16)
    return None if found else "OpenVINO finds no bf16 units in this CPU"


def _load(path: Path, device: str, **settings: Any) -> Forward:
    return OpenVinoForward(path, **settings)


def _register(name: str, summary: str, precision: str | None = None, **settings: Any) -> None:
    load, alone = (partial(_load, precision=precision, alone=alone) for alone in (False, True))
    rival(name, summary, alone=alone, runtime="openvino", cpu_only=True, **settings)(load)


_EXPORT: dict[str, Any] = {"needs": ("onnx", "onnxscript"), "make": exports.onnx_export}
_register("openvino-fp32", "OpenVINO, fp32", "f32", tolerance=EXACT, **_EXPORT)
_register("openvino-bf16", "OpenVINO, bf16", "bf16", missing=_without_bf16, **_EXPORT)
_register(
    "openvino-int8",
    "OpenVINO, NNCF int8, calibrated on random inputs",
    needs=(*_EXPORT["needs"], "nncf"),
    make=_int8_of_random_inputs,
    tolerance=ROUNDED,
)
