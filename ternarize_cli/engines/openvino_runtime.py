"""Calls OpenVINO, which runs one model a process here: `openvino` calls these functions by way of `child`.

Once OpenVINO has run in a process, a handler of signals in Python may run on a stack that is other memory by then, and
the end of a child process may crash its parent. So nothing that starts processes runs beside OpenVINO. This module
imports little, because each of its processes imports it.

OpenVINO (at its import, by a fork that may outlive this process) and NNCF send usage reports to their makers unless
they believe to run in a test system. A command that measures must not use the network, so they get these settings.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["infer", "infer_all", "input_names", "load", "opened", "quantise", "runs_bf16"]

_loaded: list[Any] = []


def runs_bf16() -> bool:
    """Whether OpenVINO finds bf16 units in this CPU."""
    return "BF16" in opened().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def quantise(source: Path, feeds: list[list[np.ndarray]], output: Path) -> None:
    """Quantises an ONNX model to int8 with NNCF, and writes it as OpenVINO's `.xml` and `.bin`.

    Args:
        source: path of the ONNX model.
        feeds: calibration batches, each with the model's inputs in order.
        output: path of the `.xml` file.
    """
    os.environ.setdefault("NNCF_CI", "1")
    openvino = opened()
    import nncf

    model = nncf.quantize(
        openvino.Core().read_model(source),
        nncf.Dataset(feeds),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(feeds),
    )
    openvino.save_model(model, output, compress_to_fp16=False)


def load(path: Path, settings: dict[str, Any]) -> int:
    """Compiles the model that `infer` runs from now on; returns the number of its threads.

    Args:
        path: path of an ONNX model or of an `.xml` file.
        settings: properties of OpenVINO's CPU plug-in.
    """
    model = opened().Core().compile_model(path, "CPU", settings)
    _loaded[:] = [model.create_infer_request()]
    return int(model.get_property("INFERENCE_NUM_THREADS"))


def infer(*arrays: np.ndarray) -> np.ndarray:
    """Runs the loaded model on a batch; returns its first output."""
    output: np.ndarray = _loaded[0].infer(list(arrays))[0]
    return output


def input_names() -> list[str]:
    """Gives the names of the loaded model's inputs."""
    return [str(entry.any_name) for entry in _loaded[0].model_inputs]


def infer_all(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Runs the loaded model on a batch, inputs by their names; returns all outputs by their names."""
    made = _loaded[0].infer(arrays)
    return {str(entry.any_name): made[entry] for entry in _loaded[0].model_outputs}


def opened() -> Any:
    """Imports OpenVINO, so that it sends no usage reports."""
    os.environ["CI"] = "true"
    import openvino

    return openvino
