"""`convert --dry-run`: what a conversion would do, told from the headers of the source's files. Nothing is written.

Sizes are exact, to the byte of the weights files that `convert` and then `pack` write: both follow the same decisions
over tensors (`tensor_policy`), and `weights.file_bytes` adds safetensors' header. Tensors' data is not read, but for
pickles, and for tensors stored twice, which must be equal.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ternarize_cli.compress.calibrate import Calibration
from ternarize_cli.compress.mixed_levels import with_levels
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.source_model import ConversionPlan, SourcePart, planned_parts
from ternarize_cli.compress.tensor_policy import Headers, TensorDecision
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import CODECS, TABLE_BITS, Scheme
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import weights

__all__ = ["DryRun", "Group", "dry_run"]


@dataclass(frozen=True)
class Group:
    """Linears of one shape, or one embedding table.

    Attributes:
        name: the name of a table; of linears the ends of their names, such as "self.query, self.key, output.dense".
        count: how many there are.
        shape: the shape of each: (out, in) or (rows, dim).
        bytes_before: bytes of all of them in the source.
        bytes_packed: bytes of the codes or rows of all of them, with scales, in the scheme's widths.
    """

    name: str
    count: int
    shape: tuple[int, int]
    bytes_before: int
    bytes_packed: int


@dataclass(frozen=True)
class DryRun:
    """What `convert` would do.

    Attributes:
        linears: the linears that would become ternary, grouped by shape, the largest group first.
        tables: the embeddings that would be compressed, each a group of its own.
        plan: what would become of every tensor, with the reason; `convert` reports it when it is done.
        bytes_source: bytes of the source's weights files.
        bytes_checkpoint: bytes of the weights files that `convert` would write.
        bytes_packed: codec → table bits → bytes of the weights files that `pack` would write.
        codec: the default codec for the scheme's levels.
        module_levels: the grids of linears that have another one than the scheme's.
        bits: the mean bits of a weight of the linears when packed with the default codecs, scales included.
    """

    linears: tuple[Group, ...]
    tables: tuple[Group, ...]
    plan: ConversionPlan
    bytes_source: int
    bytes_checkpoint: int
    bytes_packed: dict[str, dict[int, int]]
    codec: str
    module_levels: dict[str, str]
    bits: float


def dry_run(
    folder: Path,
    scheme: Scheme | None = None,
    options: ConvertOptions | None = None,
    *,
    calibration: Calibration | None = None,
    track: Track = silent,
) -> DryRun:
    """Plans the conversion of `folder`; the arguments are those of `convert.convert`.

    A calibration's data is taken to reach every linear. It is not read, unless there is a budget of bits: then the need
    of linears is measured as `convert` measures it.

    Raises:
        CheckpointError, DataError, InputError: `convert` would raise it, too, and it shows without the tensors' values.
    """
    scheme, options = scheme or Scheme(), options or ConvertOptions()
    parts, _ = planned_parts(folder, scheme, options, calibration, track)
    parts, _ = with_levels(folder, parts, scheme, options, calibration, track)
    if calibration is not None:
        parts = [one.calibrated(one.policy.linears) for one in parts]
    plan = ConversionPlan.of(parts)
    linears = plan.having("ternary")

    def packed(codec: str, bits: int) -> int:
        wanted = replace(scheme, table_bits=bits)
        policies = (replace(one.policy, scheme=wanted, codec=codec) for one in parts)
        return sum(_bytes(replace(one, policy=p), "packed") for one, p in zip(parts, policies, strict=True))

    return DryRun(
        linears=_linears(plan),
        tables=tuple(_group(d.module, [d]) for d in plan.having("table")),
        plan=plan,
        bytes_source=sum(weights.bytes_on_disk(one.part.path, allow_pickle=options.allow_pickle) for one in parts),
        bytes_checkpoint=sum(_bytes(one, "checkpoint") for one in parts),
        bytes_packed={codec: {bits: packed(codec, bits) for bits in TABLE_BITS} for codec in CODECS[scheme.levels]},
        codec=codec_for(scheme.levels).name,
        module_levels={one.part.prefix + n: v for one in parts for n, v in one.policy.module_levels.items()},
        bits=8 * sum(d.bytes_packed for d in linears) / sum(math.prod(d.shape) for d in linears),
    )


def _bytes(part: SourcePart, stage: Literal["checkpoint", "packed"]) -> int:
    """Counts the bytes of the weights files of a part at a stage."""
    shards: dict[str, Headers] = {}
    for decision in part.decisions.values():
        shards.setdefault(decision.file, {}).update(getattr(decision, stage))
    return sum(weights.file_bytes(tensors) for tensors in shards.values())


def _linears(plan: ConversionPlan) -> tuple[Group, ...]:
    by_shape: dict[tuple[int, int], list[TensorDecision]] = {}
    for linear in plan.having("ternary"):
        by_shape.setdefault(linear.matrix, []).append(linear)
    groups = []
    for members in by_shape.values():
        ends = (".".join([part for part in d.module.split(".") if not part.isdecimal()][-2:]) for d in members)
        groups.append(_group(", ".join(dict.fromkeys(ends)), members))
    return tuple(sorted(groups, key=lambda group: -group.count * math.prod(group.shape)))


def _group(name: str, members: list[TensorDecision]) -> Group:
    before, packed = sum(d.bytes_source for d in members), sum(d.bytes_packed for d in members)
    return Group(name, len(members), members[0].matrix, before, packed)
