"""`convert`: a full-precision folder becomes a ternary checkpoint.

Tensors stream through, shard by shard: no model is built, so memory stays near one shard. The latent weights are the
source's own, beside the scales that the rule gives them; codes are not stored, they follow (see `ternary`). Every
tensor keeps its name. Tensors for which the encoder has no place (heads of a pre-training task) are dropped, and
tensors that the source lacks are never invented.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ternarize_cli import __version__, checkpoint, files, surgery, ternary, weights
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.models import model_name
from ternarize_cli.packing import packed_width
from ternarize_cli.progress import Track, silent
from ternarize_cli.scheme import Artifact, Scheme

__all__ = ["HALF_ABOVE", "ConversionReport", "LayerReport", "convert"]

HALF_ABOVE = 65_536
"""Other tensors with more elements than this are float16 in a packed model."""


@dataclass(frozen=True)
class LayerReport:
    """One ternarised linear.

    Attributes:
        name: the module.
        shape: (out, in).
        error: ‖W − s·c‖ / ‖W‖, Frobenius.
        zeros: fraction of codes that are 0.
        bytes_before: of the weight in the source; bytes_after: of codes and scales when packed.
    """

    name: str
    shape: tuple[int, int]
    error: float
    zeros: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did.

    Attributes:
        artifact: the scheme and where the weights came from.
        layers: one entry per ternarised linear, in the model's order.
        tables: the embeddings that `pack` will compress.
        kept: linears and embeddings that stay, with the reason.
        dropped: tensors of the source that the encoder has no place for.
    """

    artifact: Artifact
    layers: tuple[LayerReport, ...]
    tables: tuple[str, ...]
    kept: dict[str, str]
    dropped: tuple[str, ...]


def convert(
    source: Path,
    output: Path,
    scheme: Scheme | None = None,
    *,
    skip: Sequence[str] = (),
    force: bool = False,
    allow_pickle: bool = False,
    seed: int = 0,
    track: Track = silent,
    source_name: str | None = None,
) -> ConversionReport:
    """Writes a ternary checkpoint of `source` to `output`.

    Args:
        source: a full-precision model folder.
        output: the folder to write, atomically.
        scheme: rule, granularity and widths; the defaults if None.
        skip: shell patterns of module names to leave as they are.
        force: replace an existing output.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
        seed: recorded in the artifact (nothing in an uncalibrated conversion is random).
        track: progress over tensors.
        source_name: what the artifact records as its source; the folder's name if None.

    Raises:
        CheckpointError: the source is incomplete, damaged, already ternary, or holds a weight that is not finite.
        InputError: a skip pattern without a match, or a group size that does not divide a width.
        OutputError, OutputExistsError: the output can't be written.
    """
    scheme = scheme or Scheme()
    files.check_output(output, force=force, inputs=[source])
    known = checkpoint.validate(source, allow_pickle=allow_pickle)
    if known is not None:
        hint = f"ternarize pack {source}" if known.stage == "latent" else "convert its full-precision source instead"
        raise CheckpointError(f"{source} is a ternary model already (stage {known.stage})", hint=hint)
    foreign = checkpoint.read_config(source).get("quantization_config")
    if foreign is not None:
        method = foreign.get("quant_method", "unknown method")
        raise CheckpointError(f"{source} is quantised already ({method})", hint="convert its full-precision source")
    model = checkpoint.skeleton(source)
    with weights.open_shards(source, allow_pickle=allow_pickle) as shards:
        checkpoint.check_tensors(model, shards)
        keys = [key for shard in shards for key in shard.keys()]  # noqa: SIM118
        names = checkpoint.names_in_model(model, keys)
        present = set(names.values())
        plan = surgery.plan(model, scheme, present=present, skip=skip)
        artifact = Artifact(
            stage="latent",
            scheme=scheme,
            modules_to_not_convert=tuple(plan.kept),
            tool_version=__version__,
            source=source_name or model_name(source),
            source_sha256=files.content_hash(source),
            seed=seed,
        )
        reports: dict[str, LayerReport] = {}
        with files.atomic_folder(output, force=force, inputs=[source]) as partial:
            writer = weights.ShardWriter(partial)
            pending = iter(track(keys, "ternarising", len(keys)))
            for shard in shards:
                tensors: dict[str, Tensor] = {}
                for key in shard.keys():  # noqa: SIM118
                    next(pending)
                    if key in names:
                        tensors |= _latent(key, names[key], shard.get(key), plan, scheme, reports)
                writer.write(shard.name, tensors)
            writer.finish()
            checkpoint.copy_companions(source, partial)
            checkpoint.write_config(source, partial, artifact)
    layers = tuple(reports[name] for name in plan.linears)
    return ConversionReport(artifact, layers, plan.tables, plan.kept, tuple(k for k in keys if k not in names))


def _latent(
    key: str, name: str, tensor: Tensor, plan: surgery.Plan, scheme: Scheme, reports: dict[str, LayerReport]
) -> dict[str, Tensor]:
    """The tensors that the checkpoint holds for one tensor of the source."""
    module = name.removesuffix(".weight")
    if module in plan.linears and name.endswith(".weight"):
        weight = tensor.float()
        try:
            scale = ternary.scale_of(weight, scheme)
        except ValueError as e:
            raise CheckpointError(
                f"{key}: {e}", hint="the source is damaged; fetch it again, or --skip this layer"
            ) from e
        if not torch.isfinite(scale.half()).all():
            raise CheckpointError(f"{key}: its scale {float(scale.max()):.3g} does not fit float16", hint="--skip it")
        reports[module] = _report(module, tensor, weight, scale)
        return {key: weight, f"{key}_scale": scale}
    if not tensor.is_floating_point():
        return {key: tensor}
    if not torch.isfinite(tensor).all():
        raise CheckpointError(f"{key}: a value is not finite", hint="the source is damaged; fetch it again")
    if module in plan.tables:
        return {key: tensor.float()}
    if tensor.numel() > HALF_ABOVE and module not in plan.kept:
        return {key: _half(key, tensor).float()}
    return {key: tensor}


def _half(key: str, tensor: Tensor) -> Tensor:
    half = tensor.half()
    if not torch.isfinite(half).all():
        raise InputError(f"{key}: a value does not fit float16")
    return half


def _report(name: str, source: Tensor, weight: Tensor, scale: Tensor) -> LayerReport:
    codes = ternary.codes_of(weight, scale)
    norm = float(weight.norm()) or 1.0
    return LayerReport(
        name=name,
        shape=(weight.shape[0], weight.shape[1]),
        error=float((weight - ternary.dequantize(codes, scale)).norm()) / norm,
        zeros=float((codes == 0).float().mean()),
        bytes_before=source.numel() * source.element_size(),
        bytes_after=weight.shape[0] * packed_width(weight.shape[1]) + 2 * scale.numel(),
    )
