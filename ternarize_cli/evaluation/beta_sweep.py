"""Which beta? The rule "absmean" tried at several betas on a user's own full-precision model, beside "optimal".

The paper (arXiv 2411.15438) sets beta = 2 and leaves the choice open. Its scale is beta · mean|w|, so the threshold for
a code other than 0 is beta / 2 · mean|w| and zeros grow with beta, while the best scale for given codes is the mean
magnitude of what is not zero. The two pull apart: no beta reaches the error of "optimal", and the beta with the least
error need not be the one whose model keeps most. So both are measured:

    error, zeros     of the weights, over all linears together; read a tensor at a time, no model is built
    cosine, STS      of the packed model (int8 activations and tables, float16 scales), made in memory: the modules of
                     a live model are replaced once, and each rule only sets codes and scales

Nothing is written. Codes without calibration or training are compared here; both change the ranking.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ternarize_cli.arithmetic import packing, tables, ternary
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.source_model import SourcePart, check_source, source_parts
from ternarize_cli.encoders import blocks, module_replacement
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.modalities import require_modality
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.format.codecs import codec_for
from ternarize_cli.format.scheme import Artifact, Scheme
from ternarize_cli.layers import PackedLinear
from ternarize_cli.progress import Track, silent

if TYPE_CHECKING:
    from ternarize_cli.data.images import Images
    from ternarize_cli.evaluation.reading import Pairs

__all__ = ["MEASURES", "Sweep", "SweepRow", "parse_betas", "sweep"]

MEASURES = ("error", "zeros", "cosine", "sts")
"""The columns of a sweep; the last two need a model that runs."""


@dataclass(frozen=True)
class SweepRow:
    """One rule on one model.

    Attributes:
        beta: of the rule "absmean"; None: the rule "optimal".
        error: ‖W − s·c‖ / ‖W‖ over the weights of all linears together.
        zeros: fraction of zero codes.
        cosine: mean cosine between this model's vectors and the original's; None if nothing was encoded.
        sts: Spearman correlation of cosine similarities with the scores; None without pairs, or if it is undefined
            because all vectors are equal.
    """

    beta: float | None
    error: float
    zeros: float
    cosine: float | None = None
    sts: float | None = None


@dataclass(frozen=True)
class Sweep:
    """What a sweep measured.

    Attributes:
        granularity: what shares a scale, as on the command line.
        linears: how many were ternarised.
        absmean: one row for each beta, ascending; optimal: the row of that rule.
        measures: those of `MEASURES` that were measured.
        encoded: how many sentences or images the cosine is over; 0 if nothing was encoded.
        teacher_sts: of the original; None without pairs.
    """

    granularity: str
    linears: int
    absmean: tuple[SweepRow, ...]
    optimal: SweepRow
    measures: tuple[str, ...]
    encoded: int = 0
    teacher_sts: float | None = None

    def best(self, measure: str) -> SweepRow | None:
        """The row of the best beta: least error, highest cosine or STS. More zeros are neither: None."""
        rows = [row for row in self.absmean if getattr(row, measure) is not None]
        if measure == "zeros" or not rows:
            return None
        pick = min if measure == "error" else max
        return pick(rows, key=lambda row: getattr(row, measure))


def parse_betas(text: str) -> tuple[float, ...]:
    """`2,0.5,1` → (0.5, 1.0, 2.0).

    Raises:
        InputError: a value is no number, not positive, 1000 or more, or given twice.
    """
    hint = "numbers with commas between: --beta 0.5,1,1.5,2,3"
    betas: list[float] = []
    for part in text.split(","):
        try:
            beta = float(part)
        except ValueError:
            raise InputError(f"--beta {text}: {part.strip()!r} is not a number", hint=hint) from None
        if not 0 < beta < 1000:
            raise InputError(f"--beta {text}: {part.strip()} is not above 0 and below 1000", hint=hint)
        if beta in betas:
            raise InputError(f"--beta {text}: {part.strip()} is given twice", hint=hint)
        betas.append(beta)
    return tuple(sorted(betas))


def sweep(
    folder: Path,
    betas: Sequence[float],
    *,
    granularity: str = "row",
    pairs: "Pairs | None" = None,
    images: "Images | None" = None,
    allow_pickle: bool = False,
    device: str | None = None,
    threads: int | None = None,
    batch_size: int = 32,
    track: Track = silent,
) -> Sweep:
    """Measures the rule "absmean" at each beta, and "optimal".

    Args:
        folder: a full-precision model.
        betas: as `parse_betas` gives them.
        granularity: what shares a scale: `row`, `tensor` or `group:N`.
        pairs: scored sentence pairs; measures cosine and STS.
        images: measures the cosine. Not together with `pairs`.
        allow_pickle: read pytorch_model.bin where there is no safetensors file.
        device, threads: as `loading.load_encoder` takes them.
        batch_size: texts or images encoded at once.
        track: progress, over tensors and then over rules.

    Raises:
        CheckpointError: the model is damaged, not full precision, or does not read what it is given.
        InputError: an unknown granularity, or a group size that does not divide a width.
        DataError: an image can't be decoded.
    """
    kind, group_size = Scheme.parse_granularity(granularity)
    optimal = Scheme(granularity=kind, group_size=group_size)
    schemes = [*(replace(optimal, rule="absmean", beta=beta) for beta in betas), optimal]
    check_source(folder, allow_pickle=allow_pickle)
    if pairs is not None:
        require_modality(folder, "text", folder)
    if images is not None:
        require_modality(folder, "image", folder)
    sources = source_parts(folder, optimal, ConvertOptions(allow_pickle=allow_pickle))
    rows = _weights(sources, schemes, allow_pickle, track)
    count = sum(len(source.policy.linears) for source in sources)
    found = Sweep(granularity, count, tuple(rows[:-1]), rows[-1], MEASURES[:2])
    if pairs is None and images is None:
        return found
    encoder = load_encoder(folder, device=device, threads=threads, allow_pickle=allow_pickle)
    if pairs is not None:
        measure = _on_pairs(encoder, folder.name, pairs, batch_size)
    else:
        assert images is not None
        measure = _on_images(encoder, images, batch_size)
    teacher, teacher_sts = measure()
    linears = [linear for source in sources for linear in _pack(source.part.module_of(encoder), source, optimal)]
    for i, scheme in enumerate(track(schemes, "trying rules", len(schemes))):
        _set_codes(linears, scheme)
        vectors, sts = measure()
        rows[i] = replace(rows[i], cosine=_mean_cosine(vectors, teacher), sts=sts)
    return replace(
        found,
        absmean=tuple(rows[:-1]),
        optimal=rows[-1],
        measures=MEASURES if pairs is not None else MEASURES[:3],
        encoded=len(teacher),
        teacher_sts=teacher_sts,
    )


def _weights(
    sources: Sequence[SourcePart], schemes: Sequence[Scheme], allow_pickle: bool, track: Track
) -> list[SweepRow]:
    """A row without cosine and STS for each scheme."""
    squares, zeros = [0.0] * len(schemes), [0] * len(schemes)
    norm, count = 0.0, 0
    progress = iter(track(range(sum(len(source.policy.linears) for source in sources)), "trying rules on the weights"))
    for source in sources:
        with source.part.open_source(source.model, allow_pickle=allow_pickle) as shards:
            for shard in shards:
                for key in (k for k in shard.keys() if source.decisions[k].fate == "ternary"):  # noqa: SIM118
                    next(progress)
                    weight = shard.get(key).float()
                    weight = weight.T if source.decisions[key].transposed else weight
                    norm += float(weight.double().square().sum())
                    count += weight.numel()
                    for i, scheme in enumerate(schemes):
                        codes, scale = _codes(key, weight, scheme)
                        squares[i] += float((weight - ternary.dequantize(codes, scale)).double().square().sum())
                        zeros[i] += int((codes == 0).sum())
    return [
        SweepRow(
            beta=scheme.beta if scheme.rule == "absmean" else None,
            error=math.sqrt(squares[i] / norm) if norm else 0.0,
            zeros=zeros[i] / count,
        )
        for i, scheme in enumerate(schemes)
    ]


def _codes(key: str, weight: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    try:
        scale = ternary.scale_of(weight, scheme)
    except ValueError as e:
        raise CheckpointError(f"{key}: {e}", hint="the source is damaged; fetch it again") from e
    return ternary.codes_of(weight, scale), scale


def _pack(model: Any, source: SourcePart, scheme: Scheme) -> list[tuple[PackedLinear, Tensor]]:
    """Makes a live model its packed twin but for the codes; returns the linears, each with its weights `[out, in]`."""
    state: dict[str, Tensor] = dict(model.float().state_dict())
    module_replacement.replace(
        model, Artifact("packed", scheme, codec_for(scheme.levels).name, tuple(source.policy.excluded))
    )
    blocks.attach(model, {})
    linears = []
    for name, transposed in source.policy.linears.items():
        weight = state.pop(f"{name}.weight")
        linears.append((model.get_submodule(name), weight.T if transposed else weight))
    for name in source.policy.tables:
        table = model.get_submodule(name)
        codes, table.weight_scale = tables.quantize_table(state.pop(f"{name}.weight"), table.table_bits)
        table.weight = tables.pack_codes(codes, table.table_bits)
    for decision in source.decisions.values():
        if decision.fate == "half":
            state[str(decision.name)] = state[str(decision.name)].half().float()
    model.load_state_dict(state, strict=False)
    return linears


def _set_codes(linears: Sequence[tuple[PackedLinear, Tensor]], scheme: Scheme) -> None:
    for module, weight in linears:
        scale = ternary.scale_of(weight, scheme)
        module.weight = packing.pack(module.codec, ternary.codes_of(weight, scale))
        module.weight_scale = scale.half()
        module.backend = "auto"  # prepares its kernel again


def _mean_cosine(vectors: Tensor, teacher: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(vectors, teacher, dim=1).mean())


_Measure = Callable[[], tuple[Tensor, float | None]]
"""Gives the vectors `[n, dim]` of everything that is encoded, and the STS score if there is one."""


def _on_pairs(encoder: Any, name: str, pairs: "Pairs", batch_size: int) -> _Measure:
    """Scored by MTEB; the vectors that it asks for are kept, so that every sentence is encoded once."""
    from ternarize_cli.evaluation.compare import score
    from ternarize_cli.evaluation.encoder import LocalEncoder

    kept: list[Tensor] = []

    class Recorder(LocalEncoder):
        def encode(self, inputs: Any, **kwargs: Any) -> Any:
            vectors = super().encode(inputs, **kwargs)
            kept.append(torch.from_numpy(vectors))
            return vectors

    recorder = Recorder(encoder, name=name, content_hash="")

    def measure() -> tuple[Tensor, float | None]:
        kept.clear()
        sts = None
        try:
            sts = score(recorder, pairs, batch_size=batch_size).value
        except CheckpointError:
            if len(kept) < 2:  # some vector is not finite; otherwise all are equal, and there is no correlation
                raise
        return torch.cat(kept), sts

    return measure


def _on_images(encoder: Any, images: "Images", batch_size: int) -> _Measure:
    """Images are decoded again for each rule: none is kept."""

    def measure() -> tuple[Tensor, float | None]:
        starts = range(0, len(images), batch_size)
        batches = (list(images[start : start + batch_size]) for start in starts)
        found = [encoder.encode(batch, convert_to_tensor=True, show_progress_bar=False) for batch in batches]
        return torch.cat(found).cpu().float(), None

    return measure
