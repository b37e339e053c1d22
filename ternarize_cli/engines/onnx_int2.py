"""A rival in 2 bits by ONNX Runtime on the CPU: the codes of a packed model in its operator `MatMulNBits`.

Other rivals run the full-precision model; this one runs the ternary model itself, and shows what its codes give in a
runtime that others maintain. A matrix product of the export becomes a `MatMulNBits` with bits=2 and accuracy_level=4,
which asks for int8 activations, with a scale per block of a token's inputs:

    code      -1, 0, 1   stored as 1, 2, 3: the operator's zero point for 2 bits is 2, so codes are exact
    scale     the row's scale, repeated for each block of 32, 64 or 128 inputs
    the rest  fp32, embedding tables, too

The block size is the fastest of those that ONNX Runtime has, measured once on a product of its own. Where a version has
no int8 product for 2 bits on a CPU, it multiplies the codes out and computes in fp32; then its outputs are exact, and
`described` says so.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli import kernels
from ternarize_cli.encoders import checkpoint
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.engines import exports
from ternarize_cli.engines.baselines import ROUNDED, Forward, require_packed, rival
from ternarize_cli.engines.onnx_session import forward_of_onnx, open_session
from ternarize_cli.errors import TernarizeError
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.measuring.timing import summarise, time_interleaved

__all__ = ["described", "int2_model", "ternary_blocks"]

_BLOCKS = (128, 64, 32)
_DOMAIN, _ZERO, _PER_BYTE, _INT8_ACTIVATIONS = "com.microsoft", 2, 4, 4
_HINT = "leave onnx-int2 out"
_FACTS = "int2.json"
_ROWS, _INPUTS, _OUTPUTS, _ROUNDS, _SECONDS = 128, 768, 3072, 9, 5.0
_EXACT = 1e-4
"""Relative distance of a product from the exact one above which its activations were rounded to int8."""


def ternary_blocks(matrix: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Splits a matrix whose blocks hold only -s, 0 and s into codes and scales.

    Args:
        matrix: float32 [out, in].
        block: number of inputs of a block; the last one is padded with zeros.

    Returns:
        uint8 [out, blocks, block / 4], four codes a byte, the first in the lowest bits; and float32 [out, blocks]. None
        if a block has two magnitudes.
    """
    out, width = matrix.shape
    count = -(-width // block)
    padded = np.zeros((out, count * block), dtype=np.float32)
    padded[:, :width] = matrix
    blocks = padded.reshape(out, count, block)
    sizes = np.abs(blocks)
    scales = sizes.max(axis=2)
    if not ((sizes == 0) | (sizes == scales[..., None])).all():
        return None
    codes = (np.sign(blocks).astype(np.int8) + _ZERO).astype(np.uint8).reshape(out, count, -1, _PER_BYTE)
    return (codes << np.arange(0, 8, 2, dtype=np.uint8)).sum(axis=3, dtype=np.uint8), scales


def int2_model(folder: Path) -> Path:
    """Writes a packed model as ONNX in 2 bits, unless the result exists; returns the path of `model.onnx`.

    Raises:
        InputError: the model is not packed.
        TernarizeError: it can't be exported, its codes are not ternary, or ONNX Runtime has no product of 2 bits.
    """
    require_packed("onnx-int2", folder)
    scheme = Artifact.from_dict(checkpoint.read_config(folder)["quantization_config"]).scheme
    group = scheme.group_size if scheme.granularity == "group" else None
    blocks = [block for block in _BLOCKS if group is None or group % block == 0]

    def make(output: Path) -> None:
        with tempfile.TemporaryDirectory(dir=output) as name:
            exports.write_onnx(folder, Path(name), change=_dense)
            with exports.quiet():
                block, int8 = _fastest_block(blocks)
                products = _convert(Path(name) / "model.onnx", output / "model.onnx", block)
        if not products:
            raise TernarizeError(f"no product of {folder} has ternary weights", hint=_HINT)
        facts = {"block": block, "int8": int8, "products": products}
        (output / _FACTS).write_text(json.dumps(facts), encoding="utf-8")

    decides = {name: version(name) for name in ("torch", "transformers", "onnxscript", "onnxruntime")}
    return exports.cached_export(folder, "onnx-int2", decides, make) / "model.onnx"


def described(path: Path) -> str:
    """Says in a sentence how ONNX Runtime runs the model at `path`, a result of `int2_model`."""
    facts = json.loads((path.parent / _FACTS).read_text(encoding="utf-8"))
    how = (
        "with int8 activations"
        if facts["int8"]
        else "which this ONNX Runtime multiplies out and computes in fp32: it has no int8 product for them on this CPU"
    )
    return (
        f"onnx-int2 runs the packed model's codes: {facts['products']} products of 2-bit weights in blocks of "
        f"{facts['block']}, {how}"
    )


def _dense(model: Any) -> Any:
    """Multiplies the codes of a packed model out to float32; the model then runs as its class does."""
    kernels.use_backend(model, "reference")  # a fused encoder would go on running the codes
    return dequantize(model)


def _convert(source: Path, target: Path, block: int) -> int:
    """Writes an ONNX file in which the products with ternary weights are in 2 bits; returns their number."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(source)
    graph = model.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    replaced = 0
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in stored:
            continue
        name = node.input[1]
        matrix = numpy_helper.to_array(stored[name]).T
        if matrix.ndim != 2 or (split := ternary_blocks(matrix, block)) is None:  # a linear that is not ternary
            continue
        node.CopyFrom(_node(node.input[0], name, node.output[0], matrix.shape, block))
        for tensor in _tensors(name, split):
            if tensor.name not in stored:
                graph.initializer.append(tensor)
                stored[tensor.name] = tensor
        replaced += 1
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    model.opset_import.append(onnx.helper.make_opsetid(_DOMAIN, 1))
    onnx.save(model, target, save_as_external_data=True, location=f"{target.name}.data")
    return replaced


def _node(source: str, weight: str, output: str, shape: tuple[int, ...], block: int) -> Any:
    """Makes the operator that multiplies `source` by a matrix of `shape` [out, in]."""
    from onnx import helper

    rows, columns = shape
    settings: dict[str, Any] = {
        "K": columns,
        "N": rows,
        "bits": 2,
        "block_size": block,
        "accuracy_level": _INT8_ACTIVATIONS,
    }
    inputs = [source, f"{weight}.codes", f"{weight}.scales"]
    return helper.make_node("MatMulNBits", inputs, [output], domain=_DOMAIN, **settings)


def _tensors(weight: str, split: tuple[np.ndarray, np.ndarray]) -> list[Any]:
    from onnx import numpy_helper

    codes, scales = split
    return [numpy_helper.from_array(codes, f"{weight}.codes"), numpy_helper.from_array(scales, f"{weight}.scales")]


def _fastest_block(blocks: Sequence[int]) -> tuple[int, bool]:
    """Finds the block size with the fastest product, and whether its activations are int8.

    Raises:
        TernarizeError: ONNX Runtime has no product of 2-bit weights with one of these block sizes.
    """
    random = np.random.default_rng(0)
    matrix = random.integers(-1, 2, (_OUTPUTS, _INPUTS)).astype(np.float32)
    x = random.standard_normal((_ROWS, _INPUTS)).astype(np.float32)
    exact = x @ matrix.T
    calls: dict[str, Callable[[], Any]] = {}
    failure = "no block size fits the groups of its scales"
    for block in blocks:
        try:
            calls[str(block)] = partial(_product(matrix, block).run, None, {"x": x})
        except Exception as e:  # ONNX Runtime has no class of exceptions of its own
            failure = " ".join(str(e).split())[:200]
    if not calls:
        raise TernarizeError(f"ONNX Runtime {version('onnxruntime')} can't run 2-bit weights: {failure}", hint=_HINT)
    times = time_interleaved(calls, repeats=_ROUNDS, seconds=_SECONDS, warmup=1)
    best = min(calls, key=lambda name: summarise(times[name]).median_ms)
    distance = np.linalg.norm(calls[best]()[0] - exact) / np.linalg.norm(exact)
    return int(best), bool(distance > _EXACT)


def _product(matrix: np.ndarray, block: int) -> Any:
    """Makes a session that multiplies "x" by a ternary matrix."""
    from onnx import TensorProto, helper

    split = ternary_blocks(matrix, block)
    assert split is not None
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xy")
    graph = helper.make_graph([_node("x", "w", "y", matrix.shape, block)], "product", [x], [y], _tensors("w", split))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return open_session(model.SerializeToString())


@rival(
    "onnx-int2",
    "ONNX Runtime, the packed model's 2-bit codes (MatMulNBits, int8 activations)",
    needs=("onnx", "onnxscript"),
    runtime="onnxruntime",
    make=int2_model,
    cpu_only=True,
    tolerance=ROUNDED,
    same_vectors=True,
    packed=True,
    describe=described,
)
def _onnx_int2(path: Path, device: str) -> Forward:
    return forward_of_onnx(path)
