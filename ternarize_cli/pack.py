"""`pack`: a ternary checkpoint becomes a packed model.

Codes go into two bits, scales into float16, embedding tables into the scheme's width, other large tensors into float16;
names, small tensors and all companion files stay. Nothing is random: the same checkpoint gives the same bytes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ternarize_cli import checkpoint, files, packing, surgery, ternary, weights
from ternarize_cli.convert import HALF_ABOVE
from ternarize_cli.errors import CheckpointError, FormatError
from ternarize_cli.layers import SimulatedEmbedding, TernaryLinear, check_scale
from ternarize_cli.progress import Track, silent
from ternarize_cli.scheme import Artifact

__all__ = ["PackReport", "pack"]


@dataclass(frozen=True)
class PackReport:
    """What `pack` wrote.

    Attributes:
        artifact: the packed model's description.
        bytes_source: weights files of the checkpoint; bytes_packed: of the packed model.
        bytes_linears, bytes_tables, bytes_other: the packed bytes by kind (file headers not counted).
        zeros: fraction of codes that are 0, over all linears.
    """

    artifact: Artifact
    bytes_source: int
    bytes_packed: int
    bytes_linears: int
    bytes_tables: int
    bytes_other: int
    zeros: float


def pack(source: Path, output: Path, *, force: bool = False, track: Track = silent) -> PackReport:
    """Writes the packed model of the ternary checkpoint `source` to `output`, atomically.

    Raises:
        CheckpointError: `source` is full precision or packed already, or damaged.
        FormatError: a scale is not finite or negative, or does not fit float16.
        OutputError, OutputExistsError: the output can't be written.
    """
    files.check_output(output, force=force, inputs=[source])
    latent = checkpoint.validate(source)
    if latent is None:
        raise CheckpointError(f"{source} is not ternary yet", hint=f"ternarize convert {source}")
    if latent.stage != "latent":
        raise CheckpointError(f"{source} is packed already", hint=f"ternarize inspect {source}")
    model = checkpoint.skeleton(source)
    surgery.replace(model, latent)
    linears = {name for name, module in model.named_modules() if isinstance(module, TernaryLinear)}
    tables = {name for name, module in model.named_modules() if isinstance(module, SimulatedEmbedding)}
    artifact = replace(latent, stage="packed", codec="2bit")
    kinds = {"linear": 0, "table": 0, "other": 0}
    zero = total = 0
    with weights.open_shards(source) as shards, files.atomic_folder(output, force=force, inputs=[source]) as partial:
        checkpoint.check_tensors(model, shards, FormatError)
        keys = [key for shard in shards for key in shard.keys()]  # noqa: SIM118
        names = checkpoint.names_in_model(model, keys)
        by_key = {key: shard for shard in shards for key in shard.keys()}  # noqa: SIM118
        writer = weights.ShardWriter(partial)
        pending = iter(track(keys, "packing", len(keys)))
        for shard in shards:
            tensors: dict[str, Tensor] = {}
            for key in shard.keys():  # noqa: SIM118
                next(pending)
                module, _, leaf = names.get(key, key).rpartition(".")
                if leaf == "weight" and module in linears:
                    scale = by_key[f"{key}_scale"].get(f"{key}_scale")
                    new, codes = _packed_linear(key, shard.get(key), scale)
                    zero, total, kind = zero + int((codes == 0).sum()), total + codes.numel(), "linear"
                elif leaf == "weight_scale" and module in linears:
                    continue
                elif leaf == "weight" and module in tables:
                    new, kind = _packed_table(key, shard.get(key), latent.scheme.table_bits), "table"
                else:
                    kept = surgery.kept_by(module, latent)
                    new, kind = {key: _other(key, shard.get(key), keep=kept)}, "other"
                tensors |= new
                kinds[kind] += sum(t.numel() * t.element_size() for t in new.values())
            writer.write(shard.name, tensors)
        writer.finish()
        checkpoint.copy_companions(source, partial)
        checkpoint.write_config(source, partial, artifact)
    return PackReport(
        artifact=artifact,
        bytes_source=weights.bytes_on_disk(source),
        bytes_packed=writer.bytes,
        bytes_linears=kinds["linear"],
        bytes_tables=kinds["table"],
        bytes_other=kinds["other"],
        zeros=zero / max(total, 1),
    )


def _packed_linear(key: str, weight: Tensor, scale: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    if not torch.isfinite(weight).all():
        raise FormatError(f"{key}: a weight is not finite", hint="convert or distill again")
    check_scale(scale, f"{key}_scale")
    half = scale.half()
    check_scale(half, f"{key}_scale as float16")
    codes = ternary.codes_of(weight.float(), scale.float())
    return {key: packing.pack_2bit(codes), f"{key}_scale": half}, codes


def _packed_table(key: str, table: Tensor, bits: int) -> dict[str, Tensor]:
    if not torch.isfinite(table).all():
        raise FormatError(f"{key}: a value is not finite", hint="convert or distill again")
    if bits == 32:
        return {key: table.float()}
    if bits == 16:
        half = table.half()
        _check_finite(half, key)
        return {key: half}
    q, scale = ternary.quantize_rows(table)
    check_scale(scale, f"{key}_scale as float16")
    return {key: q.to(torch.int8), f"{key}_scale": scale}


def _other(key: str, tensor: Tensor, *, keep: bool) -> Tensor:
    if keep or not tensor.is_floating_point() or tensor.numel() <= HALF_ABOVE:
        return tensor
    half = tensor.half()
    _check_finite(half, key)
    return half


def _check_finite(tensor: Tensor, key: str) -> None:
    """Raises FormatError if a float16 tensor overflowed or its source was not finite."""
    if not torch.isfinite(tensor).all():
        raise FormatError(f"{key}: a value is not finite or does not fit float16", hint="--table-bits 32 or --skip")
