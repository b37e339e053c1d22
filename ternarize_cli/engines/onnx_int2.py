"""A rival in 2 bits by ONNX Runtime on the CPU: the codes of a packed model in its operator `MatMulNBits`.

Other rivals run the full-precision model; this one runs the ternary model itself, and shows what its codes give in a
runtime that others maintain. It is what `ternarize export --to onnx` writes (`onnx_codes`), but for the block size: the
fastest of those that ONNX Runtime has, measured once on a product of its own. Where a version has no int8 product for
2 bits on a CPU, it multiplies the codes out and computes in fp32; then its outputs are exact, and `described` says so.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import exports, onnx_codes
from ternarize_cli.engines.baselines import ROUNDED, Forward, require_packed, rival
from ternarize_cli.engines.onnx_session import forward_of_onnx, open_session
from ternarize_cli.errors import InputError, TernarizeError
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.measuring.timing import summarise, time_interleaved

__all__ = ["described", "int2_model"]

_HINT = "leave onnx-int2 out"
_FACTS = "int2.json"
_ROWS, _INPUTS, _OUTPUTS, _ROUNDS, _SECONDS = 128, 768, 3072, 9, 5.0
_EXACT = 1e-4
"""Relative distance of a product from the exact one above which its activations were rounded to int8."""


def int2_model(folder: Path) -> Path:
    """Writes a packed model as ONNX in 2 bits, unless the result exists; returns the path of `model.onnx`.

    Raises:
        InputError: the model is not packed, or its codes are not ternary.
        TernarizeError: it can't be exported, or ONNX Runtime has no product of 2 bits.
    """
    require_packed("onnx-int2", folder)
    artifact = Artifact.from_dict(checkpoint.read_config(folder)["quantization_config"])
    scheme = artifact.scheme
    if artifact.levels not in ("ternary", "binary"):
        raise InputError(f"the codes of {folder} are {artifact.levels}, and onnx-int2 runs ternary ones", hint=_HINT)
    group = scheme.group_size if scheme.granularity == "group" else None
    blocks = [block for block in onnx_codes.BLOCKS if group is None or group % block == 0]

    def make(output: Path) -> None:
        import onnx

        layers = onnx_codes.LayerCodes()
        with tempfile.TemporaryDirectory(dir=output) as name:
            exports.write_onnx(folder, Path(name), change=layers.dense)
            model = onnx.load(Path(name) / "model.onnx")
        with exports.quiet():
            block, int8 = _fastest_block(blocks)
        products = onnx_codes.put_codes(model, layers, 2, [block])
        onnx.save(model, output / "model.onnx", save_as_external_data=True, location="model.onnx.data")
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

    layer = onnx_codes.PackedLayer("w", matrix.astype(np.int8), np.ones((len(matrix), 1), np.float16), False)
    node, tensors = onnx_codes.product("x", "w", "y", layer, 2, block)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in "xy")
    graph = helper.make_graph([node], "product", [x], [y], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
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
