"""`convert`: a full-precision folder becomes a ternary checkpoint.

Tensors stream through, one at a time: no model is built, so memory stays near the largest tensor (a calibration and a
budget of bits load a model).
The latent weights are the source's own, beside the scales that the rule gives them; codes are not stored, they follow
(see `ternary`). Every tensor keeps its name. The head of a cross-encoder, classifier or masked language model stays
(`model_kind`). Tensors for which the model has no place (other heads) are dropped, and tensors that the source lacks
are never invented. The Dense modules of a sentence-transformers folder are converted like the encoder (`parts`).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from ternarize_cli import __version__
from ternarize_cli.arithmetic import ternary
from ternarize_cli.compress import card, vocabulary
from ternarize_cli.compress.calibrate import Calibrated, Calibration, calibrate_folder
from ternarize_cli.compress.mixed_levels import with_levels
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.result_check import Reference
from ternarize_cli.compress.source_model import ConversionPlan, SourcePart, planned_parts
from ternarize_cli.compress.tensor_policy import TensorDecision
from ternarize_cli.encoders import adapters, blocks, checkpoint, defaults, hub
from ternarize_cli.encoders.anatomy import encoder_in
from ternarize_cli.encoders.loading import model_name
from ternarize_cli.errors import CheckpointError, InputError, counted
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.model_folder.model_files import module_folders
from ternarize_cli.model_folder.model_kind import head_notes
from ternarize_cli.progress import Track, silent
from ternarize_cli.storage import digests, files, weights
from ternarize_cli.tokenizers.tokenization import inputs

__all__ = ["ConversionReport", "LayerReport", "convert"]


@dataclass(frozen=True)
class LayerReport:
    """One ternarised linear.

    Attributes:
        name: the name of the module.
        shape: the shape of its weight, (out, in).
        error: ‖W − s·c‖ / ‖W‖ in the Frobenius norm.
        zeros: fraction of codes that are 0.
        bytes_before: bytes of the weight in the source.
        bytes_after: bytes of codes and scales when packed with the default codec.
        levels: the name of the grid of its codes.
        need: with a budget of bits, how far the model's vectors move when this linear and those that run with it are
            ternary alone (`mixed_levels.Levels`); None without one.
        output_error: how much of the wanted outputs a calibrated linear misses (`calibrate.Calibrated`); None of a
            linear that was not calibrated.
    """

    name: str
    shape: tuple[int, int]
    error: float
    zeros: float
    bytes_before: int
    bytes_after: int
    output_error: float | None = None
    levels: str = "ternary"
    need: float | None = None


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did.

    Attributes:
        artifact: the scheme and where the weights came from.
        layers: one entry per ternarised linear, in the model's order.
        plan: what became of every tensor, with the reason; `convert --dry-run` foretells it.
        notes: sentences about what was added or dropped for the sake of later stages.
        vocabulary: what stays of the vocabulary; None if it was not trimmed.
    """

    artifact: Artifact
    layers: tuple[LayerReport, ...]
    plan: ConversionPlan
    notes: tuple[str, ...]
    vocabulary: vocabulary.Vocabulary | None

    @property
    def bits(self) -> float:
        """The mean bits of a weight of the linears when packed with the default codecs, scales included."""
        return 8 * sum(x.bytes_after for x in self.layers) / sum(x.shape[0] * x.shape[1] for x in self.layers)


