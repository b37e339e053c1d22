"""The method "torchao": integers of few bits in the class IntxUnpackedToInt8Tensor, as safetensors files hold it.

The metadata of the file describe each tensor in JSON, by the name of the weight; its parts are tensors of their own:

    MODULE._weight_qdata        int8 [out, in]              codes, one a byte
    MODULE._weight_scale        float [out, groups]
    MODULE._weight_zero_point   integers [out, groups]

A weight is (code - zero point) × scale. Other classes of torchao hold 4 or 8 bits in layouts of their kernels, and are
refused; so are its older files, which are pickles.

torchao may round activations to int8 with a zero point per token, which ours lack: activations are then left as they
are, which is nearer to it.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ternarize_cli.compress.imports.coded import FLOATS, CodedMatrix, CodedModel, Tensors, field_of, refused
from ternarize_cli.errors import CheckpointError, named, shown
from ternarize_cli.storage.weights import WeightShard

__all__ = ["read_torchao"]

_CLASS = "IntxUnpackedToInt8Tensor"
_PLAIN = "Tensor"
_POINTS = ("I8", "I16", "I32", "I64", *FLOATS)


def read_torchao(shards: Sequence[WeightShard], tensors: Tensors) -> CodedModel:
    """Finds the matrices of a model of the method "torchao".

    Args:
        shards: its weights files, whose metadata describe the tensors.
        tensors: the tensors of its files.

    Raises:
        CheckpointError: the metadata or a tensor are of another kind than the class has, or can't be held.
    """
    matrices = {}
    for shard in shards:
        with safe_open(shard.path, framework="pt") as file:
            described = file.metadata() or {}
        for name, text in described.items():
            if name not in ("format", "tensor_names") and (found := _described(name, text)) is not None:
                matrices[name] = _matrix(tensors, name, found)
    return CodedModel(matrices, 16)


def _described(name: str, text: str) -> Mapping[str, Any] | None:
    """Reads the description of a tensor; None for one in floating point.

    Raises:
        CheckpointError: the tensor is of a class, or has values, that a packed model can't hold.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"the metadata of {named(name)} are no JSON", hint="fetch the model again") from e
    where = f"the metadata of {named(name)}"
    if field_of(values, "_type", (_PLAIN, _CLASS), where) == _PLAIN:
        return None
    data = values.get("_data")
    rounds = field_of(data, "activation_quantization", (None, "int8_asym_per_token"), where)
    size = data.get("block_size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(n) is int and n > 0 for n in size) and size[0] == 1):
        raise refused(f"{where} have block_size {shown(size)}", "scales per row or per group of a row can be held")
    return {"size": size[1], "rounds": rounds}


def _matrix(tensors: Tensors, name: str, described: Mapping[str, Any]) -> CodedMatrix:
    module, _, leaf = name.rpartition(".")
    codes, scale, zero = (f"{module}._{leaf}_{part}" for part in ("qdata", "scale", "zero_point"))
    tensors.require(codes, ("I8",))
    shape = tensors.shape(codes)
    if leaf != "weight" or len(shape) != 2 or shape[1] % described["size"]:
        raise CheckpointError(
            f"{named(name)} is {list(shape)} in groups of {described['size']}, no weight of a linear",
            hint="fetch it again",
        )
    rows, columns = shape
    scales = columns // described["size"]
    flat = ((rows,),) if scales == 1 else ()
    tensors.require(scale, FLOATS, (rows, scales), *flat)
    if zero in tensors:
        tensors.require(zero, _POINTS, (rows, scales), *flat)
    keys = [key for key in (codes, scale, zero) if key in tensors]

    def read() -> tuple[Tensor, Tensor]:
        found = tensors.get(codes).to(torch.int16)
        if zero in tensors:
            points = tensors.get(zero).reshape(rows, scales).float()
            if not (points == points.round().clamp(-128, 127)).all():
                raise refused(f"{named(zero)} has fractions", "zero points are whole numbers in a packed model's codes")
            found -= points.to(torch.int16).repeat_interleave(described["size"], dim=1)
        return found, tensors.scale(scale).reshape(rows, scales)

    return CodedMatrix((rows, columns), scales, tuple(keys), read)
