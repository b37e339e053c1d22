"""The format dense: an ordinary checkpoint of transformers, with codes and scales multiplied out.

Any tool that takes a model of the hub takes it: other quantisers and runtimes, fine-tuning, servers. It has the bytes
of a full-precision model. What `--dtype` rounds:

    fp32    nothing
    fp16    nothing in ternary and binary linears, whose values are 0 or ± a scale, and scales are float16; linears of
            int2 and int4, and tables (code × scale), to 11 bits, about 0.02%
    bf16    every value to 8 bits, about 0.2%: a scale has 11
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.errors import InputError
from ternarize_cli.export import card
from ternarize_cli.export.formats import Export, register
from ternarize_cli.export.in_transformers import Weights, write_checkpoint
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.source import Source
from ternarize_cli.layers import PackedLinear

__all__ = ["Dense"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@register
class Dense:
    """Writes a folder with the values in floating point."""

    name = "dense"
    options = frozenset({"dtype", "check", "texts", "min_cosine"})

    def write(
        self, source: Source, output: Path, options: ExportOptions, *, force: bool, say: Callable[[str], None]
    ) -> Export:
        """Writes the folder.

        Args:
            source: the model.
            output: the folder to write.
            options: the options, of which only `dtype` and those of the check may be set.
            force: replace a folder that exists.
            say: is told what is written when all arguments have been checked.

        Raises:
            InputError: an option has a value that can't be used, or a value of the model does not fit the dtype.
            DataError: the texts of the check can't be read.
            OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
        """
        if options.dtype not in _DTYPES:
            raise InputError(f"--dtype {options.dtype} is unknown", hint=f"one of {', '.join(_DTYPES)}")
        make = partial(_weights, dtype=_DTYPES[options.dtype])
        return write_checkpoint(source, output, options, make, _readme, library="transformers", force=force, say=say)


def _weights(model: Any, dtype: torch.dtype) -> Weights:
    """Multiplies a model out, and casts it.

    Raises:
        InputError: a value does not fit the dtype.
    """
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, PackedLinear)}
    dequantize(model)
    model.hf_quantizer.remove_quantization_config(model)
    exact = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    model.to(dtype)
    costs = {True: 0.0, False: 0.0}
    for name, tensor in model.state_dict().items():
        if name in exact:
            if not torch.isfinite(tensor).all():
                raise InputError(f"{name} has a value that {dtype} does not hold", hint="--dtype bf16 or fp32")
            costs[name in linears] = max(costs[name in linears], _distance(exact[name], tensor))
    return Weights(
        {"dtype": str(dtype).removeprefix("torch.")},
        {
            "dtype": str(dtype).removeprefix("torch."),
            "rounding": {"linears": costs[True], "others": costs[False]},
        },
    )


def _distance(exact: Tensor, rounded: Tensor) -> float:
    """Computes the relative distance of a tensor to what was rounded of it, to three digits."""
    length = float(exact.double().norm())
    return float(f"{float((rounded.double() - exact.double()).norm()) / length:.3g}") if length else 0.0


def _readme(source: Source, facts: Mapping[str, Any]) -> str:
    """Writes the README of a dense checkpoint.

    Args:
        source: the model.
        facts: what the folder's export.json holds.
    """
    costs = facts["rounding"]
    exact = "exactly" if not costs["linears"] else f"rounded by {costs['linears']:.2%} of their length at most"
    others = "Everything else is as it was" if not costs["others"] else "Other tensors are rounded"
    if costs["others"]:
        others += f" by {costs['others']:.2%} at most"
    return f"""{card.front_matter(source)}# {source.name}

An encoder with {source.weights}, multiplied out to {facts["dtype"]}: an ordinary checkpoint of transformers, for tools
that know nothing of ternary weights. Its linears have the packed model's values {exact}.
{others}. Activations are not rounded, as if it had been converted with `--activations 16`.

{card.in_transformers(facts)}

{card.about(source)}"""
