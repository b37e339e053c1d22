"""Puts the codes of a packed model into an ONNX export of its dense values, without changing a value.

Each packed layer's matrix stands in the export (`exports.write_onnx`) as float32: its codes times its scales. It is
found there by its digest, whatever the exporter calls it and whether it is transposed. The steps that use it change:

    MatMul, Gemm of a linear    com.microsoft MatMulNBits: codes of 2 or 4 bits, a float32 scale for a block of inputs,
                                and accuracy_level 4, which asks for activations rounded to int8 by block
    Gather of an int8 table     Gather of the codes and of the float16 scales, Cast, Mul: plain ONNX, which every
                                runtime has, and as fast as com.microsoft GatherBlockQuantized in ONNX Runtime 1.32
    Gather of an int4 table     GatherBlockQuantized: int4 codes with a float32 scale for 32 values

The zero point of MatMulNBits is half its range, so -1, 0 and 1 are stored as 1, 2 and 3 in 2 bits. A block lies within
a row, or within a group of a row, and repeats its scale. A matrix that is used in another way stays as it is.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from ternarize_cli import kernels
from ternarize_cli.arithmetic import tables, ternary
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.errors import InputError
from ternarize_cli.layers import PackedEmbedding, PackedLinear

__all__ = ["BLOCKS", "LayerCodes", "PackedLayer", "block_of", "code_blocks", "packed_layer", "product", "put_codes"]

BLOCKS = (128, 64, 32)
"""The numbers of inputs that a block may have, the default first."""
_DOMAIN, _INT8_ACTIVATIONS = "com.microsoft", 4
_FLOAT = 1
"""The number of float32 among ONNX's types."""

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class PackedLayer:
    """The codes of a packed layer.

    Attributes:
        name: the layer's name in the model.
        codes: int8 [out, in] of a linear, [rows, dim] of a table.
        scales: float16 [rows, groups]; a group is a row, or a part of it.
        is_table: whether it is an embedding table.
    """

    name: str
    codes: np.ndarray
    scales: np.ndarray
    is_table: bool

    def dense(self) -> np.ndarray:
        """Multiplies the codes by their scales: float32 [out, in], or [rows, dim] of a table."""
        multiplied = tables.restore_rows if self.is_table else ternary.dequantize
        return multiplied(torch.from_numpy(self.codes), torch.from_numpy(self.scales)).numpy()


def packed_layer(name: str, module: nn.Module) -> PackedLayer | None:
    """Unpacks the codes of a packed layer called `name`; None for any other module."""
    if isinstance(module, PackedLinear):
        codes, scales = module.codes(), module.weight_scale.reshape(-1, module.weight_scale.shape[-1])
        return PackedLayer(name, codes.numpy(), scales.expand(len(codes), -1).numpy(), False)
    if isinstance(module, PackedEmbedding):
        codes = tables.unpack_codes(module.weight, module.embedding_dim, module.table_bits)
        return PackedLayer(name, codes.numpy(), module.weight_scale.numpy(), True)
    return None


@dataclass
class LayerCodes:
    """The codes of a model's packed layers, by the digests of their dense float32 matrices and of the transposed ones.

    Attributes:
        layers: for each digest the layer, and whether its matrix is transposed.
    """

    layers: dict[bytes, tuple[PackedLayer, bool]] = field(default_factory=dict)

    def dense(self, model: M) -> M:
        """Keeps the codes of a model's packed layers, and multiplies the layers out to float32; returns the model."""
        for name, module in model.named_modules():
            layer = packed_layer(name, module)
            if layer is None:
                continue
            dense = layer.dense()
            for is_transposed in (True, False):
                self.layers[_digest(dense.T if is_transposed else dense)] = layer, is_transposed
        if any(isinstance(module, PackedLinear) for module in model.modules()):
            kernels.use_backend(model, "reference")  # a fused encoder would go on running the codes
        return dequantize(model)

    def find(self, matrix: np.ndarray) -> tuple[PackedLayer, bool] | None:
        """Finds the layer of a matrix, and whether the matrix is transposed; None if it is not a packed layer's."""
        return self.layers.get(_digest(matrix)) if matrix.ndim == 2 and matrix.dtype == np.float32 else None


def _digest(matrix: np.ndarray) -> bytes:
    shaped = hashlib.sha256(str(matrix.shape).encode())
    shaped.update(np.ascontiguousarray(matrix).data)
    return shaped.digest()


