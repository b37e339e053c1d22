"""Options of `ternarize convert`: how weights are stored, what stays as it is, what to calibrate on; and of `pack`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from ternarize_cli.errors import InputError
from ternarize_cli.format.module_levels import MIXED
from ternarize_cli.format.scheme import Scheme
from ternarize_cli.storage.command_option import (
    ALLOW_PICKLE,
    DEVICE,
    MANY,
    NO_CHECK,
    SEED,
    THREADS,
    Option,
    check_fields,
    plain_signature,
)

__all__ = [
    "DEFAULT_TOKENS",
    "METHODS",
    "TIERS",
    "Calibration",
    "CalibrationRecipe",
    "ConvertOptions",
    "ImportOptions",
    "SchemeOptions",
    "Tier",
    "of_tier",
]

DEFAULT_TOKENS = 120_000
"""Tokens of text that calibration reads unless the user says otherwise."""
METHODS = ("bitnet", "compressed-tensors", "torchao")
"""The methods of other quantisers whose models can be taken over, as `quant_method` of config.json names them."""
Tier = Literal["small", "balanced", "faithful"]
"""Names of tiers, from the smallest models to those whose vectors are nearest to the original's."""
TIERS: Mapping[Tier, tuple[str, float | None]] = {
    "small": ("ternary", None),
    "balanced": (MIXED, 2.5),
    "faithful": ("int4", None),
}
"""The `levels` of `SchemeOptions` and the `bits` of `ConvertOptions` that a tier stands for; docs/results/quality.md
has what models of each tier keep."""


@plain_signature
@dataclass(frozen=True)
class SchemeOptions:
    """How weights are stored, as words and numbers of a command line; `scheme` makes the `Scheme`.

    Attributes:
        rule: "optimal" or "absmean".
        beta: the threshold parameter of the rule absmean; None: 2.
        granularity: "row", "tensor" or "group:N".
        activations: bits of activations.
        table_bits: bits of embedding tables in a packed model.
        levels: "ternary", "binary", "int2" or "int4"; or "mixed", which goes with the `bits` of `ConvertOptions`; None:
            "ternary", unless there is a tier.
        tier: a key of `TIERS`, given instead of levels and bits; `of_tier` replaces it by them.
    """

    rule: Annotated[str, Option("optimal: exact least squares; absmean: the paper's beta * mean|W|.")] = "optimal"
    beta: Annotated[float | None, Option("Threshold parameter of absmean; larger means more zeros; default 2.")] = None
    granularity: Annotated[str, Option("What shares a scale: row, tensor, or group:N inputs.")] = "row"
    activations: Annotated[Literal[8, 16], Option("Bits of activations: 8 (per token, dynamic) or 16 (untouched).")] = 8
    table_bits: Annotated[Literal[4, 8, 16, 32], Option("Bits of embedding tables when packed.")] = 8
    levels: Annotated[
        str | None,
        Option("Grid of the weights: ternary (default), binary, int2 (four levels), int4, mixed."),
    ] = None
    tier: Annotated[
        Tier | None, Option("Instead of levels and bits: small is ternary, balanced mixed at 2.5 bits, faithful int4.")
    ] = None

    def scheme(self, bits: float | None = None) -> Scheme:
        """Makes the scheme; where levels are mixed, that of the ternary linears.

        Args:
            bits: the `bits` of `ConvertOptions`.

        Raises:
            InputError: a value is not one of those that a scheme takes, `beta` is given for another rule, `bits`
                without mixed levels or the other way round, or a tier is set, which `of_tier` has to replace first.
        """
        if self.tier is not None:
            raise InputError(f"the tier {self.tier} was not replaced by levels and bits", hint="of_tier(form, options)")
        if (self.levels == MIXED) != (bits is not None):
            what = "--levels mixed needs a budget of bits, and --bits is not given"
            if bits is not None:
                what = f"--bits {bits:g} is for mixed levels, and --levels is {self.levels or 'ternary'}"
            raise InputError(what, hint="--levels mixed --bits 2.5")
        levels = "ternary" if self.levels in (None, MIXED) else self.levels
        kind, group_size = Scheme.parse_granularity(self.granularity)
        return Scheme(self.rule, self.beta, kind, group_size, self.activations, self.table_bits, levels)


@plain_signature
@dataclass(frozen=True)
class ConvertOptions:
    """What a conversion leaves as it is, and what it may read.

    Attributes:
        skip: shell patterns of module names to leave as they are.
        keep_dense: leave the Dense modules of a sentence-transformers model as they are.
        bits: bits of a weight in the mean of all linears, scales included: so many linears become int4 as fit, those
            that need it most, and the rest is ternary; None: all linears have the grid of the scheme.
        trim: files or folders of texts; of the vocabulary only the tokens that they use are kept.
        allow_pickle: read pytorch_model.bin where there is no safetensors file; trust its author.
        seed: the seed by which the data of a calibration is drawn; recorded in the checkpoint.
        check: open the source and the result, and compare a few vectors before the result gets its name.

    Raises:
        InputError: `skip` or `trim` is a lone string.
    """

    skip: Annotated[
        Sequence[str], Option("Leave modules of this name as they are; repeatable.", metavar="PATTERN")
    ] = ()
    keep_dense: Annotated[bool, Option("Leave the Dense modules of a sentence-transformers model as they are.")] = False
    bits: Annotated[
        float | None,
        Option("With --levels mixed: mean bits of a weight; the linears that need it most become int4."),
    ] = None
    trim: Annotated[
        Sequence[str | Path],
        Option(
            "Keep only the tokens that these texts use; repeatable, folders too.",
            name="trim_vocabulary",
            metavar="FILE",
        ),
    ] = ()
    allow_pickle: Annotated[bool, ALLOW_PICKLE] = False
    seed: Annotated[int, SEED] = 0
    check: Annotated[bool, NO_CHECK] = True

    def __post_init__(self) -> None:
        check_fields(self)


