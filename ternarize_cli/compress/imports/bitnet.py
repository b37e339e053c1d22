"""The method "bitnet" of transformers: ternary codes with one scale per matrix.

Activations are rounded to int8 per token, as ours are. What a file holds of a linear depends on `linear_class` and
`quantization_mode` (transformers' integrations/bitnet.py):

    bitlinear                 weight uint8 [ceil(out/4), in], weight_scale: a weight is code / weight_scale
    autobitlinear, offline    the same codes, or as numbers [out, in]: a weight is code × weight_scale
    autobitlinear, online     full-precision weights: code = clip(round(w / s), -1, 1), s = mean |w|

Byte r of a column holds four rows, lowest bits first: r, r + R, r + 2R, r + 3R of R = ceil(out/4), as code + 1.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.quantizers_utils import should_convert_module

from ternarize_cli.compress.imports.coded import FLOATS, CodedMatrix, CodedModel, Tensors, field_of, refused
from ternarize_cli.encoders.anatomy import in_head, weighted
from ternarize_cli.encoders.tensor_names import names_in_model
from ternarize_cli.errors import CheckpointError, named, shown

__all__ = ["read_bitnet", "unpack_rows"]

_PER_BYTE = 4
_LEAST_MEAN = 1e-5


def read_bitnet(described: Mapping[str, Any], model: Any, tensors: Tensors) -> CodedModel:
    """Finds the matrices of a model of the method "bitnet".

    Args:
        described: the `quantization_config`.
        model: the model's skeleton.
        tensors: the tensors of its files.

    Raises:
        CheckpointError: the description or a tensor is of another kind than the method has, or can't be held.
    """
    where = "quantization_config"
    kind = field_of(described, "linear_class", ("bitlinear", "autobitlinear"), where)
    mode = field_of(described, "quantization_mode", ("offline", "online"), where)
    field_of(described, "use_rms_norm", (False,), where)
    linears = _linears(described, model, tensors)
    online = kind == "autobitlinear" and mode == "online"
    read = _online if online else partial(_stored, inverse=kind == "bitlinear")
    return CodedModel({key: read(tensors, key, shape) for key, shape in linears.items()}, 8, "absmean", 1.0)


def unpack_rows(packed: Tensor, rows: int) -> Tensor:
    """Unpacks uint8 `[ceil(rows/4), in]` to int8 codes `[rows, in]`; the digit 3 becomes the code 2."""
    digits = [(packed >> 2 * i) & 3 for i in range(_PER_BYTE)]
    return torch.cat(digits)[:rows].to(torch.int8) - 1


def _linears(described: Mapping[str, Any], model: Any, tensors: Tensors) -> dict[str, tuple[int, int]]:
    """Finds the shapes of the linears that the method replaces, by the names of their weights in the files."""
    excluded = described.get("modules_to_not_convert")
    patterns = [] if excluded is None else excluded
    if not isinstance(patterns, list) or not all(isinstance(p, str) and len(p) <= 200 for p in patterns):
        raise CheckpointError(f"modules_to_not_convert is {shown(excluded)}, and must be a list of names")
    plain = [p for p in patterns if p.replace(".", "").replace("_", "").isalnum()]
    if len(plain) < len(patterns):  # a pattern of a stranger could take forever
        raise refused("modules_to_not_convert has a pattern", "only names of modules can be read")
    head = in_head(model)
    shapes = {
        f"{name}.weight": (module.out_features, module.in_features)
        for name, module in weighted(model)
        if isinstance(module, nn.Linear) and name not in head and should_convert_module(name, plain)
    }
    names = names_in_model(model, tensors.keys())
    return {key: shapes[name] for key, name in names.items() if name in shapes}


def _stored(tensors: Tensors, key: str, shape: tuple[int, int], inverse: bool) -> CodedMatrix:
    rows, columns = shape
    scale = f"{key}_scale"
    tensors.require(scale, FLOATS, (1,), ())
    if tensors.dtype(key) == "U8":
        tensors.require(key, ("U8",), (-(-rows // _PER_BYTE), columns))
    else:
        tensors.require(key, ("I8", *FLOATS), shape)

    def read() -> tuple[Tensor, Tensor]:
        found = tensors.get(key)
        codes = unpack_rows(found, rows) if found.dtype == torch.uint8 else found
        if not torch.isin(codes.float(), torch.tensor([-1.0, 0.0, 1.0])).all():
            raise CheckpointError(f"{named(key)} holds a code that is none of -1, 0, 1", hint="fetch the model again")
        value = tensors.scale(scale).reshape(1)
        if inverse and not value > 0:
            raise CheckpointError(f"{named(scale)} is 0, and weights are divided by it", hint="fetch the model again")
        return codes.to(torch.int8), (1 / value.double()).float() if inverse else value

    return CodedMatrix(shape, 0, (key, scale), read)


def _online(tensors: Tensors, key: str, shape: tuple[int, int]) -> CodedMatrix:
    tensors.require(key, FLOATS, shape)

    def read() -> tuple[Tensor, Tensor]:
        found = tensors.get(key)
        if not torch.isfinite(found).all():
            raise CheckpointError(f"{named(key)}: a value is not finite", hint="fetch the model again")
        scale = 1.0 / found.float().abs().mean().clamp_(min=_LEAST_MEAN)  # in the order of transformers' WeightQuant
        codes = (found.float() * scale).round().clamp(-1, 1)
        return codes.to(torch.int8), (1 / scale).to(found.dtype).float().reshape(1)

    return CodedMatrix(shape, 0, (key,), read)
