"""`convert`: a full-precision folder becomes a ternary checkpoint.

Tensors stream through, shard by shard: no model is built, so memory stays near one shard (a calibration loads one).
The latent weights are the source's own, beside the scales that the rule gives them; codes are not stored, they follow
(see `ternary`). Every tensor keeps its name. Tensors for which the encoder has no place (heads of a pre-training task)
are dropped, and tensors that the source lacks are never invented. The Dense modules of a sentence-transformers folder
are converted like the encoder (`parts`).
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ternarize_cli import __version__
from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress import vocabulary
from ternarize_cli.compress.calibrate import Calibration, calibrate_folder
from ternarize_cli.compress.source_model import ConversionPlan, SourcePart, check_source, source_parts
from ternarize_cli.compress.tensor_policy import TensorDecision
from ternarize_cli.encoders import checkpoint, defaults
from ternarize_cli.encoders.loading import model_name
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import files, weights

__all__ = ["ConversionReport", "LayerReport", "convert"]


@dataclass(frozen=True)
class LayerReport:
    """One ternarised linear.

    Attributes:
        name: the module.
        shape: (out, in).
        error: ‖W − s·c‖ / ‖W‖, Frobenius.
        zeros: fraction of codes that are 0.
        output_error: of a calibrated linear, how much of the wanted outputs it misses (`calibrate.Calibrated`).
        bytes_before: of the weight in the source; bytes_after: of codes and scales when packed with
            the default codec.
    """

    name: str
    shape: tuple[int, int]
    error: float
    zeros: float
    bytes_before: int
    bytes_after: int
    output_error: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did.

    Attributes:
        artifact: the scheme and where the weights came from.
        layers: one entry per ternarised linear, in the model's order.
        plan: what became of every tensor, with the reason; `convert --dry-run` foretells it.
        notes: what was added for the sake of later stages, in words.
        vocabulary: what stays of it, if it was trimmed.
    """

    artifact: Artifact
    layers: tuple[LayerReport, ...]
    plan: ConversionPlan
    notes: tuple[str, ...]
    vocabulary: vocabulary.Vocabulary | None


