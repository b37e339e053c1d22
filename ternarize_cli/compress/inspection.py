"""What `inspect` finds in a model folder: numbers of each linear and embedding, and histograms over all of them."""

import itertools
from dataclasses import dataclass

from ternarize_cli.format.scheme import LEVELS, Artifact

__all__ = ["Histogram", "Inspection", "TensorInfo"]


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
        levels: the name of the grid of its codes; None unless ternary.
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
    levels: str | None = None
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
        """Values of |w| / s where the code changes, ascending.

        Empty at full precision, for binary codes, and where linears have several grids.
        """
        if self.artifact is None or self.artifact.module_levels:
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
        codes = sorted({code for shares, _ in found for code in shares})
        return {code: sum(shares.get(code, 0.0) * count for shares, count in found) / total for code in codes}

    @property
    def bits(self) -> float | None:
        """The mean bits of a weight of the packed linears, scales included; None unless packed."""
        found = [(m.bytes, m.shape[0] * m.shape[1]) for m in self.modules if m.codes is not None]
        if self.stage != "packed" or not found:
            return None
        return 8 * sum(size for size, _ in found) / sum(count for _, count in found)
