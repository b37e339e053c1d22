"""`pack`: a ternary checkpoint becomes a packed model.

Codes go into the bits of a codec, scales into float16, embedding tables into the scheme's width, other large tensors
into float16; names, small tensors and all companion files stay. Nothing is random: the same checkpoint gives the same
bytes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ternarize_cli.arithmetic import packing, tables, ternary
from ternarize_cli.compress import card
from ternarize_cli.compress.imports.ternary_checkpoint import as_ternary_checkpoint, method_of
from ternarize_cli.compress.options import ImportOptions
from ternarize_cli.compress.result_check import Reference
from ternarize_cli.compress.tensor_policy import SourceTensor, policy_of_artifact
from ternarize_cli.compress.tokenizer_check import settle_tokenizer
from ternarize_cli.encoders import blocks, checkpoint, module_replacement
from ternarize_cli.encoders.anatomy import first_names, names_in_encoder, sizes, weighted
from ternarize_cli.encoders.parts import Part, parts_of
from ternarize_cli.errors import CheckpointError, FormatError, InputError, quoted
from ternarize_cli.format.codecs import Codec, codec_for
from ternarize_cli.format.listing import ListedModule, Listing
from ternarize_cli.format.scheme import Artifact
from ternarize_cli.layers import check_scale
from ternarize_cli.model_folder import integrity
from ternarize_cli.progress import Track, silent
from ternarize_cli.runtime.packed_file import TensorNames
from ternarize_cli.storage import files, weights
from ternarize_cli.storage.bounds import read_json
from ternarize_cli.storage.digests import json_digest, sha256

__all__ = ["PackReport", "pack"]


@dataclass(frozen=True)
class PackReport:
    """What `pack` wrote.

    Attributes:
        artifact: the packed model's description.
        bytes_source: bytes of the checkpoint's weights files.
        bytes_packed: bytes of the packed model's weights files.
        bytes_linears: bytes of the codes and scales of all linears.
        bytes_tables: bytes of the rows and scales of all compressed embeddings.
        bytes_other: bytes of all other tensors in the packed model.
        source_linears, source_tables, source_other: bytes of the same tensors in the checkpoint, without its scales.
        zeros: fraction of codes that are 0, over all linears.
    """

    artifact: Artifact
    bytes_source: int
    bytes_packed: int
    bytes_linears: int
    bytes_tables: int
    bytes_other: int
    source_linears: int
    source_tables: int
    source_other: int
    zeros: float


def pack(
    source: Path,
    output: Path,
    *,
    codec: str | None = None,
    check: bool = True,
    force: bool = False,
    imported: ImportOptions | None = None,
    track: Track = silent,
) -> PackReport:
    """Writes the packed model of the ternary checkpoint `source` to `output`, atomically.

    Args:
        source: a ternary checkpoint, or a model that others have quantised by a method in `options.METHODS`.
        output: the folder to write.
        codec: how codes lie in bytes, one of `scheme.CODECS` for the checkpoint's levels; the first of these if None.
        check: open the checkpoint and the packed model, and compare a few vectors before the output gets its name.
        force: replace an existing output.
        imported: how a model of others is taken over; may only be given for one.
        track: reports progress over tensors.

    Raises:
        InputError: the codec does not hold the checkpoint's levels, or `imported` is given for a model of ours.
        CheckpointError: `source` is full precision or packed already, damaged, or pickled, or a model of others that a
            packed model can't hold.
        FormatError: a weight or scale is not finite, a scale is negative, a scale or a large tensor does not fit
            float16, or the group size does not divide the width of a linear.
        TernarizeError: the packed model can't be opened, or gives other vectors than the checkpoint.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
    """
    files.check_output(output, force=force, inputs=[source])
    latent = checkpoint.artifact_of(source)
    method = method_of(source)
    if method is not None:
        with as_ternary_checkpoint(source, imported or ImportOptions(), track) as made_of:
            report = pack(made_of, output, codec=codec, check=check, force=force, track=track)
        return replace(report, bytes_source=weights.bytes_on_disk(source))
    if imported is not None:
        raise InputError(
            f"{source} was not quantised by others, and {imported.first_flag} is for such models",
            hint=f"without {imported.first_flag}",
        )
    if latent is None:
        raise CheckpointError(f"{source} is not ternary yet", hint=f"ternarize convert {quoted(source)}")
    if latent.stage != "latent":
        raise CheckpointError(f"{source} is packed already", hint=f"ternarize inspect {quoted(source)}")
    checkpoint.validate(source)
    layout = codec_for(latent.scheme.levels, codec)
    parts = parts_of(source)
    described = latent.block or blocks.blocks_of(parts[0].encoder())
    artifact = replace(latent, stage="packed", codec=layout.name, block=described)
    totals: Counter[str] = Counter()
    reference = Reference.of(source) if check else None
    with files.atomic_folder(output, force=force, inputs=[source]) as partial:
        checkpoint.copy_companions(source, partial)
        for part in parts:
            known = part.artifact()
            if known is not None:
                counts, names, listed = _pack_part(part, known, layout, partial, track)
                totals += counts
                made = replace(known, stage="packed", codec=layout.name, block=described)
                if part.subfolder:
                    part.write_config(partial, made)
                    continue
                artifact = replace(made, names=names)
                part.write_config(partial, artifact)
                artifact = replace(artifact, listing=_listing(partial, *listed))
                part.write_config(partial, artifact)
                if reason := settle_tokenizer(partial):
                    artifact = replace(artifact, torch_only=reason)
                    part.write_config(partial, artifact)
        report = PackReport(
            artifact=artifact,
            bytes_source=totals["source"],
            bytes_packed=totals["packed"],
            bytes_linears=totals["ternary"],
            bytes_tables=totals["table"],
            bytes_other=totals["kept"] + totals["half"],
            source_linears=totals["ternary before"],
            source_tables=totals["table before"],
            source_other=totals["kept before"] + totals["half before"],
            zeros=totals["zeros"] / max(totals["codes"], 1),
        )
        card.write(partial, "pack", _described(report))
        integrity.seal(partial)
        if reference is not None:
            reference.check(partial, packed=True)
    return report


def _described(report: PackReport) -> str:
    """Writes the numbers of a packed model for its card."""
    bits = report.artifact.scheme.table_bits
    codecs = f"{report.artifact.codec}{', int4 ones 4bit' if report.artifact.module_levels else ''}"
    rows = [
        (f"linears: codes ({codecs}) and scales", report.source_linears, report.bytes_linears),
        (f"embedding tables, {bits} bits", report.source_tables, report.bytes_tables),
        ("everything else", report.source_other, report.bytes_other),
    ]
    before, after = sum(old for _, old, _ in rows), sum(new for _, _, new in rows)
    return "\n".join(
        [
            "| weights | checkpoint, bytes | packed, bytes | smaller |",
            "|---|---:|---:|---:|",
            *(f"| {part} | {old:,} | {new:,} | {_times(old, new)} |" for part, old, new in rows),
            f"| **all** | **{before:,}** | **{after:,}** | **{_times(before, after)}** |",
            "",
            f"{report.zeros:.1%} of the codes are 0.",
        ]
    )


def _times(before: int, after: int) -> str:
    return f"{before / after:.1f}×" if after else ""


def _pack_part(
    part: Part, latent: Artifact, layout: Codec, output: Path, track: Track
) -> tuple[Counter[str], dict[str, str], tuple[str, list[ListedModule]]]:
    """Packs the encoder or a Dense module.

    Returns:
        Bytes by fate, those of the weights files before ("source") and after ("packed"), and the numbers of "codes" and
        of "zeros" among them; the names of tensors in the files that the description has to give (`_names`); and the
        name of the model's class with its linears and tables.
    """
    model = part.skeleton()
    policy = policy_of_artifact(model, replace(latent, codec=layout.name))
    first, listed = first_names(model), _listed(model)
    module_replacement.replace(model, latent)
    totals: Counter[str] = Counter()
    written: dict[str, str] = {}
    with weights.open_shards(part.path) as shards:
        checkpoint.check_tensors(model, shards, FormatError)
        by_key = {key: shard for shard in shards for key in shard.keys()}  # noqa: SIM118
        names = checkpoint.names_in_model(model, by_key)
        writer = weights.ShardWriter(output / part.subfolder)
        pending = iter(track(by_key, f"packing {part.subfolder}".strip(), len(by_key)))
        for shard in shards:
            with writer.shard(shard.name) as out:
                for key in shard.keys():  # noqa: SIM118
                    next(pending)
                    name = names.get(key, key)
                    if name.endswith(".weight_scale") and name.removesuffix(".weight_scale") in policy.linears:
                        continue
                    tensor = shard.get(key)
                    own = SourceTensor(key, name, key, shard.name, tensor.dtype, tuple(tensor.shape))
                    decision = policy.decide(own)
                    if decision.fate == "ternary":
                        scale = by_key[f"{key}_scale"].get(f"{key}_scale")
                        matrix = tensor.T if decision.transposed else tensor
                        new, codes = _packed_linear(key, matrix, scale, policy.codec_of(decision.module))
                        totals["zeros"] += int((codes == 0).sum())
                        totals["codes"] += codes.numel()
                    elif decision.fate == "table":
                        new = _packed_table(key, tensor, policy.table_bits(decision.module))
                    else:
                        new = {key: _half(key, tensor) if decision.fate == "half" else tensor}
                    for stored, value in new.items():
                        out.add(stored, value)
                        written[stored] = name + stored.removeprefix(key)
                    totals[decision.fate] += sum(t.numel() * t.element_size() for t in new.values())
                    totals[f"{decision.fate} before"] += tensor.numel() * tensor.element_size()
        writer.finish()
    totals["packed"] = writer.bytes
    totals["source"] = weights.bytes_on_disk(part.path)
    present = set(written.values())
    listed = [module for module in listed if f"{module.name}.weight" in present]
    return totals, _names(model, {**first_names(model), **first}, written), (type(model).__name__, listed)


def _listing(folder: Path, architecture: str, modules: list[ListedModule]) -> Listing | None:
    """Makes the listing of a model whose weights are in one file; None if they are in several."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    config = read_json(folder / "config.json")
    del config["quantization_config"]
    return Listing(architecture, tuple(modules), json_digest(config), sha256(path))