def convert(
    source: Path,
    output: Path,
    scheme: Scheme | None = None,
    options: ConvertOptions | None = None,
    *,
    calibration: Calibration | None = None,
    force: bool = False,
    track: Track = silent,
    source_name: str | None = None,
) -> ConversionReport:
    """Writes a ternary checkpoint of `source` to `output`.

    Args:
        source: a full-precision model folder.
        output: the folder to write, atomically.
        scheme: rule, granularity and widths; the defaults if None.
        options: what stays as it is, a budget of bits, a smaller vocabulary, the seed; the defaults if None.
        calibration: what codes, scales and biases are fitted to; None: codes follow from the weights alone.
        force: replace an existing output.
        track: reports progress over tensors.
        source_name: what the artifact records as its source; the folder's name if None. Of a model in the hub's
            cache, its hub id and commit are recorded instead; of a merged adapter, `adapters.source_of`.

    Raises:
        CheckpointError: the source is incomplete, damaged, already ternary, or holds a weight that is not finite; or
            it can't be opened and does not encode.
        TernarizeError: the result can't be opened, or its vectors are wrong (`result_check`).
        InputError: a pattern to skip matches nothing, the group size does not divide the width of a linear, a value
            does not fit float16, or `mixed_levels.with_levels` refuses the budget of bits.
        DataError: texts or images can't be read, or are not what the model reads.
        OutputError, OutputExistsError: the output can't be written, or exists and `force` is false.
    """
    scheme, options = scheme or Scheme(), options or ConvertOptions()
    allow_pickle = options.allow_pickle
    files.check_output(output, force=force, inputs=[source])
    parts, chosen = planned_parts(source, scheme, options, calibration, track)
    parts, needs = with_levels(source, parts, scheme, options, calibration, track)
    reference = None
    if options.check:
        texts = [] if chosen is None else list(islice(inputs(source, chosen.corpus), 3))
        reference = Reference.of(source, *([texts] if texts else []), allow_pickle=allow_pickle)
    merged = adapters.source_of(source)
    hub_model = None if merged else hub.origin_of(source)
    made = Artifact(
        stage="latent",
        scheme=scheme,
        tool_version=__version__,
        source=merged or (hub_model.name if hub_model else source_name or model_name(source)),
        source_revision=(hub_model and hub_model.revision) or "",
        source_sha256=digests.content_hash(source),
        seed=options.seed,
        block=blocks.blocks_of(encoder_in(parts[0].model)),
    )
    found: dict[str, Calibrated] = {}
    if calibration is not None:
        for one in parts:
            one.check_finite(allow_pickle=allow_pickle)
        policies = [(one.part, one.policy) for one in parts]
        found, data = calibrate_folder(
            source, policies, scheme, calibration, allow_pickle=allow_pickle, seed=options.seed, track=track
        )
        made = replace(made, calibration=data)
        parts = [one.calibrated([n for n in one.policy.linears if one.part.prefix + n in found]) for one in parts]
    plan = ConversionPlan.of(parts)
    layers: list[LayerReport] = []
    with files.atomic_folder(output, force=force, inputs=[source]) as partial:
        checkpoint.copy_companions(source, partial)
        _unpickle_modules(source, partial, {one.part.subfolder for one in parts})
        notes = [*head_notes(source), *defaults.complete(source, partial)]
        count = sum(d.stored is not None for d in plan.tensors)
        pending = iter(track(range(count), "ternarising", count))
        for one in parts:
            made_layers = _write(one, partial, pending, chosen, found, allow_pickle=allow_pickle)
            layers += [replace(layer, need=needs.get(layer.name)) for layer in made_layers]
            one.part.write_config(partial, one.describe(made))
        if chosen is not None:
            notes += vocabulary.write(chosen, parts[0].model, partial)
            vocabulary.check(chosen, source, partial, allow_pickle=allow_pickle, track=track)
        report = ConversionReport(parts[0].describe(made), tuple(layers), plan, tuple(notes), chosen)
        card.write(partial, "convert", _described(report))
        if reference is not None:
            reference.check(partial, latent=calibration is None)
            report = replace(report, notes=(*notes, *reference.notes))
    return report


def _described(report: ConversionReport) -> str:
    """Writes the numbers of a conversion for its card."""
    layers, scheme, data = report.layers, report.artifact.scheme, report.artifact.calibration
    group = f"group of {scheme.group_size} weights" if scheme.group_size else scheme.granularity
    before, after = (sum(getattr(x, f"bytes_{when}") for x in layers) for when in ("before", "after"))
    lines = [
        *(
            f"- linears that are {levels}: {count}, by the rule {scheme.rule}, with one scale per {group}"
            for levels, count in Counter(x.levels for x in layers).items()
        ),
        f"- their weights differ from the source's by {sum(x.error for x in layers) / len(layers):.1%} in the mean "
        f"(‖W − s·c‖ / ‖W‖), before any training; {sum(x.zeros for x in layers) / len(layers):.1%} of the codes are 0",
        f"- bytes of the linears: {before:,} in the source, {after:,} packed",
    ]
    if data is not None:
        tokens = "" if data.tokens is None else f", {data.tokens:,} tokens"
        lines.append(f"- calibrated on {counted(data.samples, data.kind)}{tokens}")
    if report.vocabulary is not None:
        lines.append(f"- vocabulary: {len(report.vocabulary.ids):,} of {report.vocabulary.rows:,} tokens are kept")
    return "\n".join(lines)