def convert(
    source: Path,
    output: Path,
    scheme: Scheme | None = None,
    *,
    skip: Sequence[str] = (),
    keep_dense: bool = False,
    trim: Sequence[str | Path] = (),
    calibration: Calibration | None = None,
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
        keep_dense: leave the Dense modules of sentence-transformers as they are.
        trim: texts (files or folders) to whose tokens the vocabulary is trimmed; see `vocabulary`.
        calibration: what codes, scales and biases are fitted to; None: codes follow from the weights alone.
        force: replace an existing output.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
        seed: draws the texts or images of a calibration; recorded in the artifact.
        track: progress over tensors.
        source_name: what the artifact records as its source; the folder's name if None.

    Raises:
        CheckpointError: the source is incomplete, damaged, already ternary, or holds a weight that is not finite.
        InputError: a skip pattern without a match, or a group size that does not divide a width.
        DataError: texts or images can't be read, or are not what the model reads.
        OutputError, OutputExistsError: the output can't be written.
    """
    scheme = scheme or Scheme()
    files.check_output(output, force=force, inputs=[source])
    check_source(source, allow_pickle=allow_pickle)
    if calibration is not None:
        calibration.check(source, scheme)
    sources = source_parts(source, scheme, skip, keep_dense=keep_dense, allow_pickle=allow_pickle)
    made = Artifact(
        stage="latent",
        scheme=scheme,
        tool_version=__version__,
        source=source_name or model_name(source),
        source_sha256=files.content_hash(source),
        seed=seed,
    )
    chosen = None
    if trim:
        chosen = vocabulary.select(source, sources[0].model, trim, allow_pickle=allow_pickle, track=track)
        sources[0] = sources[0].trimmed(chosen.tables, len(chosen.ids))
    if calibration is not None:
        for one in sources:
            one.check_finite(allow_pickle=allow_pickle)
        policies = [(one.part, one.policy) for one in sources]
        found, data = calibrate_folder(
            source, policies, scheme, calibration, allow_pickle=allow_pickle, seed=seed, track=track
        )
        made = replace(made, calibration=data)
        sources = [one.with_calibrated(found) for one in sources]
    layers: list[LayerReport] = []
    with files.atomic_folder(output, force=force, inputs=[source]) as partial:
        checkpoint.copy_companions(source, partial)
        _unpickle_modules(source, partial, {one.part.subfolder for one in sources})
        notes = defaults.complete(source, partial)
        plan = ConversionPlan.of(sources)
        count = sum(d.stored is not None and d.fate != "added" for d in plan.tensors)
        pending = iter(track(range(count), "ternarising", count))
        for one in sources:
            layers += _write(one, partial, pending, chosen, allow_pickle=allow_pickle)
            one.part.write_config(partial, one.describe(made))
        if chosen is not None:
            notes += vocabulary.write(chosen, sources[0].model, partial)
            vocabulary.check(chosen, source, partial, allow_pickle=allow_pickle, track=track)
    return ConversionReport(
        artifact=sources[0].describe(made),
        layers=tuple(layers),
        plan=plan,
        notes=tuple(notes),
        vocabulary=chosen,
    )


def _unpickle_modules(source: Path, output: Path, converted: Collection[str]) -> None:
    """Writes the pickled weights of modules that stay as they are (LayerNorm, LSTM, …) as safetensors.

    Args:
        source: a folder whose pickles may be read.
        output: the folder that holds a copy of its companion files.
        converted: folders of modules whose weights are written elsewhere.
    """
    for where in module_folders(source):
        pickled, safe = source / where / "pytorch_model.bin", source / where / "model.safetensors"
        if where in converted or not pickled.is_file() or safe.is_file():
            continue
        with weights.open_files([pickled]) as shards:
            tensors = {key: shard.get(key) for shard in shards for key in shard.keys()}  # noqa: SIM118
        weights.ShardWriter(output / where).write(safe.name, tensors)


def _write(
    source: SourcePart,
    output: Path,
    pending: Iterator[object],
    chosen: vocabulary.Vocabulary | None,
    *,
    allow_pickle: bool,
) -> list[LayerReport]:
    """Writes the weights of one part; returns its linears in the model's order."""
    reports: dict[str, LayerReport] = {}
    writer = weights.ShardWriter(output / source.part.subfolder)
    with source.part.open_source(source.model, allow_pickle=allow_pickle) as shards:
        for shard in shards:
            with writer.shard(shard.name) as out:
                for decision in (source.decisions[key] for key in shard.keys()):  # noqa: SIM118
                    if decision.stored is None:
                        continue
                    next(pending)
                    tensor = shard.get(decision.key)
                    if chosen is not None and not source.part.subfolder and decision.name in chosen.tables:
                        tensor = chosen.rows_of(tensor)
                    if decision.fate == "ternary":
                        made, reports[decision.module] = _linear(decision, decision.stored, tensor, source)
                    else:
                        made = {decision.stored: _other(decision, tensor, source)}
                    for key, value in made.items():
                        out.add(key, value)
    writer.finish()
    return [reports[name] for name in source.policy.linears]


def _linear(
    decision: TensorDecision, key: str, tensor: Tensor, source: SourcePart
) -> tuple[dict[str, Tensor], LayerReport]:
    """The tensors that the checkpoint holds for a linear's weight, under `key` and names made of it."""
    found, scheme = source.calibrated.get(decision.module), source.policy.scheme
    matrix = tensor.float().T if decision.transposed else tensor.float()
    try:
        latent, scale = (found.weight, found.scale) if found else (matrix, ternary.scale_of(matrix, scheme))
    except ValueError as e:
        raise CheckpointError(f"{key}: {e}", hint="the source is damaged; fetch it again, or --skip this layer") from e
    if not torch.isfinite(scale.half()).all():
        raise CheckpointError(f"{key}: its scale {float(scale.max()):.3g} does not fit float16", hint="--skip it")
    codes = ternary.codes_of(latent, scale, scheme.levels)
    made = {key: latent.T if decision.transposed else latent, f"{key}_scale": scale}
    if found and source.without_bias([decision.module]):
        made[f"{key.removesuffix('weight')}bias"] = found.bias
    norm = float(matrix.norm()) or 1.0
    return made, LayerReport(
        name=source.part.prefix + decision.module,
        shape=decision.matrix,
        error=float((matrix - ternary.dequantize(codes, scale)).norm()) / norm,
        zeros=float((codes == 0).float().mean()),
        bytes_before=decision.bytes_source,
        bytes_after=decision.bytes_packed,
        output_error=found.output_error if found else None,
    )


def _other(decision: TensorDecision, tensor: Tensor, source: SourcePart) -> Tensor:
    """What the checkpoint holds for a tensor that is no linear's weight."""
    found = source.calibrated.get(decision.module)
    if found and decision.name == f"{decision.module}.bias":
        return found.bias
    if not tensor.is_floating_point():
        return tensor
    if not weights.all_finite(tensor):
        raise CheckpointError(f"{decision.stored}: a value is not finite", hint="the source is damaged; fetch it again")
    if decision.fate == "half":
        tensor = tensor.half()
        if not torch.isfinite(tensor).all():
            raise InputError(f"{decision.stored}: a value does not fit float16")
    return tensor.float() if decision.fate in ("half", "table") else tensor
