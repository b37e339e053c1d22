"""The method "compressed-tensors": integers of 2 or 4 bits in the format `pack-quantized`.

    NAME.weight_packed       int32 [out, words]           codes (`arithmetic.int32_words`)
    NAME.weight_scale        float [out, 1 or groups] or [1]
    NAME.weight_shape        int [2]                      out, in
    NAME.weight_zero_point   int32 [words, groups]        if asymmetric: zero points, packed along the rows; or int8 [1]

A weight is (code - zero point) × scale.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor

from ternarize_cli.arithmetic.int32_words import unpack_words, words_in
from ternarize_cli.compress.imports.coded import FLOATS, CodedMatrix, CodedModel, Tensors, field_of, refused
from ternarize_cli.errors import CheckpointError, named, shown

__all__ = ["read_compressed_tensors"]

_FORMAT = "pack-quantized"


def read_compressed_tensors(described: Mapping[str, Any], tensors: Tensors) -> CodedModel:
    """Finds the matrices of a model of the method "compressed-tensors".

    Args:
        described: the `quantization_config`.
        tensors: the tensors of its files.

    Raises:
        CheckpointError: the description or a tensor is of another kind than the format has, or can't be held.
    """
    where = "quantization_config"
    field_of(described, "format", (_FORMAT,), where)
    field_of(described, "quantization_status", ("compressed",), where)
    for key in ("kv_cache_scheme", "sparsity_config", "transform_config"):
        if described.get(key):
            raise refused(f"{where} has {key}", "a packed model has none")
    groups = described.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError(
            f"config_groups is {shown(groups)}, and must be an object of groups", hint="fetch it again"
        )
    schemes = [_scheme(group) for group in groups.values()]
    if any(scheme != schemes[0] for scheme in schemes):
        raise refused("config_groups has groups of different schemes", "the linears of a packed model share one")
    scheme, activations = schemes[0]
    names = [key.removesuffix("_packed") for key in tensors.keys() if key.endswith(".weight_packed")]  # noqa: SIM118
    return CodedModel({name: _matrix(tensors, name, **scheme) for name in names}, activations)


def _scheme(group: Any) -> tuple[dict[str, Any], int]:
    """Reads what a group says of weights, and the bits of activations."""
    weights = field_of(group, "weights", (group.get("weights") if isinstance(group, dict) else None,), "a group")
    field_of(group, "format", (_FORMAT, None), "a group")
    field_of(group, "output_activations", (None,), "a group")
    field_of(weights, "type", ("int",), "weights")
    field_of(weights, "actorder", (None,), "weights")
    bits = field_of(weights, "num_bits", (8, 4, 2), "weights")
    if bits == 8:
        raise refused("weights have 8 bits", "2 and 4 bits can be held")
    strategy = field_of(weights, "strategy", ("tensor", "channel", "group"), "weights")
    size = weights.get("group_size") if strategy == "group" else None
    if strategy == "group" and not (type(size) is int and size > 0):
        raise CheckpointError(f"group_size is {shown(size)}, and must be a number of inputs", hint="fetch it again")
    symmetric = field_of(weights, "symmetric", (True, False), "weights")
    rounds = group.get("input_activations")
    if rounds is not None:
        for key, value in (("num_bits", 8), ("type", "int"), ("symmetric", True), ("dynamic", True)):
            field_of(rounds, key, (value,), "input_activations")
        if rounds.get("strategy") != "token":
            raise refused(f"input_activations has strategy {shown(rounds.get('strategy'))}", "'token' can be held")
    scheme = {"bits": bits, "strategy": strategy, "size": size, "symmetric": symmetric}
    return scheme, 16 if rounds is None else 8


def _matrix(tensors: Tensors, name: str, bits: int, strategy: str, size: int | None, symmetric: bool) -> CodedMatrix:
    shape = rows, columns = tensors.matrix_shape(f"{name}_shape")
    if f"{name}_g_idx" in tensors:
        raise refused(
            f"{named(name)} has its inputs in another order (weight_g_idx)", "groups of a packed model are runs"
        )
    if size is not None and columns % size:
        raise CheckpointError(f"{named(name)}: groups of {size} do not divide {columns} inputs", hint="fetch it again")
    scales = 0 if strategy == "tensor" else 1 if size is None else columns // size
    of_scale = ((1,), ()) if not scales else ((rows, scales), *(((rows,),) if scales == 1 else ()))
    packed, scale, zero = (f"{name}_{leaf}" for leaf in ("packed", "scale", "zero_point"))
    tensors.require(packed, ("I32",), (rows, words_in(columns, bits)))
    tensors.require(scale, FLOATS, *of_scale)
    if not symmetric and scales:
        tensors.require(zero, ("I32",), (words_in(rows, bits), scales))
    elif not symmetric:
        tensors.require(zero, ("I8",), (1,), ())
    elif zero in tensors and bool(tensors.get(zero).any()):
        raise refused(f"{named(name)} has zero points, and its config says `symmetric`", "one of the two is wrong")
    zeros = None if symmetric else partial(_zero_points, tensors, zero, bits, rows, packed=bool(scales))
    keys = [key for key in (packed, scale, f"{name}_shape", zero) if key in tensors]

    def read() -> tuple[Tensor, Tensor]:
        codes = unpack_words(tensors.get(packed), bits, columns)
        if zeros is not None:
            points = zeros()
            codes -= points.repeat_interleave(columns // points.shape[1], dim=1)
        return codes, tensors.scale(scale).reshape((rows, scales) if scales else (1,))

    return CodedMatrix(shape, scales, tuple(keys), read)


def _zero_points(tensors: Tensors, key: str, bits: int, rows: int, *, packed: bool) -> Tensor:
    """Reads zero points: int8 `[out, groups]`, or `[1, 1]` for a matrix with one scale."""
    found = tensors.get(key)
    return unpack_words(found.T, bits, rows).T if packed else found.reshape(1, 1)
