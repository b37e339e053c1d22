"""Makes a ternary checkpoint of a model that others have quantised, in a temporary folder, from which `pack` goes on.

Nothing is rounded that was not rounded before: a latent weight is code × scale, whose code `pack` finds again, and
everything else stays as it is. A packed model holds the result if

- the codes of all linears are on one grid of ours (`scheme.LEVELS`),
- scales, and large tensors that are neither linear nor table, are float16's values: bfloat16's nearly always are, those
  of float32 seldom. Others are rounded only if the user says so.

Scales may be fewer than ours need: one is repeated for the rows of a matrix, or for smaller groups. Tables keep 16 bits
if float16 holds their values, and 32 otherwise. Linears that the file holds in floating point, and codes of modules
that ternarize leaves alone, stay dense.
"""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli import __version__
from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress.imports.bitnet import read_bitnet
from ternarize_cli.compress.imports.coded import CodedModel, Tensors, refused
from ternarize_cli.compress.imports.compressed_tensors import read_compressed_tensors
from ternarize_cli.compress.imports.torchao import read_torchao
from ternarize_cli.compress.options import METHODS, ImportOptions
from ternarize_cli.compress.source_model import SourcePart, source_tensors
from ternarize_cli.compress.tensor_policy import policy_of_source
from ternarize_cli.encoders import anatomy, blocks, checkpoint, defaults, hub
from ternarize_cli.encoders.loading import model_name
from ternarize_cli.encoders.parts import Part, parts_of
from ternarize_cli.errors import CheckpointError, named
from ternarize_cli.format.scheme import LEVELS, Artifact, Scheme
from ternarize_cli.model_folder.integrity import note_once
from ternarize_cli.progress import Track
from ternarize_cli.storage import digests, weights
from ternarize_cli.storage.views import new_view
from ternarize_cli.storage.weights import WeightShard

__all__ = ["as_ternary_checkpoint", "method_of"]

_MOST_ROUNDED = 2.0**-10
"""The most by which a value may change when it is rounded to float16, relative to it: more is an underflow."""
_ROUND = "--round rounds it to float16"


def method_of(folder: Path) -> str | None:
    """Returns the method in a folder's config.json if it is one of METHODS, otherwise None.

    Raises:
        CheckpointError: config.json is missing or damaged.
    """
    described = checkpoint.read_config(folder).get("quantization_config")
    method = described.get("quant_method") if isinstance(described, dict) else None
    return method if method in METHODS else None


@contextmanager
def as_ternary_checkpoint(source: Path, options: ImportOptions, track: Track) -> Iterator[Path]:
    """Yields a temporary folder with the ternary checkpoint of a model that others have quantised.

    Args:
        source: the model's folder, whose method is one of METHODS.
        options: what may be changed.
        track: reports progress over tensors.

    Raises:
        CheckpointError: a file is missing, damaged, or not what its description says, or a packed model can't hold it.
    """
    checkpoint.validate(source)
    part = parts_of(source)[0]
    folder = new_view(source)
    try:
        with weights.open_shards(source) as shards:
            _write(part, shards, folder, options, track)
        yield folder
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def _write(part: Part, shards: Sequence[WeightShard], folder: Path, options: ImportOptions, track: Track) -> None:
    source, model = part.folder, part.skeleton()
    tensors = Tensors(shards)
    coded = _read(source, model, shards, tensors)
    views = checkpoint.split_fused(model, [_view(shard, coded) for shard in shards])
    _require_whole(coded, views)
    checkpoint.check_tensors(model, views)
    one, matrices = _decided(part, model, views, coded)
    scheme, scales = _scheme(coded, matrices, options.round, track)
    by_key = {key: view for view in views for key in view.keys()}  # noqa: SIM118
    scheme = replace(
        scheme,
        activation_bits=options.activations or coded.activation_bits,
        table_bits=_table_bits(one, by_key),
    )
    if scheme.activation_bits == 16:
        note_once("activations are left as they are, as in the source; --activations 8 runs on faster kernels")
    one = replace(one, policy=replace(one.policy, scheme=scheme))
    checkpoint.copy_companions(source, folder)
    defaults.complete(source, folder)
    origin = hub.origin_of(source)
    made = Artifact(
        stage="latent",
        scheme=scheme,
        tool_version=__version__,
        source=origin.name if origin else model_name(source),
        source_revision=(origin and origin.revision) or "",
        source_sha256=digests.content_hash(source),
        block=blocks.blocks_of(anatomy.encoder_in(model)),
    )
    writer = weights.ShardWriter(folder)
    for view in views:
        with writer.shard(view.name) as out:
            for d in one.decisions.values():
                if d.stored is None or d.file != view.name:
                    continue
                if d.fate == "ternary":
                    codes, _ = coded.matrices[d.key].read()
                    out.add(d.stored, ternary.dequantize(codes, scales[d.key]))
                    out.add(f"{d.stored}_scale", _laid(scales[d.key], scheme, *d.matrix))
                else:
                    tensor = view.get(d.key)
                    if d.fate == "half":
                        tensor = _half(d.key, tensor, options.round)
                    out.add(d.stored, tensor.float() if d.fate in ("half", "table") else tensor)
    writer.finish()
    part.write_config(folder, one.describe(made))


