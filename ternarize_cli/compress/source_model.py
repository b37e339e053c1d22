"""The full-precision model that is converted: read, checked, and planned over, part by part."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ternarize_cli.compress.calibrate import Calibrated
from ternarize_cli.encoders import anatomy, checkpoint, module_replacement
from ternarize_cli.encoders.parts import Part, parts_of
from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.storage import weights

__all__ = ["Source", "check_source", "sources_of"]


def check_source(source: Path, *, allow_pickle: bool = False) -> None:
    """Refuses a folder that is no full-precision model.

    Raises:
        CheckpointError: it is incomplete, damaged, or quantised already.
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
class Source:
    """One part of a full-precision model, and what becomes of it.

    Attributes:
        part, model: where it lies, and its skeleton.
        plan: over its modules.
        keys: key in its files → key in the checkpoint and name in the model, for the tensors that are stored.
        dropped: keys that the model has no place for.
        calibrated: what calibration found, by the name of the linear.
    """

    part: Part
    model: Any
    plan: module_replacement.Plan
    keys: dict[str, tuple[str, str]]
    dropped: tuple[str, ...]
    calibrated: Mapping[str, Calibrated] = field(default_factory=dict)

    def with_calibrated(self, found: Mapping[str, Calibrated]) -> "Source":
        """This part, with what calibration found for its linears; `found` has the part's prefix before the names."""
        named = {name: self.part.prefix + name for name in self.plan.linears}
        return replace(self, calibrated={name: found[full] for name, full in named.items() if full in found})

    def check_finite(self, *, allow_pickle: bool = False) -> None:
        """Reads every tensor once.

        Raises:
            CheckpointError: a value is not finite.
        """
        with self.part.open_source(self.model, allow_pickle=allow_pickle) as shards:
            for shard in shards:
                for key in (key for key in shard.keys() if key in self.keys):  # noqa: SIM118
                    tensor = shard.get(key)
                    if tensor.is_floating_point() and not weights.all_finite(tensor):
                        raise CheckpointError(
                            f"{key}: a value is not finite", hint="the source is damaged; fetch it again"
                        )

    def describe(self, made: Artifact) -> Artifact:
        """The artifact of this part."""
        return replace(
            made, modules_to_not_convert=tuple(self.plan.kept), added_biases=self.without_bias(self.calibrated)
        )

    def without_bias(self, linears: Iterable[str]) -> tuple[str, ...]:
        """Those of the linears that have no bias, and get one when they are calibrated."""
        return tuple(name for name in linears if self.model.get_submodule(name).bias is None)


def sources_of(
    folder: Path, scheme: Scheme, skip: Sequence[str], *, keep_dense: bool, allow_pickle: bool
) -> list[Source]:
    """The parts of a full-precision folder, with a plan for each.

    Args:
        folder: the model; scheme: its granularity must fit every layer.
        skip: shell patterns of module names to leave as they are.
        keep_dense: leave Dense modules as they are.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.

    Raises:
        CheckpointError: a tensor is missing, misshapen, or stored twice and different.
        InputError: as `module_replacement.plan`.
    """
    parts = [(part, part.skeleton()) for part in parts_of(folder)]
    unknown = [p for p in skip if not any(module_replacement.matches(model, p, part.prefix) for part, model in parts)]
    found = []
    for part, model in parts:
        with part.open_source(model, allow_pickle=allow_pickle) as shards:
            checkpoint.check_tensors(model, shards)
            keys = [key for shard in shards for key in shard.keys()]  # noqa: SIM118
            names = checkpoint.names_in_model(model, keys)
            stored = _stored(model, names, shards)
        mine = [p for p in skip if module_replacement.matches(model, p, part.prefix)] + (
            [] if part.subfolder else unknown
        )
        if part.subfolder and keep_dense:
            reasons = {name: "--keep-dense" for name, _ in anatomy.weighted(model)}
            plan = module_replacement.Plan((), (), reasons)
        else:
            plan = module_replacement.plan(model, scheme, present=set(names.values()), skip=mine, prefix=part.prefix)
        found.append(Source(part, model, plan, stored, tuple(key for key in keys if key not in names)))
    return found


def _stored(model: Any, names: dict[str, str], shards: Sequence[weights.WeightShard]) -> dict[str, tuple[str, str]]:
    """The tensors to store, under which key and as what; of a tensor with several names one copy."""
    first = anatomy.first_names(model)
    chosen: dict[str, str] = {}
    for key, name in names.items():
        owner = first[name]
        if owner not in chosen or name == owner:
            chosen[owner] = key
    by_key = {key: shard for shard in shards for key in shard.keys()}  # noqa: SIM118
    for key, name in names.items():
        other = chosen[first[name]]
        if other != key and not torch.equal(by_key[key].get(key), by_key[other].get(other)):
            raise CheckpointError(
                f"{key} and {other} are one weight in the model that config.json describes, but differ here",
                hint='if they should differ: "tie_word_embeddings": false in config.json',
            )
    return {key: (key if names[key] == owner else owner, owner) for owner, key in chosen.items()}
