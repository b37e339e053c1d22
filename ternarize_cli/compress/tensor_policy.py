"""What becomes of each tensor of a full-precision model, and why: the one place that decides it.

    fate       tensor of the source                           ternary checkpoint         packed model
    ternary    weight of a linear                             float32, float32 scales    codes, float16 scales
    table      weight of an embedding                         float32                    int4 or int8, float16 scales;
                                                                                         or float16, or float32
    half       any other above HALF_ABOVE_NUMEL elements,     float32, rounded to        float16
               linears of a head included                     float16's values
    kept       small, not floating point, or of an            as in the source           as in the source
               excluded module
    added      none: a bias that calibration adds             float32                    float32
    tied       a second name of a weight                      nothing                    nothing
    dropped    the encoder has no place for it                nothing                    nothing
    refused    a linear that the group size does not fit      the conversion ends with an error

A `TensorPolicy` holds what is decided by module: which linears become ternary, which embeddings are compressed, and
which of both are excluded, with the reason. It comes from the modules of a full-precision model (`policy_of_source`) or
from the description in a checkpoint (`policy_of_artifact`). `TensorPolicy.decide` then gives a tensor its
`TensorDecision`, with the dtypes and shapes of what stands for it in both artifacts; so bytes are known before anything
is written. `convert`, `convert --dry-run`, `pack`, `inspect`, calibration and the beta sweep follow these decisions.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ternarize_cli.arithmetic import tables, ternary
from ternarize_cli.encoders import anatomy
from ternarize_cli.encoders.module_replacement import table_bits
from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.codecs import Codec, codec_for
from ternarize_cli.format.scheme import Artifact, Scheme

__all__ = [
    "HALF_ABOVE_NUMEL",
    "Fate",
    "Headers",
    "SourceTensor",
    "TensorDecision",
    "TensorPolicy",
    "policy_of_artifact",
    "policy_of_source",
]

HALF_ABOVE_NUMEL = 65_536
"""Tensors with more elements than this that are neither linear nor table are float16 in a packed model."""

_OF_HEAD = "in the head, whose outputs are the scores themselves"
"""The reason why no linear beside the encoder becomes ternary: its error would go into every score unmixed."""

Fate = Literal["ternary", "table", "half", "kept", "added", "tied", "dropped", "refused"]
Headers = dict[str, tuple[torch.dtype, tuple[int, ...]]]
"""The dtype and shape of tensors by their names in a weights file."""


@dataclass(frozen=True)
class SourceTensor:
    """A tensor in the weights files of one part of a model, without its values.

    Attributes:
        key: the tensor's name in the files.
        name: the tensor's first name in the model's state dict; None if the model has no place for it.
        stored: the tensor's name in the files of an artifact; None if it is not stored.
        file: the name of the file that holds it in the source and in an artifact.
        dtype: the tensor's dtype; None for a bias that the source lacks and that calibration adds.
        shape: the tensor's shape, after the vocabulary was trimmed.
    """

    key: str
    name: str | None
    stored: str | None
    file: str
    dtype: torch.dtype | None
    shape: tuple[int, ...]

    @property
    def module(self) -> str:
        """The name of the module that has this tensor; "" for the model itself."""
        return (self.name or "").rpartition(".")[0]

    @property
    def bytes_source(self) -> int:
        """Bytes of the tensor's values in the source, without the rows that a trimmed vocabulary leaves out."""
        return self.dtype.itemsize * math.prod(self.shape) if self.dtype else 0


@dataclass(frozen=True)
class TensorDecision(SourceTensor):
    """What becomes of a tensor.

    Attributes:
        fate: one of the fates that the docstring of this module lists.
        reason: the reason for the fate, in words.
        checkpoint: the headers of what stands for the tensor in a ternary checkpoint; empty if nothing does.
        packed: the headers of what stands for the tensor in a packed model; empty if nothing does.
        transposed: whether the tensor is a linear's weight stored `[in, out]` (Conv1D).
    """

    fate: Fate
    reason: str
    checkpoint: Headers
    packed: Headers
    transposed: bool = False

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape of a linear's weight as (out, in), or of a table as (rows, dim)."""
        first, second = self.shape
        return (second, first) if self.transposed else (first, second)

    @property
    def bytes_packed(self) -> int:
        """Bytes of the codes or values and the scales that stand for the tensor in a packed model."""
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.packed.values())