def _listed(model: nn.Module) -> list[ListedModule]:
    """Lists the linears and tables of a model, in its order."""
    return [
        ListedModule(name, "table", module.num_embeddings, module.embedding_dim)
        if isinstance(module, nn.Embedding)
        else ListedModule(name, "linear", *sizes(module))
        for name, module in weighted(model)
    ]


def _names(model: nn.Module, first: Mapping[str, str], written: Mapping[str, str]) -> dict[str, str]:
    """Lists the tensors that the runtime would not find in the files by their names in the encoder, or in the head.

    Args:
        model: the packed model's skeleton.
        first: for each tensor of the model the first name of that tensor (`anatomy.first_names`).
        written: for each tensor in the files its name in the model.

    Returns:
        The name in the files for each of these tensors.
    """
    rule = TensorNames(written, "the packed model")
    stored = {first.get(name, name): key for key, name in written.items()}
    own = names_in_encoder(model)
    found = {}
    for name in first:
        module, _, tensor = name.rpartition(".")
        inside = f"{own[module]}.{tensor}".lstrip(".") if module in own else name
        for suffix in ("", "_scale") if tensor == "weight" else ("",):
            key = f"{stored.get(first[name])}{suffix}"
            if key in written and not _finds(rule, inside + suffix, key):
                found[inside + suffix] = key
    return found


