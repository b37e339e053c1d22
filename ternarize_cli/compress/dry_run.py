"""`convert --dry-run`: what a conversion would do, told from the headers of the source's files. Nothing is written.

Sizes are exact, to the byte of the weights files that `convert` and then `pack` write: the packed modules themselves
are built on the meta device, so the shapes of their buffers are the format's, and `weights.file_bytes` adds
safetensors' header. Tensors' data is not read, but for pickles, and for tensors stored twice, which must be equal.

The time is an estimate: the arithmetic is run on random matrices of the model's widths, on this machine, now, and
scaled to the model's size, and so is hashing. How fast a disk writes is not measured, because that would write.
"""

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ternarize_cli.arithmetic import tables, ternary
from ternarize_cli.compress import vocabulary
from ternarize_cli.compress.calibrate import Calibration, estimate
from ternarize_cli.compress.source_model import Source, check_source, sources_of
from ternarize_cli.encoders import module_replacement
from ternarize_cli.encoders.module_replacement import HALF_ABOVE
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import CODECS, TABLE_BITS, Artifact, Scheme
from ternarize_cli.layers import PackedEmbedding, PackedLinear, TernaryLinear
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import weights

__all__ = ["DryRun", "Group", "dry_run"]

_SAMPLE = 1 << 20  # weights in a measured matrix
_MEASURED = 4  # widths measured at most
_HASHED = 1 << 24
_Tensors = dict[str, tuple[torch.dtype, tuple[int, ...]]]


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
        kept: linears and embeddings that stay, with the reason; others: what else stays, with what becomes of it.
        dropped: tensors of the source that the encoder has no place for.
        bytes_source: of the source's weights files; bytes_checkpoint: of those that `convert` would write.
        bytes_packed: codec → table bits → bytes of the weights files that `pack` would write.
        codec: the default one for the scheme's levels.
        seconds: step → estimate for this machine, without the disk's share: "ternarise", "hash", "calibrate". The last
            is absent if there is none, or if it can't be told how many tokens an image has.
    """

    linears: tuple[Group, ...]
    tables: tuple[Group, ...]
    kept: dict[str, str]
    others: dict[str, str]
    dropped: tuple[str, ...]
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
    sources = sources_of(folder, scheme, skip, keep_dense=keep_dense, allow_pickle=allow_pickle)
    chosen = vocabulary.select(folder, sources[0].model, trim, allow_pickle=allow_pickle, track=track) if trim else None
    codec = codec_for(scheme.levels).name
    latent = Artifact(stage="latent", scheme=scheme)
    headers = [_headers(source, chosen, allow_pickle) for source in sources]

    def size(artifact: Artifact) -> int:
        stored = []
        for source, shards in zip(sources, headers, strict=True):
            biases = source.without_bias(source.plan.linears) if calibration is not None else ()
            stored.append(_stored(source, shards, replace(artifact, added_biases=biases)))
        return sum(weights.file_bytes(tensors) for part in stored for tensors in part)

    packed = replace(latent, stage="packed", codec=codec)
    sizes = {
        name: {bits: size(replace(packed, codec=name, scheme=replace(scheme, table_bits=bits))) for bits in TABLE_BITS}
        for name in CODECS[scheme.levels]
    }
    linears, embeddings = _groups(sources, headers, packed)
    bytes_source = sum(weights.bytes_on_disk(source.part.path, allow_pickle=allow_pickle) for source in sources)
    seconds = _seconds(bytes_source, linears, scheme)
    if calibration is not None:
        shapes = [(group.count, group.shape) for group in linears]
        estimated = estimate.seconds(folder, kind, calibration, shapes)
        seconds |= {"calibrate": estimated} if estimated is not None else {}
    return DryRun(
        linears=linears,
        tables=embeddings,
        kept={source.part.prefix + name: why for source in sources for name, why in source.plan.kept.items()},
        others=sources[0].plan.others,
        dropped=tuple(source.part.prefix + key for source in sources for key in source.dropped),
        bytes_source=bytes_source,
        bytes_checkpoint=size(latent),
        bytes_packed=sizes,
        codec=codec,
        seconds=seconds,
    )


def _headers(source: Source, chosen: vocabulary.Vocabulary | None, allow_pickle: bool) -> list[_Tensors]:
    """For each shard: names in the model of the tensors that will be stored, their dtypes, and shapes once trimmed."""
    found = []
    with source.part.open_source(source.model, allow_pickle=allow_pickle) as shards:
        for shard in shards:
            tensors: _Tensors = {}
            for key in shard.keys():  # noqa: SIM118
                if key in source.keys:
                    name, shape = source.keys[key][1], shard.shape(key)
                    if chosen is not None and not source.part.subfolder and name in chosen.tables:
                        shape = (len(chosen.ids), *shape[1:])
                    tensors[name] = weights.DTYPES[shard.dtype(key)], shape
            found.append(tensors)
    return found


def _stored(source: Source, shards: list[_Tensors], artifact: Artifact) -> list[_Tensors]:
    """For each shard: the tensors of its twin in a ternary checkpoint or packed model, under their keys."""
    model = source.part.skeleton()
    module_replacement.replace(model, replace(artifact, modules_to_not_convert=tuple(source.plan.kept)))
    modules = dict(model.named_modules())
    keys = {name: key for key, name in source.keys.values()}
    twins = []
    for shard in shards:
        twin: _Tensors = {}
        for name, (dtype, shape) in shard.items():
            module, _, leaf = name.rpartition(".")
            new = _replaced(modules[module], shape) if leaf == "weight" else {}
            if not new:
                large = dtype.is_floating_point and math.prod(shape) > HALF_ABOVE and module not in source.plan.kept
                half = torch.float16 if artifact.stage == "packed" else torch.float32
                if leaf == "weight" and module in source.plan.tables:
                    half = torch.float32 if artifact.scheme.table_bits == 32 else half
                    large = True
                new = {"": (half if large else dtype, shape)}
            twin |= {keys[name] + suffix: stored for suffix, stored in new.items()}
            if leaf == "weight" and module in artifact.added_biases:
                twin[f"{keys[name].removesuffix('weight')}bias"] = torch.float32, (modules[module].out_features,)
        twins.append(twin)
    return twins


def _replaced(module: torch.nn.Module, shape: tuple[int, ...]) -> _Tensors:
    """What stands for the weight of a module that was replaced, by suffix of its key; empty for any other module.

    `shape` is that of the weight in the source, whose rows may have been trimmed.
    """
    if isinstance(module, PackedLinear):
        scales = tuple(module.weight_scale.shape)
        return {"": (torch.uint8, tuple(module.weight.shape)), "_scale": (torch.float16, scales)}
    if isinstance(module, PackedEmbedding):
        packed, kind, scales = tables.stored_shapes(shape[0], module.embedding_dim, module.table_bits)
        return {"": (kind, packed), "_scale": (torch.float16, scales)}
    if isinstance(module, TernaryLinear):
        return {"": (torch.float32, shape), "_scale": (torch.float32, tuple(module.weight_scale.shape))}
    return {}


def _groups(
    sources: Sequence[Source], headers: Sequence[list[_Tensors]], artifact: Artifact
) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
    """Linears by shape, and tables."""
    linears: dict[tuple[int, int], Group] = {}
    embeddings: list[Group] = []
    for source, shards in zip(sources, headers, strict=True):
        before = {name: _bytes(value) for shard in shards for name, value in shard.items()}
        shapes = {name: shape for shard in shards for name, (_, shape) in shard.items()}
        stored = {key: value for shard in _stored(source, shards, artifact) for key, value in shard.items()}
        keys = {name: key for key, name in source.keys.values()}
        for module in (*source.plan.linears, *source.plan.tables):
            name = f"{module}.weight"
            rows, columns = shapes[name]
            if module in source.plan.transposed:
                rows, columns = columns, rows
            packed = sum(_bytes(stored[k]) for k in (keys[name], f"{keys[name]}_scale") if k in stored)
            one = Group(source.part.prefix + module, 1, (rows, columns), before[name], packed)
            if module in source.plan.tables:
                embeddings.append(one)
            else:
                kind = ".".join([part for part in one.name.split(".") if not part.isdecimal()][-2:])
                group = linears.get(one.shape, Group("", 0, one.shape, 0, 0))
                kinds = dict.fromkeys([*filter(None, group.name.split(", ")), kind])
                linears[one.shape] = Group(
                    ", ".join(kinds),
                    group.count + 1,
                    one.shape,
                    group.bytes_before + one.bytes_before,
                    group.bytes_packed + one.bytes_packed,
                )
    ordered = sorted(linears.values(), key=lambda group: -group.count * math.prod(group.shape))
    return tuple(ordered), tuple(embeddings)


def _bytes(tensor: tuple[torch.dtype, tuple[int, ...]]) -> int:
    return tensor[0].itemsize * math.prod(tensor[1])


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