@dataclass(frozen=True)
class TensorPolicy:
    """What becomes of the tensors of one part of a model.

    Attributes:
        scheme: granularity, levels and width of tables.
        linears: names of the modules that become ternary, and whether their weight is stored `[in, out]` (Conv1D).
        tables: names of the embeddings that are compressed, and whether they are the model's input embedding.
        excluded: names of the linears and embeddings that stay as they are, and why.
        classes: names of the parameters of all other modules, and the module's class.
        codec: how codes lie in bytes; None: the default for the scheme's levels.
        calibrated: names of the linears whose bias calibration fits.
        module_levels: the grids of linears that have another one than the scheme's.
    """

    scheme: Scheme
    linears: Mapping[str, bool]
    tables: Mapping[str, bool]
    excluded: Mapping[str, str]
    classes: Mapping[str, str] = field(default_factory=dict)
    codec: str | None = None
    calibrated: frozenset[str] = frozenset()
    module_levels: Mapping[str, str] = field(default_factory=dict)

    def scheme_of(self, module: str) -> Scheme:
        """The scheme of a linear named in `linears`."""
        levels = self.module_levels.get(module)
        return self.scheme if levels is None else replace(self.scheme, levels=levels)

    def codec_of(self, module: str) -> Codec:
        """How the codes of a linear named in `linears` lie in bytes."""
        levels = self.module_levels.get(module)
        return codec_for(self.scheme.levels, self.codec) if levels is None else codec_for(levels)

    def kind(self, module: str) -> str:
        """Tells what a linear or embedding becomes: "ternary", "table", or "dense" if it stays as it is."""
        return "ternary" if module in self.linears else "table" if module in self.tables else "dense"

    def table_bits(self, module: str) -> int:
        """The width in bits that an embedding named in `tables` has in a packed model."""
        return table_bits(self.scheme, words=self.tables[module])

    def decide(self, tensor: SourceTensor) -> TensorDecision:
        """Decides what becomes of a tensor."""
        fate, reason = _fate(self, tensor)
        written = tensor.stored is not None and fate != "refused"
        checkpoint, packed = _headers(self, tensor, fate) if written else ({}, {})
        transposed = fate == "ternary" and self.linears[tensor.module]
        return TensorDecision(
            **vars(tensor), fate=fate, reason=reason, checkpoint=checkpoint, packed=packed, transposed=transposed
        )


def policy_of_source(
    model: nn.Module, scheme: Scheme, present: Collection[str], skip: Mapping[str, str], prefix: str = ""
) -> TensorPolicy:
    """Decides over every linear and embedding of a full-precision model.

    Args:
        model: the encoder, or another part of a model; meta tensors are fine.
        scheme: granularity, levels and width of tables.
        present: the state-dict names that the source holds; of a weight with several names, one is enough.
        skip: shell patterns over module names, such as "pooler*" or "encoder.layer.0.*", each with the reason that is
            given for the modules that it excludes.
        prefix: what users write before the names of this model, such as "2_Dense.".

    Raises:
        CheckpointError: no linear is left to ternarise, and `prefix` is empty: a Dense module may have none.
    """
    policy = _policy(model, scheme, _excluded(model, present, skip, prefix))
    if not policy.linears and not prefix:
        skipped = sorted(set(skip.values()).intersection(policy.excluded.values()))
        what = "nothing to ternarise: no nn.Linear and no Conv1D" + (" that does not stay" if policy.excluded else "")
        hint = "ternarize takes encoders whose weights sit in linears"
        if skipped:
            hint = f"without {' and '.join(skipped)}, or with fewer patterns; {hint}"
        raise CheckpointError(f"this model has {what}", hint=hint)
    return policy


def policy_of_artifact(model: nn.Module, artifact: Artifact) -> TensorPolicy:
    """Takes the decisions over linears and embeddings from the description of a checkpoint or packed model.

    Args:
        model: the skeleton as `Part.skeleton` builds it, before modules are replaced.
        artifact: the description; it lists the excluded modules, without the reasons.
    """
    own = anatomy.names_in_encoder(model)
    excluded = dict.fromkeys(anatomy.in_head(model), _OF_HEAD) | {
        name: "excluded when the model was converted"
        for name, _ in anatomy.weighted(model)
        if own.get(name) in artifact.modules_to_not_convert
    }
    policy = _policy(model, artifact.scheme, excluded, artifact.codec)
    levels = {name: artifact.module_levels.get(own.get(name, "")) for name in policy.linears}
    return replace(policy, module_levels={name: found for name, found in levels.items() if found is not None})


