"""The format onnx: a folder that ONNX Runtime and the libraries on top of it open as they open a model of the hub.

    onnx/model.onnx      the model, one file; above 2 GB the weights are beside it in model.onnx_data

`graph_folder` describes the other files, and `onnx_graph` the graph.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.engines import exports
from ternarize_cli.engines.onnx_session import open_session
from ternarize_cli.export import card
from ternarize_cli.export.formats import register
from ternarize_cli.export.graph_folder import GraphFolder, fed
from ternarize_cli.export.nearness import Run
from ternarize_cli.export.onnx_graph import write_graph
from ternarize_cli.export.source import Source

__all__ = ["Onnx"]


@register
class Onnx(GraphFolder):
    """Writes a folder for ONNX Runtime."""

    name = "onnx"
    libraries = ("onnx", "onnxscript")
    runtime = "onnxruntime"
    hint = "install a newer onnxruntime, or --bits 4"
    rival = "onnx-int8"
    config = MappingProxyType(
        {"transformers.js_config": {"dtype": "fp32"}}
    )  # it looks for onnx/model_quantized.onnx otherwise

    def place(self, model: Any, folder: Path) -> None:
        """Writes onnx/model.onnx."""
        write_graph(model, folder / "onnx")

    def open(self, folder: Path) -> Run:
        """Opens the model in ONNX Runtime."""
        with exports.quiet():
            return partial(_run, open_session(folder / "onnx" / "model.onnx"))

    def card(self, source: Source, facts: Mapping[str, Any]) -> str:
        """Makes the README of a model, of what export.json holds."""
        if "pixel_values" in facts["inputs"]:
            opened = """import onnxruntime

session = onnxruntime.InferenceSession("onnx/model.onnx")"""
            where = "transformers.js finds"
        else:
            opened = card.in_sentence_transformers("onnx")
            where = "text-embeddings-inference, fastembed and transformers.js find"
        return f"""{card.front_matter(source, "onnx")}# {source.name}

An encoder with {source.weights}, for ONNX Runtime. `onnx/model.onnx` {card.gives(facts)}

```python
{opened}
```

{where} the file where it is, too. Its products are `MatMulNBits` of {facts["bits"]} bits,
which ONNX Runtime 1.32 has. {card.nearness(facts["check"], "Both round activations to int8, in their own ways.")}

{card.about(source)}"""


def _run(session: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    made = session.run(None, fed([entry.name for entry in session.get_inputs()], batch))
    names = [entry.name for entry in session.get_outputs()]
    return {name: torch.from_numpy(value) for name, value in zip(names, made, strict=True)}
