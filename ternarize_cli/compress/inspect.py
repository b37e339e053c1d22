"""`inspect`: what a model folder is, read from its files alone (a skeleton is built, no model).

What can be said about a linear depends on the stage:

    stage            codes and scales     error ‖W − s·c‖ / ‖W‖      histogram of magnitudes
    full precision   none yet             none                       |w| / mean|w| of its matrix
    latent           follow from W, s     against the latent W       |w| / s, threshold at 1/2
    packed           in the file          W is gone                  none

The latent W of a checkpoint that was calibrated or distilled is no longer the source's, and may have moved towards the
codes or away from them: its error says how far, not how good the model is.

The two histograms of magnitudes meet: the rule "absmean" puts its threshold at beta / 2 times mean|w|, so beta = 2
splits a full-precision model at 1.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.arithmetic import packing, ternary
from ternarize_cli.compress.tensor_policy import policy_of_artifact
from ternarize_cli.encoders import checkpoint, hub, module_replacement
from ternarize_cli.encoders.anatomy import sizes, weighted
from ternarize_cli.encoders.parts import parts_of
from ternarize_cli.errors import CheckpointError, FormatError
from ternarize_cli.format.scheme import LEVELS, Artifact
from ternarize_cli.layers import PackedEmbedding, PackedLinear, TernaryLinear, check_scale
from ternarize_cli.storage import files, weights

__all__ = ["Histogram", "Inspection", "TensorInfo", "inspect", "parameter_count"]

_BINS = 80
_WIDEST = {"ternary": 2.5, "binary": 2.5, "int2": 5.0, "int4": 10.0}
_WIDEST_DENSE = 5.0
_OCTAVES, _PER_OCTAVE = (-24, 8), 4


@dataclass(frozen=True)
class Histogram:
    """Counts of values in bins; what lies outside is counted in the outermost bin.

    Attributes:
        edges: the edges of the bins, ascending; one more than there are bins.
        counts: number of values in each bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def merged(self, bins: int) -> "Histogram":
        """Merges neighbouring bins, as many into each, so that at most `bins` are left."""
        step = -(-len(self.counts) // bins)
        starts = range(0, len(self.counts), step)
        edges = (*(self.edges[i] for i in starts), self.edges[-1])
        return Histogram(edges, tuple(sum(self.counts[i : i + step]) for i in starts))


@dataclass(frozen=True)
class TensorInfo:
    """One linear or embedding of a model.

    Attributes:
        name: the name of the module.
        kind: "ternary" (whatever its levels), "table" or "dense".
        shape: (out, in) of a linear, or (rows, dim) of an embedding.
        bytes: bytes of the module's weight and scales in the file.
        is_linear: whether it is a linear; otherwise an embedding.
        codes: the share of each code, such as {-1: .25, 0: .5, 1: .25}; None unless ternary.
        zeros: the share of zero codes; None unless ternary.
        scale_min: the smallest scale; None unless ternary.
        scale_mean: the mean of the scales; None unless ternary.
        scale_max: the largest scale; None unless ternary.
        error: ‖W − s·c‖ / ‖W‖ in the Frobenius norm; None unless in a latent checkpoint.
        mean_abs: mean|w| of a full-precision linear; None of any other module, and of headers alone.
        max_abs: max|w| of a full-precision linear; None of any other module, and of headers alone.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    bytes: int
    is_linear: bool
    codes: dict[int, float] | None = None
    zeros: float | None = None
    scale_min: float | None = None
    scale_mean: float | None = None
    scale_max: float | None = None
    error: float | None = None
    mean_abs: float | None = None
    max_abs: float | None = None


@dataclass(frozen=True)
class Inspection:
    """What a folder holds.

    Attributes:
        stage: "full precision", "latent" or "packed".
        architecture: the class that transformers builds for the encoder.
        bytes: bytes of all weights files.
        parameters: number of weights, those that are packed counted as the weights that they stand for.
        sha256: the folder's content hash; None of headers alone.
        modules: the linears and embeddings, in the model's order.
        artifact: the description in a ternary checkpoint or packed model; None at full precision.
        magnitudes: |w| / mean|w| of the weights of all linears at full precision, |w| / s of those of the ternary
            linears in a latent checkpoint; None if packed.
        scales: all scales that are not zero; None at full precision.
    """

    stage: str
    architecture: str
    bytes: int
    parameters: int
    sha256: str | None
    modules: tuple[TensorInfo, ...]
    artifact: Artifact | None
    magnitudes: Histogram | None
    scales: Histogram | None

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Values of |w| / s where the code changes, ascending; empty at full precision and for binary codes."""
        if self.artifact is None:
            return ()
        sizes = sorted({abs(code) for code in LEVELS[self.artifact.scheme.levels]})
        return tuple((a + b) / 2 for a, b in itertools.pairwise(sizes))

    @property
    def codes(self) -> dict[int, float] | None:
        """The share of each code over all ternary linears; None if no linear is ternary."""
        found = [(m.codes, m.shape[0] * m.shape[1]) for m in self.modules if m.codes is not None]
        total = sum(count for _, count in found)
        if not found:
            return None
        return {code: sum(shares[code] * count for shares, count in found) / total for code in found[0][0]}


class _Counter:
    """Counts values of many tensors in equal bins from `low` to `high`."""

    def __init__(self, low: float, high: float, bins: int) -> None:
        self._low, self._step = low, (high - low) / bins
        self.counts = torch.zeros(bins, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        last = len(self.counts) - 1
        index = ((values.flatten() - self._low) / self._step).floor_().clamp_(0, last).to(torch.int64)
        self.counts += torch.bincount(index, minlength=last + 1)

    def histogram(self) -> Histogram | None:
        """None where nothing was counted."""
        edges = (self._low + self._step * i for i in range(len(self.counts) + 1))
        return Histogram(tuple(edges), tuple(int(n) for n in self.counts)) if self.counts.any() else None


def inspect(folder: Path, *, allow_pickle: bool = False) -> Inspection:
    """Reads a model folder of any stage; a packed model's digest, codes and scales are checked on the way.

    Of a folder with headers alone (`hub.headers_only`), values and content hash stay unknown.

    Raises:
        CheckpointError: a file is missing or damaged, or asks for something that a folder may not ask for.
        FormatError: the description of an artifact breaks the format or does not fit the weights, a packed model does
            not match its digest, or a code or scale is invalid.
    """
    artifact = checkpoint.validate(folder, allow_pickle=allow_pickle, always_verify=True)
    survey, values = _Survey(artifact), not hub.is_headers_only(folder)
    modules: list[TensorInfo] = []
    architecture, parameters, size = "", 0, 0
    for part in parts_of(folder):
        model, known = part.skeleton(), part.artifact()
        architecture = architecture or type(model).__name__
        names = [name for name, _ in weighted(model)]
        policy = policy_of_artifact(model, known) if known is not None else None
        if known is not None:
            module_replacement.replace(model, known)
        with part.open_source(model, allow_pickle=allow_pickle) as shards:
            checkpoint.check_tensors(model, shards, FormatError if known else CheckpointError)
            at = {
                name: (key, shard)
                for shard in shards
                for key, name in checkpoint.names_in_model(model, shard.keys()).items()
            }
            for name in (n for n in names if f"{n}.weight" in at):
                key, shard = at[f"{name}.weight"]
                scale_at = at.get(f"{name}.weight_scale")
                scale = scale_at[1].get(scale_at[0]) if scale_at else None
                kind, module = policy.kind(name) if policy else "dense", model.get_submodule(name)
                weight = shard.get(key) if values else shard.get(key).to("meta")
                modules.append(survey.describe(part.prefix + name, kind, module, key, weight, scale))
        parameters += parameter_count(model, at)
        size += weights.bytes_on_disk(part.path, allow_pickle=allow_pickle)
    return Inspection(
        stage=artifact.stage if artifact else "full precision",
        architecture=architecture,
        bytes=size,
        parameters=parameters,
        sha256=files.content_hash(folder) if values else None,
        modules=tuple(modules),
        artifact=artifact,
        magnitudes=survey.magnitudes.histogram(),
        scales=_powers_of_two(survey.exponents.histogram()),
    )


def parameter_count(model: nn.Module, present: Iterable[str]) -> int:
    """Counts the weights of a model; packed ones count as the weights that they stand for, and scales do not count.

    Args:
        model: the skeleton; for an artifact, with its modules in place.
        present: the names in the state dict of the tensors to count.
    """
    logical = {
        f"{name}.weight": module.in_features * module.out_features
        if isinstance(module, PackedLinear)
        else module.num_embeddings * module.embedding_dim
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear | PackedEmbedding)
    }
    state = model.state_dict()
    names = {name for name in present if not name.endswith(".weight_scale")}
    return sum(logical.get(name, value.numel()) for name, value in state.items() if name in names)


class _Survey:
    """Describes one module after the other and counts their values.

    `magnitudes` counts |w| / mean|w| or |w| / s, `exponents` the logarithms to base 2 of scales.
    """

    def __init__(self, artifact: Artifact | None) -> None:
        self._artifact = artifact
        widest = _WIDEST[artifact.scheme.levels] if artifact else _WIDEST_DENSE
        self.magnitudes = _Counter(0, widest, _BINS)
        self.exponents = _Counter(*_OCTAVES, (_OCTAVES[1] - _OCTAVES[0]) * _PER_OCTAVE)

    def describe(self, name: str, kind: str, module: Any, key: str, weight: Tensor, scale: Tensor | None) -> TensorInfo:
        size = sum(t.numel() * t.element_size() for t in (weight, scale) if t is not None)
        if isinstance(module, nn.Embedding | PackedEmbedding):
            return TensorInfo(name, kind, (module.num_embeddings, module.embedding_dim), size, False)
        if isinstance(module, TernaryLinear | PackedLinear):
            assert scale is not None
            check_scale(scale, f"{key}_scale")
            return self._ternary(name, module, key, weight, scale, size)
        if weight.is_meta:
            return TensorInfo(name, kind, sizes(module), size, True)
        magnitude = weight.float().abs()
        mean = float(magnitude.mean())
        if self._artifact is None and mean > 0:
            self.magnitudes.add(magnitude / mean)
        return TensorInfo(name, kind, sizes(module), size, True, mean_abs=mean, max_abs=float(magnitude.max()))

    def _ternary(
        self, name: str, module: TernaryLinear | PackedLinear, key: str, weight: Tensor, scale: Tensor, size: int
    ) -> TensorInfo:
        levels = module.scheme.levels
        error = None
        wide = scale.float()
        if isinstance(module, PackedLinear):
            try:
                codes = packing.unpack(module.codec, weight, module.in_features)
            except ValueError as e:
                raise FormatError(f"{key}: {e}") from e
        else:
            weight = weight.float()
            weight = weight.T if module.transposed else weight
            codes = ternary.codes_of(weight, wide, levels)
            error = float((weight - ternary.dequantize(codes, wide)).norm()) / (float(weight.norm()) or 1.0)
            divisor = ternary.expand_scale(wide, *weight.shape).expand_as(weight)
            self.magnitudes.add((weight.abs() / divisor)[divisor > 0])
        self.exponents.add(wide[wide > 0].log2())
        shares = {code: float((codes == code).float().mean()) for code in LEVELS[levels]}
        return TensorInfo(
            name,
            "ternary",
            (module.out_features, module.in_features),
            size,
            True,
            codes=shares,
            zeros=shares.get(0, 0.0),
            scale_min=float(wide.min()),
            scale_mean=float(wide.mean()),
            scale_max=float(wide.max()),
            error=error,
        )


def _powers_of_two(counted: Histogram | None) -> Histogram | None:
    """A histogram of exponents as one of values, without the empty bins at its ends."""
    if counted is None:
        return None
    filled = [i for i, n in enumerate(counted.counts) if n]
    first, last = filled[0], filled[-1] + 1
    edges = tuple(2.0**x for x in counted.edges[first : last + 1])
    return Histogram(edges, counted.counts[first:last])