def _read(source: Path, model: Any, shards: Sequence[WeightShard], tensors: Tensors) -> CodedModel:
    described: Mapping[str, Any] = checkpoint.read_config(source)["quantization_config"]
    readers: dict[str, Callable[[], CodedModel]] = {
        "bitnet": partial(read_bitnet, described, model, tensors),
        "compressed-tensors": partial(read_compressed_tensors, described, tensors),
        "torchao": partial(read_torchao, shards, tensors),
    }
    coded = readers[described["quant_method"]]()
    if not coded.matrices:
        raise CheckpointError(f"{source} holds no weights in codes", hint="ternarize inspect lists its tensors")
    return coded


def _view(shard: WeightShard, coded: CodedModel) -> WeightShard:
    """Shows a shard as if its matrices of codes were multiplied out."""
    own = set(shard.keys())
    used = {key for matrix in coded.matrices.values() for key in matrix.keys}
    headers = {key: (shard.shape(key), shard.dtype(key)) for key in own - used}
    here = {key: matrix for key, matrix in coded.matrices.items() if matrix.keys[0] in own}
    headers |= {key: (matrix.shape, "F32") for key, matrix in here.items()}

    def read(key: str) -> Tensor:
        return ternary.dequantize(*here[key].read()) if key in here else shard.get(key)

    return WeightShard(shard.name, shard.path, headers, read)


def _require_whole(coded: CodedModel, views: Sequence[WeightShard]) -> None:
    left = {key for view in views for key in view.keys()}  # noqa: SIM118
    for key in coded.matrices:
        if key not in left:
            raise refused(f"{named(key)} is several weights of the model in one", "their scales can't be told apart")


def _decided(
    part: Part, model: Any, views: Sequence[WeightShard], coded: CodedModel
) -> tuple[SourcePart, dict[str, tuple[int, int]]]:
    """Decides over the tensors of the model; also gives the shapes of the matrices that become ternary, by key.

    Raises:
        CheckpointError: no linear of the model is in codes.
    """
    found = source_tensors(model, views)
    names = {tensor.key: str(tensor.name) for tensor in found if tensor.name is not None}
    owners = {names[key].removesuffix(".weight") for key in coded.matrices if key in names}
    skip = {
        name: "in floating point in the source"
        for name, module in anatomy.weighted(model)
        if not isinstance(module, nn.Embedding) and not (isinstance(module, nn.Linear) and name in owners)
    }
    policy = policy_of_source(model, Scheme(), {t.name for t in found if t.name is not None}, skip)
    one = SourcePart(part, model, policy, found)
    return one, {d.key: d.matrix for d in one.decisions.values() if d.fate == "ternary"}


def _scheme(
    coded: CodedModel, matrices: Mapping[str, tuple[int, int]], rounds: bool, track: Track
) -> tuple[Scheme, dict[str, Tensor]]:
    """Finds the grid and the granularity that hold all matrices; also gives their scales in float16's values.

    Raises:
        CheckpointError: no grid of ours holds the codes, or a scale is not float16's and `rounds` is false.
    """
    scales: dict[str, Tensor] = {}
    used: set[int] = set()
    for key in track(matrices, "reading", len(matrices)):
        codes, scale = coded.matrices[key].read()
        scales[key] = _half(f"the scale of {key}", scale, rounds)
        used |= set(codes.unique().tolist())
    levels = next((name for name in ("binary", "ternary", "int2", "int4") if used <= set(LEVELS[name])), None)
    if levels is None:
        raise refused(
            f"codes go from {min(used)} to {max(used)} about their zero point", "a packed model has codes from -8 to 7"
        )
    counts = {key: coded.matrices[key].scales for key in matrices}
    if not any(counts.values()):
        granularity, size = "tensor", None
    elif max(counts.values()) == 1:
        granularity, size = "row", None
    else:
        granularity, size = "group", math.gcd(*(matrices[key][1] // (count or 1) for key, count in counts.items()))
    absmean = coded.rule == "absmean" and levels == "ternary"
    rule, beta = (coded.rule, coded.beta) if absmean else ("optimal", None)
    return Scheme(rule=rule, beta=beta, granularity=granularity, group_size=size, levels=levels), scales


def _laid(scale: Tensor, scheme: Scheme, rows: int, columns: int) -> Tensor:
    """Repeats the scales of a matrix as the scheme's granularity needs them."""
    shape = ternary.scale_shape(rows, columns, scheme.granularity, scheme.group_size)
    if len(shape) == 1:
        return scale
    wide = scale.reshape(1, 1) if scale.dim() == 1 else scale
    return wide.repeat_interleave(shape[1] // wide.shape[1], dim=1).expand(shape).contiguous()


def _table_bits(one: SourcePart, by_key: Mapping[str, WeightShard]) -> int:
    tables = (by_key[d.key].get(d.key) for d in one.decisions.values() if d.fate == "table" and d.stored)
    return 16 if all(torch.equal(table.half().float(), table.float()) for table in tables) else 32


def _half(name: str, tensor: Tensor, rounds: bool) -> Tensor:
    """Takes a tensor to float16's values, in float32.

    Raises:
        CheckpointError: a value is not finite, does not fit float16, or would be rounded and `rounds` is false.
    """
    exact = tensor.float()
    half = exact.half().float()
    if not torch.isfinite(exact).all():
        raise CheckpointError(f"{named(name)}: a value is not finite", hint="fetch the model again")
    away = (half - exact).abs()
    if rounds and bool((away <= _MOST_ROUNDED * exact.abs()).all()):
        return half
    if away.any():
        value = float(exact.flatten()[away.flatten().argmax()])
        held = math.isfinite(float(half.abs().max())) and not rounds
        raise CheckpointError(
            f"{name}: {value!r} is no number of float16, and a packed model holds it in float16",
            hint=_ROUND if held else "convert its full-precision source instead",
        )
    return exact
