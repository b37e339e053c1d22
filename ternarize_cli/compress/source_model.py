"""The full-precision model that is converted: read, checked, and decided over, part by part."""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.compress import tensor_policy
from ternarize_cli.compress.calibrate import Calibrated
from ternarize_cli.compress.tensor_policy import SourceTensor, TensorDecision, TensorPolicy
from ternarize_cli.encoders import anatomy, checkpoint
from ternarize_cli.encoders.parts import Part, parts_of
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.storage import weights

__all__ = ["ConversionPlan", "SourcePart", "check_source", "source_parts"]


def check_source(source: Path, *, allow_pickle: bool = False) -> None:
    """Checks that a folder holds a full-precision model.

    Raises:
        CheckpointError: the folder is incomplete or damaged, or its model is quantised already.
    """
    known = checkpoint.validate(source, allow_pickle=allow_pickle)
    if known is not None:
        hint = f"ternarize pack {source}" if known.stage == "latent" else "convert its full-precision source instead"
        raise CheckpointError(f"{source} is a ternary model already (stage {known.stage})", hint=hint)
    foreign = checkpoint.read_config(source).get("quantization_config")
    if foreign is not None:
        method = foreign.get("quant_method", "unknown method")
        raise CheckpointError(f"{source} is quantised already ({method})", hint="convert its full-precision source")


@dataclass(frozen=True)
class SourcePart:
    """One part of a full-precision model, with what becomes of its tensors.

    Attributes:
        part: where it lies.
        model: its skeleton.
        policy: decides over its tensors.
        tensors: the tensors of its files in the order of the model's state dict, those without a place in it last.
        calibrated: what calibration found, by the name of the linear.
    """

    part: Part
    model: Any
    policy: TensorPolicy
    tensors: tuple[SourceTensor, ...]
    calibrated: Mapping[str, Calibrated] = field(default_factory=dict)

    @cached_property
    def decisions(self) -> dict[str, TensorDecision]:
        """What becomes of each tensor, by its name in the files."""
        return {tensor.key: self.policy.decide(tensor) for tensor in self.tensors}

    def trimmed(self, tables: Collection[str], rows: int) -> "SourcePart":
        """This part with `rows` rows in the tables of these state-dict names."""
        cut = (replace(t, shape=(rows, *t.shape[1:])) if t.name in tables else t for t in self.tensors)
        return replace(self, tensors=tuple(cut))

    def with_biases(self, linears: Collection[str]) -> "SourcePart":
        """This part with biases that calibration fits for these of its linears; those without a bias get one."""
        bare, tensors = set(self.without_bias(linears)), list[SourceTensor]()
        for tensor, decision in zip(self.tensors, self.decisions.values(), strict=True):
            tensors.append(tensor)
            if decision.fate == "ternary" and tensor.module in bare:
                key = f"{str(tensor.stored).removesuffix('weight')}bias"
                shape = decision.matrix[:1]
                tensors.append(SourceTensor(key, f"{tensor.module}.bias", key, tensor.file, None, shape))
        policy = replace(self.policy, calibrated=frozenset(linears))
        return replace(self, policy=policy, tensors=tuple(tensors))

    def with_calibrated(self, found: Mapping[str, Calibrated]) -> "SourcePart":
        """This part with what calibration found for its linears, whose names in `found` have the part's prefix."""
        named = {name: self.part.prefix + name for name in self.policy.linears}
        own = {name: found[full] for name, full in named.items() if full in found}
        return replace(self.with_biases(own), calibrated=own)

    def without_bias(self, linears: Iterable[str]) -> tuple[str, ...]:
        """Those of the linears that have no bias in the model."""
        return tuple(name for name in linears if self.model.get_submodule(name).bias is None)

    def check_finite(self, *, allow_pickle: bool = False) -> None:
        """Reads every tensor that will be stored.

        Raises:
            CheckpointError: a value is not finite.
        """
        with self.part.open_source(self.model, allow_pickle=allow_pickle) as shards:
            for shard in shards:
                for key in (key for key in shard.keys() if self.decisions[key].stored):  # noqa: SIM118
                    tensor = shard.get(key)
                    if tensor.is_floating_point() and not weights.all_finite(tensor):
                        raise CheckpointError(
                            f"{key}: a value is not finite", hint="the source is damaged; fetch it again"
                        )

    def describe(self, made: Artifact) -> Artifact:
        """The artifact of this part: `made`, with the part's excluded modules and added biases."""
        return replace(
            made,
            modules_to_not_convert=tuple(self.policy.excluded),
            added_biases=self.without_bias(self.calibrated),
        )


