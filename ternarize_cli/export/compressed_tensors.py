"""The format compressed-tensors: a checkpoint whose linears are codes, which transformers opens with that library.

Each packed linear becomes `pack-quantized` integers, symmetric, with a scale per row ("channel") or per group:

    levels           bits   why
    ternary, binary  2      -1, 0 and 1 are among -2 … 1
    int2, int4       4      int2 has the codes ±1 and ±3, which 2 bits around zero do not have

    NAME.weight_packed   int32 [out, words]        codes (`arithmetic.int32_words`)
    NAME.weight_scale    float [out, 1 or groups]  the packed model's scales; float32 for 4 bits, because the library
                                                   multiplies in this dtype, and 3 × a float16 may not be one
    NAME.weight_shape    int64 [2]                 out, in

A scale per tensor is repeated for each row. A row or group with the scale 0 gets the scale 1 and zero codes, since the
library divides by scales. All else is dense: tables and large tensors in float16, and linears that transformers stores
transposed (GPT-2), which the format does not hold.

The library expands the codes when the model is loaded: the files are small, and the memory is that of a dense model.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.arithmetic.int32_words import pack_words
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.errors import InputError
from ternarize_cli.export import card
from ternarize_cli.export.formats import Export, register
from ternarize_cli.export.in_transformers import Weights, write_checkpoint
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.layers import PackedEmbedding, PackedLinear

__all__ = ["CompressedTensors"]

_LARGE = 65_536
"""Tensors with more elements than this are float16, as in a packed model."""


@register
class CompressedTensors:
    """Writes a folder for transformers with the library compressed-tensors."""

    name = "compressed-tensors"
    options = frozenset({"check", "texts", "min_cosine"})

    def write(
        self, source: Source, output: Path, options: ExportOptions, *, force: bool, say: Callable[[str], None]
    ) -> Export:
        """Writes the folder.

        Args:
            source: the model.
            output: the folder to write.
            options: the options, of which only those of the check may be set.
            force: replace a folder that exists.
            say: is told what is written when all arguments have been checked.

        Raises:
            InputError: an option has a value that can't be used, or the model has no linear that the format holds.
            DataError: the texts of the check can't be read.
            UnavailableError: compressed-tensors is not installed, and `options.min_cosine` is set.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        return write_checkpoint(
            source,
            output,
            options,
            _weights,
            _readme,
            library="compressed_tensors",
            force=force,
            say=say,
        )


def _weights(model: Any) -> Weights:
    """Makes the tensors and the description of a model whose linears are packed.

    Raises:
        InputError: no linear of the model can be written.
    """
    packed = {n: m for n, m in model.named_modules() if isinstance(m, PackedLinear) and not m.transposed}
    halves = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, PackedEmbedding)}
    if not packed:
        raise InputError(
            "no linear of this model can be written: compressed-tensors holds nn.Linear, and its are stored transposed",
            hint="--to dense",
        )
    scheme = next(iter(packed.values())).scheme
    bits = 2 if all(m.scheme.levels in ("ternary", "binary") for m in packed.values()) else 4
    codes = {name: _stored(module, bits) for name, module in packed.items()}
    dequantize(model)
    model.hf_quantizer.remove_quantization_config(model)
    ignored = [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in packed]
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner = name.removesuffix(".weight")
        if owner in codes and owner != name:
            tensors |= {f"{owner}.{leaf}": value for leaf, value in codes[owner].items()}
        else:
            half = name in halves or (tensor.is_floating_point() and tensor.numel() > _LARGE)
            tensors[name] = tensor.half() if half else tensor
    described = _described(bits, scheme.group_size, ignored)
    return Weights(
        {"dtype": "float32", "quantization_config": described},
        {"bits": bits, "group_size": scheme.group_size, "linears": len(packed), "dense_linears": ignored},
        tensors,
    )


def _stored(module: PackedLinear, bits: int) -> dict[str, Tensor]:
    rows, columns = module.out_features, module.in_features
    codes, scale = module.codes(), module.weight_scale.detach()
    scale = scale.expand(rows, 1) if scale.dim() == 1 else scale
    wide = (scale > 0).repeat_interleave(columns // scale.shape[1], dim=1)
    return {
        "weight_packed": pack_words(torch.where(wide, codes, 0), bits),
        "weight_scale": torch.where(scale > 0, scale, 1).to(torch.float16 if bits == 2 else torch.float32).contiguous(),
        "weight_shape": torch.tensor([rows, columns]),
    }


def _described(bits: int, group_size: int | None, ignored: list[str]) -> dict[str, Any]:
    """Makes the `quantization_config`; names that it ignores match with any prefix of a class around the model."""
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "channel" if group_size is None else "group",
        "group_size": group_size,
        "dynamic": False,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "dequantize": True,  # as it is loaded; else before a call of the model, and others call its forward
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": None,
                "output_activations": None,
                "format": "pack-quantized",
            }
        },
        "ignore": [rf"re:(.*\.)?{re.escape(name)}$" for name in ignored],
        "kv_cache_scheme": None,
    }


def _readme(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a checkpoint for compressed-tensors.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    scales = "a row" if facts["group_size"] is None else f"{facts['group_size']} inputs"
    return f"""{card.front_matter(source, "compressed-tensors")}# {source.name}

An encoder with {source.weights}, for transformers with the library compressed-tensors
(`pip install compressed-tensors`). Its linears are integers of {facts["bits"]} bits (`pack-quantized`) with a scale
for {scales}: the packed model's values, exactly. Embedding tables are float16. Activations are not rounded, as if the
model had been converted with `--activations 16`. The library expands the codes when the model is loaded.

{card.in_transformers(facts)}

{card.about(source)}"""
