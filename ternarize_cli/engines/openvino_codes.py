"""Converts an ONNX model with products of codes to OpenVINO's format, in a process that `openvino` starts.

OpenVINO reads MatMulNBits itself, but only with blocks that are powers of two and divide a row, and each repeats its
scale. Here a product becomes what the CPU plug-in takes for one FullyConnected with compressed weights:

    codes u2 or u4 [out, in] ▶ Convert ▶ Subtract(zero point) ▶ Multiply(scale f16 [out, 1]) ▶ Convert ▶ MatMul

or, if groups of inputs have scales of their own, codes [out, groups, size], scales [out, groups, 1] and a Reshape.
Codes of a row that do not fill its last byte are u8: the plug-in of OpenVINO 2026.4 reads the rows behind it wrongly.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.engines.openvino_runtime import opened

__all__ = ["convert"]

_GRAPH = 1 << 20
"""Bytes of a graph without its constants, roughly."""


def convert(source: Path, output: Path) -> None:
    """Converts an ONNX model, whose constants keep their types, to OpenVINO's `.xml` and `.bin`.

    Args:
        source: path of the ONNX model.
        output: path of the `.xml` file.

    Raises:
        OSError: the files can't be written, for a reason that the system gives.
    """
    openvino = opened()
    from openvino.frontend.onnx import ConversionExtension

    core = openvino.Core()
    core.add_extension(ConversionExtension("MatMulNBits", "com.microsoft", _product))
    model = core.read_model(source)
    try:
        openvino.save_model(model, output, compress_to_fp16=False)
    except RuntimeError:  # does not say why, and removes what it wrote; the system says it if as much is written again
        with source.open("rb") as graph, output.with_suffix(".bin").open("wb") as file:
            shutil.copyfileobj(graph, file)
            file.write(bytes(_GRAPH))
        raise


def _product(node: Any) -> list[Any]:
    """Makes the steps that a MatMulNBits stands for."""
    from openvino import Type, opset13

    width, bits = int(node.get_attribute("K")), int(node.get_attribute("bits"))
    packed, scales = (node.get_input(place).get_node().data for place in (1, 2))
    digits = packed[..., None] >> np.arange(0, 8, bits, dtype=np.uint8) & (1 << bits) - 1
    digits = digits.reshape(len(packed), -1)[:, :width]
    if (scales == scales[:, :1]).all():
        scales = scales[:, :1]
    else:  # blocks divide a group, and a group a row
        digits, scales = digits.reshape(*scales.shape, -1), scales[..., None]
    zero = np.full((1,) * digits.ndim, 1 << bits - 1)
    stored = 8 if width * bits % 8 else bits
    codes, middle = (opset13.convert(_constant(values, stored), Type.f16) for values in (digits, zero))
    weights = opset13.multiply(opset13.subtract(codes, middle), opset13.constant(scales.astype(np.float16)))
    if digits.ndim > 2:
        weights = opset13.reshape(weights, np.array([len(digits), width]), special_zero=False)
    product = opset13.matmul(node.get_input(0), opset13.convert(weights, Type.f32), False, True)
    return list(product.outputs())


def _constant(values: np.ndarray, bits: int) -> Any:
    """Makes a constant of numbers of `bits` bits, the first of a byte in its lowest bits."""
    import openvino

    flat = np.zeros(-(-values.size * bits // 8) * 8 // bits, dtype=np.uint8)
    flat[: values.size] = values.ravel()
    content = np.bitwise_or.reduce(flat.reshape(-1, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint8), axis=1)
    tensor = openvino.Tensor(getattr(openvino.Type, f"u{bits}"), openvino.Shape(values.shape))
    np.copyto(tensor.data.view(np.uint8).reshape(-1)[: len(content)], content)
    return openvino.opset13.constant(tensor)