def _finds(rule: TensorNames, name: str, key: str) -> bool:
    try:
        return rule.find(name) == key
    except FormatError:  # the names of several tensors end so
        return False


def _packed_linear(key: str, weight: Tensor, scale: Tensor, codec: Codec) -> tuple[dict[str, Tensor], Tensor]:
    if not torch.isfinite(weight).all():
        raise FormatError(f"{key}: a weight is not finite", hint="convert or distill again")
    check_scale(scale, f"{key}_scale")
    half = scale.half()
    check_scale(half, f"{key}_scale as float16")
    codes = ternary.codes_of(weight.float(), scale.float(), codec.levels)
    return {key: packing.pack(codec, codes), f"{key}_scale": half}, codes


def _packed_table(key: str, table: Tensor, bits: int) -> dict[str, Tensor]:
    if not weights.all_finite(table):
        raise FormatError(f"{key}: a value is not finite", hint="convert or distill again")
    if bits == 32:
        return {key: table.float()}
    if bits == 16:
        return {key: _half(key, table)}
    codes, scale = tables.quantize_table(table, bits)
    check_scale(scale, f"{key}_scale as float16")
    return {key: tables.pack_codes(codes, bits), f"{key}_scale": scale}


def _half(key: str, tensor: Tensor) -> Tensor:
    """Rounds to float16; raises FormatError if a value overflows or was not finite."""
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise FormatError(f"{key}: a value is not finite or does not fit float16", hint="--table-bits 32 or --skip")
    return half