def of_tier(form: SchemeOptions, options: ConvertOptions) -> tuple[SchemeOptions, ConvertOptions]:
    """Replaces the tier of `form` by the levels and bits that it stands for, and levels that are None by "ternary".

    Raises:
        InputError: there is no such tier, or levels or bits are given beside a tier.
    """
    if form.tier is None:
        return replace(form, levels=form.levels or "ternary"), options
    if form.tier not in TIERS:
        raise InputError(f"there is no tier {form.tier!r}", hint=f"one of {', '.join(TIERS)}")
    if form.levels is not None or options.bits is not None:
        raise InputError(
            f"the tier {form.tier} has levels and bits of its own", hint="--tier, or --levels and --bits, but not both"
        )
    levels, bits = TIERS[form.tier]
    return replace(form, tier=None, levels=levels), replace(options, bits=bits)


@dataclass(frozen=True)
class CalibrationRecipe:
    """How calibration finds codes and scales; docs/research/calibration.md has the ablation behind the defaults.

    Attributes:
        regress: how far the target goes from the original weight (0) to the regression W* (1).
        residual: whether linears that write into the residual stream also undo earlier layers' errors.
        pooled: weight of the covariance of text means beside that of tokens.
        passes: rounds of error feedback; 0 rounds to nearest.
        sweeps: rounds of coordinate descent.
        damping: what is added to the diagonal of H, as a fraction of the diagonal's mean.
        shrinkage: what is added to the diagonal of H besides, in units of its sampling noise (`Moments.noise`).
        falling: whether error feedback takes columns by falling variance instead of in order.
    """

    regress: float = 1.0
    residual: bool = True
    pooled: float = 1.0
    passes: int = 3
    sweeps: int = 3
    damping: float = 0.01
    shrinkage: float = 1.0
    falling: bool = True


@plain_signature
@dataclass(frozen=True)
class Calibration:
    """What to calibrate on, and how.

    Attributes:
        sources: files, folders or hub datasets: all texts, or all images.
        samples: the most texts or images, over all sources; None: 8,192 texts or 256 images.
        tokens: about so many tokens of text are read, over all sources.
        recipe: how codes and scales are found.
        device: name of a torch device; None picks CUDA if there is a GPU, else the CPU.
        threads: number of CPU threads; None leaves it as it is.
    """

    sources: Annotated[
        Sequence[str | Path],
        Option(
            "Fit codes and scales to these texts or images, or starter: texts of this machine; repeatable.",
            name="calibrate",
            metavar="FILE|DIR|DATASET",
        ),
    ] = ()
    samples: Annotated[
        int | None,
        Option(
            "At most so many, over all sources; default 8192 texts or 256 images.",
            name="calibration_samples",
            min=16,
            max=MANY,
        ),
    ] = None
    tokens: Annotated[
        int,
        Option(
            "About so many tokens of text; time and memory grow with it.",
            name="calibration_tokens",
            min=1000,
            max=MANY,
        ),
    ] = DEFAULT_TOKENS
    recipe: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    device: Annotated[str | None, DEVICE] = None
    threads: Annotated[int | None, THREADS] = None

    def __post_init__(self) -> None:
        check_fields(self)

    def check(self, folder: Path, scheme: Scheme) -> str:
        """Checks, before any work is done, that the sources are what the model reads and that the rule allows for them.

        Returns:
            What the sources hold: "text" or "image".

        Raises:
            InputError: there are no sources, or the scheme's rule fixes the scales, which calibration chooses.
            DataError: a source is missing, or some hold texts and others images.
            CheckpointError: the model does not read what the sources hold.
        """
        from ternarize_cli.encoders.modalities import modality_of_sources

        if not self.sources:
            raise InputError(
                "there is nothing to calibrate on", hint="name texts or images as sources, or no calibration"
            )
        if scheme.rule != "optimal":
            raise InputError(
                f"calibration chooses the scales itself, and the rule {scheme.rule} would fix them",
                hint="drop --rule and --beta, or --calibrate",
            )
        return modality_of_sources(folder, self.sources)


@dataclass(frozen=True)
class ImportOptions:
    """How a model that others have quantised is taken over; by default nothing changes.

    Attributes:
        round: round scales and large tensors that float16 does not hold exactly, by at most 0.1%.
        activations: bits of activations: 8 rounds them per token, 16 leaves them as they are; None: as the source says.
    """

    round: Annotated[bool, Option("Models of others: round scales that float16 does not hold.")] = False
    activations: Annotated[
        Literal[8, 16] | None, Option("Models of others: bits of activations; default: as they have them.")
    ] = None

    @property
    def first_flag(self) -> str:
        """The flag of the first option that is set."""
        return "--round" if self.round else "--activations"