def block_of(layer: PackedLayer, blocks: Sequence[int] = BLOCKS) -> int:
    """Chooses the number of inputs of a block: the first that divides a row and its groups, else the smallest.

    Raises:
        InputError: the groups that share a scale are no multiple of a block.
    """
    width, groups = layer.codes.shape[1], layer.scales.shape[1]
    fitting = [block for block in blocks if width // groups % block == 0]
    if not fitting and groups > 1:
        raise InputError(
            f"{layer.name} has a scale for {width // groups} inputs, and MatMulNBits has one for {min(blocks)} or more",
            hint="convert with --granularity row, or group:32 or a multiple of it",
        )
    return fitting[0] if fitting else min(blocks)


def code_blocks(layer: PackedLayer, bits: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Lays out a linear's codes and scales as MatMulNBits reads them.

    Args:
        layer: the linear.
        bits: 2 or 4.
        block: number of inputs of a block; the last one is padded with zeros.

    Returns:
        uint8 [out, blocks, block * bits / 8], the first code of a byte in its lowest bits; and float32 [out, blocks].

    Raises:
        InputError: the codes do not fit into so many bits.
    """
    out, width = layer.codes.shape
    count, zero = -(-width // block), 1 << (bits - 1)
    codes = layer.codes.astype(np.int16) + zero
    if codes.size and (codes.min() < 0 or codes.max() >= 2 * zero):
        low, high = layer.codes.min(), layer.codes.max()
        raise InputError(
            f"{layer.name} has codes from {low} to {high}, and {bits} bits hold those from {-zero} to {zero - 1}",
            hint="--bits 4" if bits == 2 else None,
        )
    padded = np.full((out, count * block), zero, dtype=np.uint8)
    padded[:, :width] = codes
    pieces = padded.reshape(out, count, -1, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint8)
    scales = np.repeat(layer.scales.astype(np.float32), -(-count // layer.scales.shape[1]), axis=1)
    return np.bitwise_or.reduce(pieces, axis=3), scales


def product(source: str, weight: str, output: str, layer: PackedLayer, bits: int, block: int) -> tuple[Any, list[Any]]:
    """Makes the operator that multiplies the value `source` by a linear, and its tensors, which are named by `weight`.

    Raises:
        InputError: the codes do not fit into so many bits.
    """
    from onnx import helper, numpy_helper

    rows, columns = layer.codes.shape
    sizes = {"K": columns, "N": rows, "bits": bits, "block_size": block, "accuracy_level": _INT8_ACTIVATIONS}
    names = f"{weight}.codes", f"{weight}.scales"
    tensors = [numpy_helper.from_array(a, n) for a, n in zip(code_blocks(layer, bits, block), names, strict=True)]
    return helper.make_node("MatMulNBits", [source, *names], [output], domain=_DOMAIN, **sizes), tensors


def put_codes(model: Any, layers: LayerCodes, bits: int, blocks: Sequence[int] = BLOCKS) -> int:
    """Replaces the dense matrices of an ONNX model by the codes of packed layers; returns the number of products.

    Args:
        model: the `onnx.ModelProto`, which is changed.
        layers: the packed layers.
        bits: bits of a linear's code, 2 or 4.
        blocks: the numbers of inputs that a block may have, the best first.

    Raises:
        InputError: codes do not fit into so many bits, or blocks do not fit the groups that share a scale.
    """
    from onnx import helper, numpy_helper

    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    packed = {name: layers.find(numpy_helper.to_array(tensor)) for name, tensor in stored.items()}
    added: dict[str, Any] = {}
    nodes: list[Any] = []
    products = 0
    for node in graph.node:
        place = 0 if node.op_type == "Gather" else 1
        found = packed.get(node.input[place]) if len(node.input) > place else None
        made = None if found is None else _step(node, *found, bits, blocks)
        if made is None:
            nodes.append(node)
            continue
        nodes += made[0]
        added |= {tensor.name: tensor for tensor in made[1]}
        products += made[0][0].op_type == "MatMulNBits"
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in (*graph.initializer, *added.values()) if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return products


def _step(node: Any, layer: PackedLayer, is_transposed: bool, bits: int, blocks: Sequence[int]) -> Any:
    """Makes the steps and tensors that take the place of a step with a packed matrix; None if there are none."""
    from onnx import helper

    settings = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type == "Gather":
        fits = layer.is_table and not is_transposed and not settings.get("axis", 0)
        return _rows(node.input[1], node.input[0], node.output[0], layer) if fits else None
    is_plain = all(settings.get(name, 1.0) == 1.0 for name in ("alpha", "beta")) and not settings.get("transA", 0)
    if node.op_type not in ("MatMul", "Gemm") or not is_plain or is_transposed == bool(settings.get("transB", 0)):
        return None
    has_bias = node.op_type == "Gemm" and len(node.input) == 3
    output = f"{node.output[0]}.product" if has_bias else node.output[0]
    made, tensors = product(node.input[0], node.input[1], output, layer, bits, block_of(layer, blocks))
    return [made, *([helper.make_node("Add", [output, node.input[2]], node.output)] if has_bias else [])], tensors


def _rows(ids: str, table: str, output: str, layer: PackedLayer) -> tuple[list[Any], list[Any]]:
    """Makes the steps that look rows of a table up, and its tensors."""
    from onnx import TensorProto, helper, numpy_helper

    codes, scales = f"{table}.codes", f"{table}.scales"
    if layer.scales.shape[1] > 1:
        settings: dict[str, Any] = {"block_size": tables.GROUP, "gather_axis": 0, "quantize_axis": 1}
        node = helper.make_node("GatherBlockQuantized", [codes, ids, scales], [output], domain=_DOMAIN, **settings)
        nibbles = helper.make_tensor(codes, TensorProto.INT4, layer.codes.shape, layer.codes.ravel())
        return [node], [nibbles, numpy_helper.from_array(layer.scales.astype(np.float32), scales)]
    steps = []
    for part in (codes, scales):
        steps.append(helper.make_node("Gather", [part, ids], [f"{output}.{part}"]))
        steps.append(helper.make_node("Cast", [f"{output}.{part}"], [f"{output}.{part}.float"], to=_FLOAT))
    steps.append(helper.make_node("Mul", [f"{output}.{codes}.float", f"{output}.{scales}.float"], [output]))
    return steps, [numpy_helper.from_array(layer.codes, codes), numpy_helper.from_array(layer.scales, scales)]
