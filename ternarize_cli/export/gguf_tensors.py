"""Collects what a GGUF file says of an encoder, but for its tokenizer: tensors by llama.cpp's names, and metadata.

Linears and tables keep their codes (`gguf_blocks`). Norms, biases and the table of token types are float32. BERT's
pooler is left out, since no vector needs it, and so are the rows of positions that RoBERTa's padding would have.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import nn

from ternarize_cli.encoders.positions import readable_tokens
from ternarize_cli.engines.onnx_codes import PackedLayer, packed_layer
from ternarize_cli.errors import counted
from ternarize_cli.export.gguf_architectures import Architecture, architecture_of, refuse
from ternarize_cli.export.gguf_blocks import Matrix, dense, lay_out, stack
from ternarize_cli.layers import PackedLinear

__all__ = ["writer_of"]

_LAYER = re.compile(r"(?:.*\.)?(\d+)\.(.+)")
_PARTS = "attn_q", "attn_k", "attn_v"


def writer_of(model: nn.Module, *, bits: int, behind: Sequence[Any] = ()) -> tuple[Any, dict[str, int]]:
    """Makes a `gguf.GGUFWriter` with the tensors and the sizes of an encoder. It has no file and no tokenizer yet.

    Args:
        model: the packed model of transformers.
        bits: 2, or 4 to leave out the types of 2 bits.
        behind: the modules Dense behind pooling.

    Returns:
        The writer, and for each type the number of the encoder's linears that have it.

    Raises:
        UnavailableError: llama.cpp does not run the model, or has no place for a tensor.
    """
    import gguf

    config: Any = model.config
    architecture = architecture_of(config)
    writer = gguf.GGUFWriter(None, architecture.name)
    architecture.describe(config, writer)
    types: Counter[str] = Counter()
    for name, matrix in (*_matrices(model, architecture), *_dense_matrices(behind, config, architecture, writer)):
        # The row of token type 0 is added where it lies, which no type of codes can be.
        kind, data = ("F32", dense(matrix)) if name == "token_types.weight" else lay_out(matrix, bits=bits)
        writer.add_tensor(name, data, raw_dtype=None if data.dtype != np.uint8 else gguf.GGMLQuantizationType[kind])
        if isinstance(matrix, PackedLayer) and not matrix.is_table:
            types[kind] += 1
    if not types:
        raise refuse("none of its linears is packed")
    most = types.most_common(1)[0][0]
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if most == "F32" else f"MOSTLY_{most}"])
    return writer, dict(types)


def _matrices(model: Any, architecture: Architecture) -> Iterator[tuple[str, Matrix]]:
    """Yields the tensors of an encoder by their names in GGUF.

    Raises:
        UnavailableError: llama.cpp has no place for a tensor.
    """
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    known = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    parts: dict[str, Matrix] = {}
    for path, module in model.named_modules():
        if "pooler" in path.split("."):
            continue
        for key, matrix in _own(path, module):
            layer = _LAYER.fullmatch(path)
            stem = known.get_name(path) or known.get_name(f"model.{path}")
            if layer is not None and layer[2] in architecture.names:
                stem = f"blk.{layer[1]}.{architecture.names[layer[2]]}"
            part = "" if stem is None else stem.rsplit(".", 1)[-1]
            allowed = key == "weight" or architecture.biases is None or part in architecture.biases
            if stem is None or key not in ("weight", "bias") or not allowed:
                raise refuse(f"it has no place for {path}.{key} in the architecture {architecture.name}")
            if architecture.fused and part in _PARTS:
                parts[part] = matrix
                if len(parts) == len(_PARTS):
                    yield f"{stem.rsplit('.', 1)[0]}.attn_qkv.{key}", stack([parts.pop(name) for name in _PARTS])
                continue
            if stem == "position_embd":
                matrix = _last_rows(matrix, readable_tokens(model))
            if architecture.added and part.endswith("norm"):
                matrix = dense(matrix) + np.float32(architecture.added)
            yield f"{stem}.{key}", matrix


def _own(path: str, module: nn.Module) -> Iterator[tuple[str, Matrix]]:
    """Yields a module's own parameters, without those of its parts; a packed layer's weight keeps its codes."""
    layer = packed_layer(path, module)
    if layer is not None:
        yield "weight", layer
        if isinstance(module, PackedLinear) and module.bias is not None:
            yield "bias", module.bias.float().numpy()
    for key, parameter in module.named_parameters(recurse=False):
        yield key, parameter.detach().float().numpy()


def _last_rows(matrix: Matrix, count: int | None) -> Matrix:
    if not isinstance(matrix, PackedLayer):
        return matrix if count is None else matrix[-count:]
    first = 0 if count is None else len(matrix.codes) - count
    return PackedLayer(matrix.name, matrix.codes[first:], matrix.scales[first:], matrix.is_table)


def _dense_matrices(
    behind: Sequence[Any], config: Any, architecture: Architecture, writer: Any
) -> Iterator[tuple[str, Matrix]]:
    """Yields the linears of modules Dense behind pooling, and adds their sizes to the writer.

    Raises:
        UnavailableError: llama.cpp has no place for them.
    """
    if not behind:
        return
    if architecture.name != "gemma-embedding" or len(behind) != 2:
        raise refuse(
            f"it has {counted(len(behind), 'module')} Dense behind pooling, and llama.cpp knows two, of a Gemma 3"
        )
    for number, module in enumerate(behind, 2):
        own = dict(_own(f"Dense {number}", module.linear))
        plain = isinstance(module.activation_function, nn.Identity) and not getattr(module, "use_residual", False)
        if not plain or "bias" in own:
            raise refuse("a module Dense behind pooling has a bias, an activation or a residual, which it leaves out")
        writer.add_dense_features_dims(f"dense_{number}", module.in_features, module.out_features)
        yield f"dense_{number}.weight", own["weight"]
    if behind[-1].out_features != config.hidden_size:
        raise refuse("its modules Dense change the number of dimensions")