@dataclass(frozen=True)
class ConversionPlan:
    """What becomes of every tensor of a model: `convert --dry-run` foretells it, and `convert` reports it.

    Attributes:
        tensors: one decision for each tensor of the source and each bias that calibration adds, in the model's order.
        excluded: names of the linears and embeddings that stay as they are, and why.
        others: what else the encoder has weights for, with what becomes of it: large tensors by name, small ones
            counted by the class of their module.

    Names in `excluded`, and the names and keys of `tensors`, have the prefix of their part.
    """

    tensors: tuple[TensorDecision, ...]
    excluded: dict[str, str]
    others: dict[str, str]

    @classmethod
    def of(cls, parts: Sequence[SourcePart]) -> "ConversionPlan":
        """Collects the decisions over the parts of a model, the encoder first."""
        return cls(
            tensors=tuple(
                replace(d, key=one.part.prefix + d.key, name=d.name and one.part.prefix + d.name)
                for one in parts
                for d in one.decisions.values()
            ),
            excluded={one.part.prefix + name: why for one in parts for name, why in one.policy.excluded.items()},
            others=_others(parts[0]),
        )

    @property
    def linears(self) -> tuple[TensorDecision, ...]:
        """The decisions over the weights that become ternary."""
        return tuple(d for d in self.tensors if d.fate == "ternary")

    @property
    def tables(self) -> tuple[TensorDecision, ...]:
        """The decisions over the embeddings that are compressed."""
        return tuple(d for d in self.tensors if d.fate == "table")

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names in the files of the tensors that the encoder has no place for."""
        return tuple(d.key for d in self.tensors if d.fate == "dropped")

    def to_json(self) -> dict[str, Any]:
        """What stays as it is and what is dropped, in the JSON form of `convert` and `convert --dry-run`."""
        return {"kept": self.excluded, "others": self.others, "dropped": list(self.dropped)}


def _others(source: SourcePart) -> dict[str, str]:
    classes = source.policy.classes
    found = [(d, classes[d.name]) for d in source.decisions.values() if d.name is not None and d.name in classes]
    small: dict[str, Counter[str]] = {}
    for d, kind in found:
        if d.fate == "kept":
            small.setdefault(kind, Counter())[d.module] += math.prod(d.shape)
    return {str(d.name): d.reason for d, _ in found if d.fate == "half"} | {
        f"{len(modules)} × {kind}": f"small ({modules.total():,} weights), as in the source"
        for kind, modules in small.items()
    }


def source_parts(
    folder: Path, scheme: Scheme, skip: Sequence[str] = (), *, keep_dense: bool = False, allow_pickle: bool = False
) -> list[SourcePart]:
    """Opens the parts of a full-precision folder and decides over their tensors.

    Args:
        folder: the model.
        scheme: granularity, levels and width of tables.
        skip: shell patterns of module names to leave as they are.
        keep_dense: leave Dense modules as they are.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.

    Raises:
        CheckpointError: a tensor is missing or misshapen, or is stored twice with different values, or the encoder has
            no linear to ternarise.
        InputError: a pattern matches nothing, or the group size does not divide the width of a linear.
    """
    parts = [(part, part.skeleton()) for part in parts_of(folder)]
    unknown = [p for p in skip if not any(tensor_policy.matches(model, p, part.prefix) for part, model in parts)]
    found = []
    for part, model in parts:
        with part.open_source(model, allow_pickle=allow_pickle) as shards:
            checkpoint.check_tensors(model, shards)
            tensors = _tensors(model, shards)
        mine = [p for p in skip if tensor_policy.matches(model, p, part.prefix)] + ([] if part.subfolder else unknown)
        reasons = {p: f"--skip {p}" for p in mine}
        if part.subfolder and keep_dense:
            reasons = {"*": "--keep-dense"}
        present = {tensor.name for tensor in tensors if tensor.name is not None}
        policy = tensor_policy.policy_of_source(model, scheme, present=present, skip=reasons, prefix=part.prefix)
        one = SourcePart(part, model, policy, tensors)
        for refused in (d for d in one.decisions.values() if d.fate == "refused"):
            raise InputError(
                f"{part.prefix}{refused.module}: {refused.reason}",
                hint="another group size, --granularity row, or --skip for this layer",
            )
        found.append(one)
    return found


def _tensors(model: Any, shards: Sequence[weights.WeightShard]) -> tuple[SourceTensor, ...]:
    """The tensors of the files in the model's order; of a tensor with several names, one copy is stored."""
    by_key = {key: shard for shard in shards for key in shard.keys()}  # noqa: SIM118
    names, first = checkpoint.names_in_model(model, by_key), anatomy.first_names(model)
    chosen: dict[str, str] = {}
    for key, name in names.items():
        if first[name] not in chosen or name == first[name]:
            chosen[first[name]] = key
    for key, name in names.items():
        other = chosen[first[name]]
        if other != key and not torch.equal(by_key[key].get(key), by_key[other].get(other)):
            raise CheckpointError(
                f"{key} and {other} are one weight in the model that config.json describes, but differ here",
                hint='if they should differ: "tie_word_embeddings": false in config.json',
            )
    found = []
    for key, shard in by_key.items():
        owner = first[names[key]] if key in names else None
        stored = None if owner is None or chosen[owner] != key else key if names[key] == owner else owner
        dtype = weights.DTYPES.get(shard.dtype(key))
        if owner is not None and dtype is None:
            raise CheckpointError(f"{key} is {shard.dtype(key)}, which no artifact can hold", hint="fetch it again")
        found.append(SourceTensor(key, owner, stored, shard.name, dtype, shard.shape(key)))
    place = {name: i for i, name in enumerate(first)}
    return tuple(sorted(found, key=lambda tensor: place.get(tensor.name or "", len(place))))
