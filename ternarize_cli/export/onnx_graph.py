"""The ONNX graph of a packed model, which formats are made of: its codes in products, and its pooling if wanted.

The graph's inputs are `input_ids`, `attention_mask` and, where the model has types of tokens, `token_type_ids`, all
int64 [batch, tokens], or `pixel_values`. Its output is `last_hidden_state`; with pooling also `sentence_embedding`,
what the model's modules make of it. Weights are the packed model's, exactly (`engines.onnx_codes`).
"""

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ternarize_cli.engines import exports
from ternarize_cli.engines.onnx_codes import LayerCodes, put_codes
from ternarize_cli.errors import InputError, TernarizeError, quoted, reason

__all__ = ["make_graph", "write_graph"]

_LARGEST = 2_000_000_000
"""The most bytes of a model in one file: one message of protobuf holds at most 2^31."""


class _Pooling(nn.Module):
    """The modules of sentence-transformers behind the transformer."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.behind = nn.ModuleList(list(encoder)[1:])

    def forward(self, output: Any, mask: Tensor | None) -> Tensor:
        features = {"token_embeddings": output.last_hidden_state}
        if mask is not None:
            features["attention_mask"] = mask
        for module in self.behind:
            features = module(features)
        pooled: Tensor = features["sentence_embedding"] if len(self.behind) else output.pooler_output
        return pooled


def make_graph(source: Path, folder: Path, encoder: Any, *, bits: int, pooled: bool) -> tuple[Any, int]:
    """Makes the ONNX model of a packed model, and counts its products of codes.

    Args:
        source: the packed model's folder.
        folder: an existing folder, for files that are gone when this returns.
        encoder: the model, a SentenceTransformer.
        bits: bits of a weight's code in a product, 2 or 4.
        pooled: whether the graph pools and normalises, too.

    Returns:
        The `onnx.ModelProto`, and the number of products.

    Raises:
        InputError: the model can't be exported, or its codes can't be written.
    """
    import onnx

    layers = LayerCodes()
    pool = layers.dense(_Pooling(encoder)) if pooled else None
    with tempfile.TemporaryDirectory(dir=folder) as name:
        try:
            exports.write_onnx(source, Path(name), change=layers.dense, pool=pool, types=True)
        except (InputError, OSError, MemoryError):
            raise
        except Exception as e:  # the exporter runs the model's own code, which can raise any error
            why = str(e) if isinstance(e, TernarizeError) else f"{source} can't be exported to ONNX: {reason(e)}"
            raise InputError(why, hint=f"ternarize export {quoted(source)} --to wheel") from e
        model = onnx.load(Path(name) / "model.onnx")
    products = put_codes(model, layers, bits)
    if not products:
        raise InputError(f"no product in the ONNX export of {source} has packed weights")
    _name_sizes(model)
    return model, products


def _name_sizes(model: Any) -> None:
    """Names the free sizes as optimum does, and takes out what the exporter says of its own code."""
    graph = model.graph
    names: dict[str, str] = {}
    for value in graph.input:
        for size, name in zip(value.type.tensor_type.shape.dim, ("batch_size", "sequence_length"), strict=False):
            if size.dim_param:
                names[size.dim_param] = name
    for value in (*graph.input, *graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param in names:
                size.dim_param = names[size.dim_param]
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""


def write_graph(model: Any, folder: Path) -> None:
    """Writes an ONNX model, which the checker of onnx has accepted, as `model.onnx` into a new folder.

    Raises:
        InputError: the checker refuses it.
        OSError: it can't be written.
    """
    import onnx

    folder.mkdir()
    is_large = model.ByteSize() > _LARGEST
    if is_large:
        onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx_data")
    try:
        onnx.checker.check_model(folder / "model.onnx" if is_large else model)
    except onnx.checker.ValidationError as e:
        raise InputError(
            f"the checker of onnx refuses the graph of this model: {reason(e)}",
            hint="report it with the model's name; --to wheel needs no graph",
        ) from e
    if not is_large:
        (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
