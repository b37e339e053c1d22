"""`convert --dry-run`: what a conversion would do, told from the headers of the source's files. Nothing is written.

Sizes are exact, to the byte of the weights files that `convert` and then `pack` write: both follow the same decisions
over tensors (`tensor_policy`), and `weights.file_bytes` adds safetensors' header. Tensors' data is not read, but for
pickles, and for tensors stored twice, which must be equal.

The time is an estimate: the arithmetic is run on random matrices of the model's widths, on this machine, now, and
scaled to the model's size, and so is hashing. How fast a disk writes is not measured, because that would write.
"""

import hashlib
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress import vocabulary
from ternarize_cli.compress.calibrate import Calibration, estimate
from ternarize_cli.compress.source_model import ConversionPlan, check_source, source_parts
from ternarize_cli.compress.tensor_policy import Headers, TensorDecision
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import CODECS, TABLE_BITS, Scheme
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import weights

__all__ = ["DryRun", "Group", "dry_run"]

_SAMPLE = 1 << 20  # weights in a measured matrix
_MEASURED = 4  # widths measured at most
_HASHED = 1 << 24


@dataclass(frozen=True)
class Group:
    """Linears of one shape, or one embedding table.

    Attributes:
        name: of a table; of linears: the ends of their names, such as "self.query, self.key, output.dense".
        count: members; shape: of each, (out, in) or (rows, dim).
        bytes_before: of all of them in the source; bytes_packed: codes or rows, with scales, in the scheme's widths.
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
        linears: grouped by shape, the largest group first.
        tables: one entry each.
        plan: what would become of every tensor, with the reason; `convert` reports it when it is done.
        bytes_source: of the source's weights files; bytes_checkpoint: of those that `convert` would write.
        bytes_packed: codec → table bits → bytes of the weights files that `pack` would write.
        codec: the default one for the scheme's levels.
        seconds: step → estimate for this machine, without the disk's share: "ternarise", "hash", "calibrate". The last
            is absent if there is none, or if it can't be told how many tokens an image has.
    """

    linears: tuple[Group, ...]
    tables: tuple[Group, ...]
    plan: ConversionPlan
    bytes_source: int
    bytes_checkpoint: int
    bytes_packed: dict[str, dict[int, int]]
    codec: str
    seconds: dict[str, float]


def dry_run(
    folder: Path,
    scheme: Scheme | None = None,
    *,
    skip: Sequence[str] = (),
    keep_dense: bool = False,
    trim: Sequence[str | Path] = (),
    calibration: Calibration | None = None,
    allow_pickle: bool = False,
    track: Track = silent,
) -> DryRun:
    """Plans the conversion of `folder`; the arguments are those of `convert.convert`.

    A calibration's data is not read: it is taken to reach every linear.

    Raises:
        CheckpointError, InputError, DataError: as `convert` would, as far as it shows without the tensors' values.
    """
    scheme = scheme or Scheme()
    check_source(folder, allow_pickle=allow_pickle)
    kind = calibration.check(folder, scheme) if calibration is not None else ""
    sources = source_parts(folder, scheme, skip, keep_dense=keep_dense, allow_pickle=allow_pickle)
    if trim:
        chosen = vocabulary.select(folder, sources[0].model, trim, allow_pickle=allow_pickle, track=track)
        sources[0] = sources[0].trimmed(chosen.tables, len(chosen.ids))
    if calibration is not None:
        sources = [one.with_biases(one.policy.linears) for one in sources]
    plan = ConversionPlan.of(sources)
    bytes_source = sum(weights.bytes_on_disk(one.part.path, allow_pickle=allow_pickle) for one in sources)
    linears = _groups(plan)
    seconds = _seconds(bytes_source, linears, scheme)
    if calibration is not None:
        shapes = [(group.count, group.shape) for group in linears]
        estimated = estimate.seconds(folder, kind, calibration, shapes)
        seconds |= {"calibrate": estimated} if estimated is not None else {}

    def packed(codec: str, bits: int) -> int:
        wanted = replace(scheme, table_bits=bits)
        policies = [replace(one.policy, scheme=wanted, codec=codec) for one in sources]
        pairs = zip(sources, policies, strict=True)
        return sum(_file_bytes([policy.decide(t) for t in one.tensors], "packed") for one, policy in pairs)

    return DryRun(
        linears=linears,
        tables=tuple(Group(d.module, 1, d.matrix, d.bytes_source, d.bytes_packed) for d in plan.tables),
        plan=plan,
        bytes_source=bytes_source,
        bytes_checkpoint=sum(_file_bytes(one.decisions.values(), "checkpoint") for one in sources),
        bytes_packed={codec: {bits: packed(codec, bits) for bits in TABLE_BITS} for codec in CODECS[scheme.levels]},
        codec=codec_for(scheme.levels).name,
        seconds=seconds,
    )


def _file_bytes(decisions: Iterable[TensorDecision], stage: Literal["checkpoint", "packed"]) -> int:
    """Bytes of the weights files that hold these tensors of one part at a stage."""
    shards: dict[str, Headers] = {}
    for decision in decisions:
        shards.setdefault(decision.file, {}).update(getattr(decision, stage))
    return sum(weights.file_bytes(tensors) for tensors in shards.values())


def _groups(plan: ConversionPlan) -> tuple[Group, ...]:
    """The linears by shape, the largest group first."""
    by_shape: dict[tuple[int, int], list[TensorDecision]] = {}
    for linear in plan.linears:
        by_shape.setdefault(linear.matrix, []).append(linear)
    groups = [
        Group(
            ", ".join(dict.fromkeys(_kind(d.module) for d in members)),
            len(members),
            shape,
            sum(d.bytes_source for d in members),
            sum(d.bytes_packed for d in members),
        )
        for shape, members in by_shape.items()
    ]
    return tuple(sorted(groups, key=lambda group: -group.count * math.prod(group.shape)))


def _kind(module: str) -> str:
    """The end of a module's name, without the numbers of layers."""
    return ".".join([part for part in module.split(".") if not part.isdecimal()][-2:])


def _seconds(bytes_source: int, linears: Sequence[Group], scheme: Scheme) -> dict[str, float]:
    """Step → estimate: of ternarising all linears, and of hashing the source."""
    _measure((8, linears[0].shape[1]), scheme)  # the first call of anything is slow
    done, spent, total = 0, 0.0, 0
    for i, group in enumerate(linears):
        rows, columns = group.shape
        total += group.count * rows * columns
        if i < _MEASURED:
            sample = min(rows, max(1, _SAMPLE // columns))
            spent += _measure((sample, columns), scheme) * group.count * rows / sample
            done += group.count * rows * columns
    data = bytes(_HASHED)
    start = time.perf_counter()
    hashlib.sha256(data).digest()
    hashing = (time.perf_counter() - start) * bytes_source / _HASHED
    return {"ternarise": spent * total / done, "hash": hashing}


def _measure(shape: tuple[int, int], scheme: Scheme) -> float:
    """Seconds that `convert` spends on a random matrix `[out, in]`."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    scale = ternary.scale_of(weight, scheme)
    codes = ternary.codes_of(weight, scale, scheme.levels)
    (weight - ternary.dequantize(codes, scale)).norm()
    return time.perf_counter() - start
