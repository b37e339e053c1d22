"""The format openvino: a folder that OpenVINO and the libraries on top of it open as they open a model of the hub.

    openvino/openvino_model.xml, openvino_model.bin      the graph, and its constants

`graph_folder` describes the other files. OpenVINO reads the ONNX graph (`onnx_graph`), and writes it in its own format,
with inputs and outputs of the same names (`engines.openvino_codes`). Codes of products have 2 bits, with a float16
scale for each row. Tables are looked up as in the ONNX graph: int8 codes with a scale for a row, or int4 with one for
32 values.

The CPU plug-in runs a product as one FullyConnected, whose codes stay in memory as they are in the file. It multiplies
activations in floating point, or rounds them to int8 by groups, as its property DYNAMIC_QUANTIZATION_GROUP_SIZE says
and the processor allows.
"""

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.arithmetic.tables import GROUP
from ternarize_cli.engines import openvino_codes, openvino_runtime
from ternarize_cli.errors import InputError, TernarizeError
from ternarize_cli.export import card
from ternarize_cli.export.formats import register
from ternarize_cli.export.graph_folder import GraphFolder, fed
from ternarize_cli.export.nearness import Run
from ternarize_cli.export.onnx_graph import write_graph
from ternarize_cli.export.source import Source
from ternarize_cli.measuring.child import Child

__all__ = ["OpenVino"]


@register
class OpenVino(GraphFolder):
    """Writes a folder for OpenVINO."""

    name = "openvino"
    libraries = ("onnx", "onnxscript", "openvino")
    runtime = "openvino"
    hint = "install a newer openvino, or --bits 4"
    rival = "openvino-int8"

    def place(self, model: Any, folder: Path) -> None:
        """Writes openvino/openvino_model.xml and .bin."""
        _check_tables(model)
        output = folder / "openvino" / "openvino_model.xml"
        output.parent.mkdir()
        with tempfile.TemporaryDirectory(dir=folder) as name:
            write_graph(model, Path(name) / "onnx")
            try:
                Child("OpenVINO").call(openvino_codes.convert, Path(name) / "onnx" / "model.onnx", output)
            except TernarizeError as e:
                raise InputError(
                    f"OpenVINO can't read the ONNX graph, or write it: {e}", hint="--to onnx needs no OpenVINO"
                ) from e

    def open(self, folder: Path) -> Run:
        """Opens the model in OpenVINO, in a process of its own, with the number of threads that torch uses now."""
        child = Child("OpenVINO")
        settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        child.call(openvino_runtime.load, folder / "openvino" / "openvino_model.xml", settings)
        return partial(_run, child, child.call(openvino_runtime.input_names))

    def card(self, source: Source, facts: Mapping[str, Any]) -> str:
        """Makes the README of a model, of what export.json holds."""
        if "pixel_values" in facts["inputs"]:
            opened = """import openvino

model = openvino.Core().compile_model("openvino/openvino_model.xml", "CPU")"""
        else:
            opened = card.in_sentence_transformers("openvino")
        rounds = "OpenVINO rounds activations to int8 in its own way, or not at all: the processor decides."
        return f"""{card.front_matter(source, "openvino")}# {source.name}

An encoder with {source.weights}, for OpenVINO. `openvino/openvino_model.xml` {card.gives(facts)}

```python
{opened}
```

Codes of weights have {facts["bits"]} bits, which the CPU plugin of OpenVINO 2026.4 multiplies as they are.
{card.nearness(facts["check"], rounds)}

{card.about(source)}"""


def _check_tables(model: Any) -> None:
    """Checks that OpenVINO has a look-up for each table.

    Raises:
        InputError: a table of int4 has rows that are no multiple of 32 values.
    """
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "GatherBlockQuantized" and (width := shapes[node.input[0]][1]) % GROUP:
            raise InputError(
                f"a table of int4 has {width} columns, and OpenVINO looks up multiples of {GROUP}",
                hint="pack with --table-bits 8",
            )


def _run(child: Child, names: list[str], batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = child.call(openvino_runtime.infer_all, fed(names, batch))
    return {name: torch.from_numpy(value) for name, value in made.items()}
