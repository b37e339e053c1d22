"""The full-precision model that is converted: read, checked, and decided over, part by part."""

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.compress.calibrate import Calibration
from ternarize_cli.compress.options import METHODS, ConvertOptions
from ternarize_cli.compress.tensor_policy import Fate, SourceTensor, TensorDecision, TensorPolicy, policy_of_source
from ternarize_cli.compress.vocabulary import Vocabulary, select
from ternarize_cli.encoders import anatomy, checkpoint
from ternarize_cli.encoders.parts import Part, parts_of
from ternarize_cli.errors import CheckpointError, InputError, quoted
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.model_folder.model_kind import head_of
from ternarize_cli.progress import Track
from ternarize_cli.storage import weights

__all__ = ["ConversionPlan", "SourcePart", "check_source", "planned_parts", "source_parts", "source_tensors"]


def check_source(source: Path, *, allow_pickle: bool = False) -> None:
    """Checks that a folder holds a full-precision model.

    Raises:
        CheckpointError: the folder is incomplete or damaged, or its model is quantised already.
    """
    known = checkpoint.validate(source, allow_pickle=allow_pickle)
    if known is not None:
        hint = (
            f"ternarize pack {quoted(source)}"
            if known.stage == "latent"
            else "convert its full-precision source instead"
        )
        raise CheckpointError(f"{source} is a ternary model already (stage {known.stage})", hint=hint)
    foreign = checkpoint.read_config(source).get("quantization_config")
    if foreign is not None:
        method = foreign.get("quant_method", "unknown method")
        taken = f"ternarize pack {quoted(source)}" if method in METHODS else "convert its full-precision source"
        raise CheckpointError(f"{source} is quantised already ({method})", hint=taken)


@dataclass(frozen=True)
class SourcePart:
    """One part of a full-precision model, with what becomes of its tensors.

    Attributes:
        part: the place of the part in the model folder.
        model: the part's skeleton.
        policy: what decides over the part's tensors.
        tensors: the tensors in the part's files in the order of the skeleton's state dict, then those without a place
            in it, then the biases that calibration adds.
    """

    part: Part
    model: Any
    policy: TensorPolicy
    tensors: tuple[SourceTensor, ...]

    @cached_property
    def decisions(self) -> dict[str, TensorDecision]:
        """What becomes of each tensor, by its name in the files."""
        return {tensor.key: self.policy.decide(tensor) for tensor in self.tensors}

    def trimmed(self, tables: Collection[str], rows: int) -> "SourcePart":
        """Makes this part with `rows` rows in the tables of these state-dict names."""
        cut = (replace(t, shape=(rows, *t.shape[1:])) if t.name in tables else t for t in self.tensors)
        return replace(self, tensors=tuple(cut))

    def calibrated(self, linears: Collection[str]) -> "SourcePart":
        """Makes this part with biases that calibration fits for these of its linears; those without a bias get one."""
        added = []
        for d in self.decisions.values():
            if d.fate == "ternary" and d.module in linears and self.model.get_submodule(d.module).bias is None:
                key = f"{str(d.stored).removesuffix('weight')}bias"
                added.append(SourceTensor(key, f"{d.module}.bias", key, d.file, None, d.matrix[:1]))
        policy = replace(self.policy, calibrated=frozenset(linears))
        return replace(self, policy=policy, tensors=(*self.tensors, *added))

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
        """Completes the description of an artifact with this part's excluded modules, added biases and grids."""
        own = anatomy.names_in_encoder(self.model)  # a head stays as it is, and is not listed
        lacking = _without(self.model, self.part.encoder()) if anatomy.encoder_in(self.model) is not self.model else ()
        return replace(
            made,
            modules_to_not_convert=(*(own[name] for name in self.policy.excluded if name in own), *lacking),
            added_biases=tuple(own[d.module] for d in self.decisions.values() if d.fate == "added"),
            module_levels={own[name]: levels for name, levels in self.policy.module_levels.items()},
        )


def _without(model: Any, encoder: Any) -> list[str]:
    """Lists the linears and embeddings of an encoder that a class around it leaves out, such as a pooler."""
    held = set(anatomy.names_in_encoder(model).values())
    return [name for name, _ in anatomy.weighted(encoder) if name not in held]