def _unpickle_modules(source: Path, output: Path, converted: Collection[str]) -> None:
    """Writes the pickled weights of modules that stay as they are (LayerNorm, LSTM, …) as safetensors."""
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
    calibrated: Mapping[str, Calibrated],
    *,
    allow_pickle: bool,
) -> list[LayerReport]:
    """Writes the weights of one part; returns its linears in the model's order."""
    reports: dict[str, LayerReport] = {}
    writer = weights.ShardWriter(output / source.part.subfolder)
    with source.part.open_source(source.model, allow_pickle=allow_pickle) as shards:
        for shard in shards:
            with writer.shard(shard.name) as out:
                for d in source.decisions.values():
                    if d.stored is None or d.file != shard.name:
                        continue
                    next(pending)
                    found = calibrated.get(source.part.prefix + d.module)
                    if found and d.name == f"{d.module}.bias":
                        out.add(d.stored, found.bias)
                        continue
                    tensor = shard.get(d.key)
                    if chosen is not None and not source.part.subfolder and d.name in chosen.tables:
                        tensor = chosen.rows_of(tensor)
                    if d.fate == "ternary":
                        latent, scale, report = _linear(d, tensor, source.policy.scheme_of(d.module), found)
                        reports[d.module] = replace(report, name=source.part.prefix + d.module)
                        out.add(d.stored, latent)
                        out.add(f"{d.stored}_scale", scale)
                    else:
                        out.add(d.stored, _other(d, tensor))
    writer.finish()
    return [reports[name] for name in source.policy.linears]


def _linear(
    decision: TensorDecision, tensor: Tensor, scheme: Scheme, found: Calibrated | None
) -> tuple[Tensor, Tensor, LayerReport]:
    """What the checkpoint holds for a linear's weight: the latent weight in the source's layout, and the scale."""
    matrix = tensor.float().T if decision.transposed else tensor.float()
    try:
        latent, scale = (found.weight, found.scale) if found else (matrix, ternary.scale_of(matrix, scheme))
    except ValueError as e:
        raise CheckpointError(
            f"{decision.stored}: {e}", hint="the source is damaged; fetch it again, or --skip this layer"
        ) from e
    if not torch.isfinite(scale.half()).all():
        raise CheckpointError(
            f"{decision.stored}: its scale {float(scale.max()):.3g} does not fit float16", hint="--skip it"
        )
    codes = ternary.codes_of(latent, scale, scheme.levels)
    report = LayerReport(
        name=decision.module,
        shape=decision.matrix,
        error=float((matrix - ternary.dequantize(codes, scale)).norm()) / (float(matrix.norm()) or 1.0),
        zeros=float((codes == 0).float().mean()),
        bytes_before=decision.bytes_source,
        bytes_after=decision.bytes_packed,
        output_error=found.output_error if found else None,
        levels=scheme.levels,
    )
    return latent.T if decision.transposed else latent, scale, report


def _other(decision: TensorDecision, tensor: Tensor) -> Tensor:
    """What the checkpoint holds for a tensor that is no linear's weight and that no calibration fits."""
    if not tensor.is_floating_point():
        return tensor
    if not weights.all_finite(tensor):
        raise CheckpointError(f"{decision.stored}: a value is not finite", hint="the source is damaged; fetch it again")
    if decision.fate == "half":
        tensor = tensor.half()
        if not torch.isfinite(tensor).all():
            raise InputError(f"{decision.stored}: a value does not fit float16", hint="the source may be damaged")
    return tensor.to(decision.checkpoint[str(decision.stored)][0])