def _excluded(model: nn.Module, present: Collection[str], skip: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Finds the linears and embeddings of a full-precision model that stay as they are, with the reasons."""
    found: dict[str, str] = {}
    first = anatomy.first_names(model)
    owned = {first[name] for name in present if name in first}
    inside, head = anatomy.in_attention(model), anatomy.in_head(model)
    for name, module in anatomy.weighted(model):
        owner = first[f"{name}.weight"].removesuffix(".weight")
        if name in head:
            found |= {name: _OF_HEAD} if owner == name else {}
            if owner == name or anatomy.decodes(module, model.get_submodule(owner)):
                continue
        if owner != name:
            if not anatomy.interchangeable(module, model.get_submodule(owner)):
                found[owner] = found[name] = f"{owner} and {name} share one weight and use it differently"
            continue
        reason = next((why for pattern, why in skip.items() if fnmatchcase(prefix + name, pattern)), None)
        if reason is None and name in inside:
            reason = "inside nn.MultiheadAttention, which reads its weights directly"
        if reason is None and f"{name}.weight" not in owned:
            reason = "not in the source"
        reason = reason or anatomy.reason_to_exclude(module) or anatomy.reader(model, name)
        if reason is not None:
            found[name] = reason
    return found


def _policy(model: nn.Module, scheme: Scheme, excluded: Mapping[str, str], codec: str | None = None) -> TensorPolicy:
    first, inside, words = anatomy.first_names(model), anatomy.in_attention(model), anatomy.word_tables(model)
    own = {n: m for n, m in anatomy.weighted(model) if first[f"{n}.weight"] == f"{n}.weight" and n not in inside}
    replaced = {name: module for name, module in own.items() if name not in excluded}
    return TensorPolicy(
        scheme,
        linears={n: isinstance(m, Conv1D) for n, m in replaced.items() if not isinstance(m, nn.Embedding)},
        tables={n: m in words for n, m in replaced.items() if isinstance(m, nn.Embedding)},
        excluded=excluded,
        classes={
            f"{name}.{parameter}".lstrip("."): type(module).__name__
            for name, module in model.named_modules()
            if name not in replaced and name not in excluded
            for parameter, _ in module.named_parameters(recurse=False)
        },
        codec=codec,
    )


def _fate(policy: TensorPolicy, tensor: SourceTensor) -> tuple[Fate, str]:
    module, leaf = tensor.module, (tensor.name or "").rpartition(".")[2]
    if tensor.name is None:
        return "dropped", "the encoder has no place for it"
    if tensor.stored is None:
        return "tied", f"one weight with {tensor.name}, which is stored"
    if tensor.dtype is None:
        return "added", "calibration fits a bias"
    if leaf == "weight" and module in policy.linears:
        shape = tensor.shape[::-1] if policy.linears[module] else tensor.shape
        try:
            ternary.scale_shape(shape[0], shape[1], policy.scheme.granularity, policy.scheme.group_size)
        except ValueError as e:
            return "refused", str(e)
        return "ternary", "the weight of a linear"
    if leaf == "weight" and module in policy.tables:
        return "table", f"the rows of an embedding: {policy.table_bits(module)} bits when packed"
    excluded = policy.excluded.get(module)
    if excluded is not None and excluded != _OF_HEAD:
        return "kept", excluded
    if not tensor.dtype.is_floating_point:
        return "kept", "no floating-point numbers, as in the source"
    if math.prod(tensor.shape) > HALF_ABOVE_NUMEL:
        kind = policy.classes.get(tensor.name)
        what = excluded or (f"of a {kind}" if kind else None)
        return "half", f"{what}: float16 when packed" if what else "float16 when packed"
    if leaf == "bias" and module in policy.calibrated:
        return "kept", "small; calibration fits its values"
    return "kept", excluded or "small, as in the source"


def _headers(policy: TensorPolicy, tensor: SourceTensor, fate: Fate) -> tuple[Headers, Headers]:
    """What stands for a stored tensor in a ternary checkpoint and in a packed model."""
    key, shape, scheme = str(tensor.stored), tensor.shape, policy.scheme
    if fate == "ternary":
        rows, columns = shape[::-1] if policy.linears[tensor.module] else shape
        scales = ternary.scale_shape(rows, columns, scheme.granularity, scheme.group_size)
        codes = rows, policy.codec_of(tensor.module).width(columns)
        return (
            {key: (torch.float32, shape), f"{key}_scale": (torch.float32, scales)},
            {key: (torch.uint8, codes), f"{key}_scale": (torch.float16, scales)},
        )
    if fate == "table":
        bits = policy.table_bits(tensor.module)
        if bits in (16, 32):
            return {key: (torch.float32, shape)}, {key: (torch.float16 if bits == 16 else torch.float32, shape)}
        codes, kind, scales = tables.stored_shapes(shape[0], shape[1], bits)
        return {key: (torch.float32, shape)}, {key: (kind, codes), f"{key}_scale": (torch.float16, scales)}
    if fate == "half":
        return {key: (torch.float32, shape)}, {key: (torch.float16, shape)}
    fitted = tensor.module in policy.calibrated and tensor.name == f"{tensor.module}.bias"
    same = {key: (torch.float32 if fitted or tensor.dtype is None else tensor.dtype, shape)}
    return same, same