@dataclass(frozen=True)
class ConversionPlan:
    """What becomes of every tensor of a model: `convert --dry-run` foretells it, and `convert` reports it.

    Names and keys of tensors and names of modules have the prefix of their part, such as "2_Dense.".

    Attributes:
        tensors: the decision over each tensor of the source and each bias that calibration adds.
        excluded: names of the linears and embeddings that stay as they are, and why.
        others: what becomes of the weights of all other modules of the encoder: large tensors by name, small ones
            counted by the class of their module.
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

    def having(self, fate: Fate) -> tuple[TensorDecision, ...]:
        """The decisions with this fate."""
        return tuple(d for d in self.tensors if d.fate == fate)

    @property
    def dropped(self) -> tuple[str, ...]:
        """Names in the files of the tensors that the encoder has no place for."""
        return tuple(d.key for d in self.having("dropped"))

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


def source_parts(folder: Path, scheme: Scheme, options: ConvertOptions) -> list[SourcePart]:
    """Opens the parts of a full-precision folder and decides over their tensors; the vocabulary is not trimmed yet.

    Raises:
        CheckpointError: a tensor is missing or misshapen, or is stored twice with different values, or the encoder has
            no linear to ternarise.
        InputError: a pattern matches no linear and no embedding, or the group size does not divide the width of a
            linear.
    """
    parts = [(part, part.skeleton()) for part in parts_of(folder)]
    names = [part.prefix + name for part, model in parts for name, _ in anatomy.weighted(model)]
    for pattern in options.skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"--skip {pattern!r} matches no linear and no embedding",
                hint="`ternarize inspect MODEL` lists their names; quote the pattern",
            )
    found = []
    for part, model in parts:
        with part.open_source(model, allow_pickle=options.allow_pickle) as shards:
            checkpoint.check_tensors(model, shards)
            tensors = source_tensors(model, shards)
        dense = options.keep_dense and part.subfolder
        skip = {"*": "--keep-dense"} if dense else {pattern: f"--skip {pattern}" for pattern in options.skip}
        present = {tensor.name for tensor in tensors if tensor.name is not None}
        one = SourcePart(part, model, policy_of_source(model, scheme, present, skip, part.prefix), tensors)
        for refused in (d for d in one.decisions.values() if d.fate == "refused"):
            raise InputError(
                f"{part.prefix}{refused.module}: {refused.reason}",
                hint="another group size, --granularity row, or --skip for this layer",
            )
        found.append(one)
    return found


def planned_parts(
    folder: Path, scheme: Scheme, options: ConvertOptions, calibration: Calibration | None, track: Track
) -> tuple[list[SourcePart], Vocabulary | None]:
    """Checks what `convert` is given, and decides over the tensors of the model as far as no calibration is needed.

    Returns:
        The parts of the model with the rows that a trimmed vocabulary leaves, and that vocabulary if it is trimmed.

    Raises:
        CheckpointError, DataError, InputError: as `check_source`, `Calibration.check`, `source_parts` and
            `vocabulary.select`.
    """
    check_source(folder, allow_pickle=options.allow_pickle)
    if calibration is not None:
        calibration.check(folder, scheme)
    parts = source_parts(folder, scheme, options)
    if calibration is None:
        _require_parameter(parts[0])
    if not options.trim:
        return parts, None
    if head_of(folder) == "fill-mask":
        raise InputError(
            f"{folder} has a head over its vocabulary, and each of its outputs stands for one token",
            hint="leave out --trim-vocabulary",
        )
    chosen = select(folder, parts[0].model, options.trim, allow_pickle=options.allow_pickle, track=track)
    return [parts[0].trimmed(chosen.tables, len(chosen.ids)), *parts[1:]], chosen


def _require_parameter(encoder: SourcePart) -> None:
    """Checks that a packed model keeps a parameter, by which transformers tells a model's device and dtype.

    Raises:
        InputError: nothing but linears and compressed tables is left, as in OLMo, whose norms have no weights.
    """
    stored = [d for d in encoder.decisions.values() if d.stored]
    if stored and all(d.fate in ("ternary", "table") for d in stored):
        raise InputError(
            "every tensor of this model would be packed, and transformers can't run a model without a parameter",
            hint=f"--skip one linear, such as --skip {[*encoder.policy.linears][-1]}; or --table-bits 16",
        )


def source_tensors(model: Any, shards: Sequence[weights.WeightShard]) -> tuple[SourceTensor, ...]:
    """Lists the tensors of files in the model's order; of a tensor with several names, one copy is stored.

    Raises:
        CheckpointError: a weight with two names has two values, or a tensor has a dtype that no artifact holds.
    """
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
