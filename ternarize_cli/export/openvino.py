"""The format openvino: a folder that OpenVINO and the libraries on top of it open as they open a model of the hub.

    openvino/openvino_model.xml, openvino_model.bin      the graph, and its constants

`graph_folder` describes the other files. OpenVINO reads the ONNX graph (`onnx_graph`), with inputs and outputs of the
same names, and writes it in its own format:

    product     MatMul with  codes u2 [out, blocks, in / blocks] ▶ Convert ▶ Subtract(2) ▶ Multiply(scale of the row)
    table       Gather of the int8 codes and of the float16 scales, Multiply; int4 codes likewise, a scale for 32 values

The CPU plugin makes one FullyConnected of a product. It keeps the codes in memory as they are in the file, and
multiplies activations in floating point, or rounds them to int8 by groups, as its property
DYNAMIC_QUANTIZATION_GROUP_SIZE says and the processor allows. Blocks of 128 inputs, which repeat the row's scale, were
as fast as one for each row.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.engines import openvino_runtime
from ternarize_cli.engines.child import Child
from ternarize_cli.export import card, check
from ternarize_cli.export.formats import register
from ternarize_cli.export.graph_folder import GraphFolder, fed
from ternarize_cli.export.onnx_graph import write_graph
from ternarize_cli.export.source import Source

__all__ = ["OpenVino"]


@register
class OpenVino(GraphFolder):
    """Writes a folder for OpenVINO."""

    name = "openvino"
    libraries = ("onnx", "onnxscript", "openvino")
    runtime = "openvino"
    hint = "install a newer openvino, or --bits 4"

    def place(self, model: Any, folder: Path) -> None:
        """Writes openvino/openvino_model.xml and .bin."""
        (folder / "openvino").mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as name:
            write_graph(model, Path(name) / "onnx")
            path = Path(name) / "onnx" / "model.onnx"
            Child("OpenVINO").call(openvino_runtime.convert, path, folder / "openvino" / "openvino_model.xml")

    def open(self, folder: Path) -> check.Run:
        """Opens the model in OpenVINO, in a process of its own, with the number of threads that torch uses now."""
        child = Child("OpenVINO")
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        child.call(openvino_runtime.load, folder / "openvino" / "openvino_model.xml", settings)
        return partial(_run, child, child.call(openvino_runtime.input_names))

    def card(self, source: Source, facts: Mapping[str, Any]) -> str:
        """Makes the README of a model, of what export.json holds."""
        return card.for_openvino(source, facts)


def _run(child: Child, names: list[str], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = child.call(openvino_runtime.infer_all, fed(names, batch))
    return {name: torch.from_numpy(value) for name, value in made.items()}
