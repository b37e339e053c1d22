"""The quantisation scheme of a model, and the description that every artifact carries.

`Scheme` holds the user's choices. `Artifact` adds the stage and the origin; it is the `quantization_config` in the
config.json of a ternary checkpoint or packed model, so that any artifact describes itself.

`levels` names the grid that weights are rounded to. A stored weight takes the bits of its codec and its share of a
float16 scale (16 bits / group size; almost nothing with one scale per row or tensor):

    levels     codes                    codec    bits a weight      in groups of 64 / 16
    ternary    -1, 0, +1                2bit     2                  2.25 / 3
                                        base3    1.6                1.85 / 2.6
    binary     -1, +1                   1bit     1                  1.25 / 2
    int2       -3, -1, +1, +3           2bit     2                  2.25 / 3
    int4       -8 … 7                   4bit     4                  4.25 / 5

A weight is its code times its scale for every grid. Ternary is the default and the one with kernels of its own.
An artifact may have a few int4 linears among ternary ones (`format.module_levels`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ternarize_cli.errors import FormatError, InputError, shown
from ternarize_cli.format.block import Block, blocks_from_dict
from ternarize_cli.format.block_values import check_mapping, check_name
from ternarize_cli.format.listing import Listing
from ternarize_cli.format.module_levels import MIXED, MIXED_VERSION, module_levels_from

__all__ = [
    "CODECS",
    "FORMAT_VERSION",
    "GRANULARITIES",
    "LEVELS",
    "METHOD",
    "STAGES",
    "Artifact",
    "CalibrationData",
    "Scheme",
]

METHOD = "ternarize"
FORMAT_VERSION = 2
"""The version that is written where all linears have one grid; those of `module_levels` are written as version 3.

Version 1, which had neither `digest` nor `block`, can also be read.
"""
_READ_VERSIONS = (1, FORMAT_VERSION, MIXED_VERSION)
STAGES = ("latent", "packed")
RULES = ("optimal", "absmean")
GRANULARITIES = ("row", "tensor", "group")
ACTIVATION_BITS = (8, 16)
TABLE_BITS = (4, 8, 16, 32)
PAPER_BETA = 2.0
LEVELS = {"ternary": (-1, 0, 1), "binary": (-1, 1), "int2": (-3, -1, 1, 3), "int4": tuple(range(-8, 8))}
"""The codes of each grid, ascending and evenly spaced."""
CODECS = {"ternary": ("2bit", "base3"), "binary": ("1bit",), "int2": ("2bit",), "int4": ("4bit",)}
"""The codecs that can hold each grid, the default first."""


@dataclass(frozen=True)
class Scheme:
    """The choices of `ternarize convert`.

    Attributes:
        rule: "optimal" (exact least squares) or "absmean" (the paper's `beta * mean|W|`).
        beta: the threshold parameter of the rule "absmean"; None: the paper's 2. The rule "optimal" has none.
        granularity: the weights that share a scale: a "row", the whole "tensor", or a "group" of `group_size` inputs.
        group_size: number of inputs per group; None unless granularity is "group".
        activation_bits: 8 quantises each token's activations to int8; 16 does not quantise them.
        table_bits: width of embedding tables in the packed model: 8 (a scale per row), 16, 32, or 4 (a scale per 32
            values; tables that are not the encoder's input embedding, such as positions, stay at 8).
        levels: the grid of the linears' codes, a key of `LEVELS`. The rule "absmean" is defined for ternary only.

    Raises:
        InputError: a value is not one of these, or two values contradict each other.
    """

    rule: str = "optimal"
    beta: float | None = None
    granularity: str = "row"
    group_size: int | None = None
    activation_bits: int = 8
    table_bits: int = 8
    levels: str = "ternary"

    def __post_init__(self) -> None:
        _one_of("rule", self.rule, RULES)
        _one_of("granularity", self.granularity, GRANULARITIES)
        _one_of("activation bits", self.activation_bits, ACTIVATION_BITS)
        _one_of("table bits", self.table_bits, TABLE_BITS)
        _one_of("levels", self.levels, tuple(LEVELS))
        if self.rule == "absmean" and self.levels != "ternary":
            raise InputError(
                f"the rule absmean gives ternary codes, and levels is {self.levels}", hint="--rule optimal"
            )
        if self.rule == "absmean" and self.beta is None:
            object.__setattr__(self, "beta", PAPER_BETA)
        if self.beta is not None:
            if not isinstance(self.beta, int | float) or not 0 < self.beta < 1000:
                raise InputError(
                    f"beta is {self.beta}; it must be above 0 and below 1000", hint="the paper uses --beta 2"
                )
            if self.rule != "absmean":
                raise InputError(
                    f"beta is the threshold of the rule absmean, and the rule is {self.rule}",
                    hint="--rule absmean, or no --beta",
                )
        if (self.granularity == "group") != (self.group_size is not None):
            raise InputError(
                "a group size goes with granularity group, and only with it", hint="--granularity group:64"
            )
        if self.group_size is not None and not (isinstance(self.group_size, int) and self.group_size > 0):
            raise InputError(f"the group size is {self.group_size}; it must be positive", hint="--granularity group:64")

    @classmethod
    def parse_granularity(cls, text: str) -> tuple[str, int | None]:
        """Parses a granularity: `row` gives ("row", None), and `group:64` gives ("group", 64).

        Raises:
            InputError: the text is not row, tensor or group:N.
        """
        if text in ("row", "tensor"):
            return text, None
        kind, _, size = text.partition(":")
        if kind == "group" and size.isdecimal():
            return kind, int(size)
        raise InputError(f"granularity {shown(text)} is unknown", hint="row, tensor, or group:N such as group:64")


@dataclass(frozen=True)
class CalibrationData:
    """A description of the calibration data of an artifact.

    Attributes:
        kind: "text" or "image".
        samples: number of texts (joined texts count once) or images.
        tokens: number of tokens of all texts, with prompts; None for images.
    """

    kind: str
    samples: int
    tokens: int | None = None

    @classmethod
    def from_dict(cls, values: Any) -> "CalibrationData":
        """Reads the JSON form, and ignores unknown keys.

        Raises:
            FormatError: a key is missing, or its value has the wrong type.
        """
        known = values if isinstance(values, dict) else {}
        kind, samples, tokens = (known.get(key) for key in ("kind", "samples", "tokens"))
        if kind in ("text", "image") and isinstance(samples, int) and isinstance(tokens, int | None):
            return cls(kind, samples, tokens)
        raise FormatError(
            f"quantization_config: calibration is {shown(values)}; it must have a kind, samples and tokens"
        )


@dataclass(frozen=True)
class Artifact:
    """The `quantization_config` of an artifact: its stage, its scheme, and its origin.

    `calibration` is None for an artifact that was not calibrated. `source_revision` is the commit of a source that is a
    model of the hub, and empty for any other. `block` describes the encoder's blocks (`format.block`), by the name of
    the model that has them; it is empty for a model that no description fits. `module_levels` holds the grids of
    linears that have another one than the scheme's, by their names in the encoder.

    The last three are of packed models, for what runs without PyTorch. `names` holds the name in the weights file for
    each tensor of the encoder, or of the head, that `runtime.packed_file.TensorNames` does not find by itself.
    `torch_only` says why the model runs in PyTorch only, as far as its description and files do not show that.
    `listing` names the linears and tables (`format.listing`); None for a model that was packed without it.
    """

    stage: str
    scheme: Scheme = field(default_factory=Scheme)
    codec: str | None = None
    modules_to_not_convert: tuple[str, ...] = ()
    added_biases: tuple[str, ...] = ()
    tool_version: str = ""
    source: str = ""
    source_revision: str = ""
    source_sha256: str = ""
    seed: int = 0
    calibration: CalibrationData | None = None
    block: Mapping[str, Block] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    torch_only: str = ""
    listing: Listing | None = None
    module_levels: Mapping[str, str] = field(default_factory=dict)

    @property
    def levels(self) -> str:
        """The name of the linears' grid; "mixed" if they have several."""
        return MIXED if self.module_levels else self.scheme.levels

    def scheme_of(self, module: str) -> Scheme:
        """Returns the scheme of a linear, by its name in the encoder."""
        levels = self.module_levels.get(module)
        return self.scheme if levels is None else replace(self.scheme, levels=levels)

    def codec_of(self, module: str) -> str | None:
        """Returns the name of the codec of a linear, by its name in the encoder; None in a checkpoint."""
        levels = self.module_levels.get(module)
        return self.codec if levels is None or self.codec is None else CODECS[levels][0]

    def to_dict(self) -> dict[str, Any]:
        """Converts to the flat JSON form, with keys in a fixed order."""
        return {
            "quant_method": METHOD,
            "stage": self.stage,
            "format_version": MIXED_VERSION if self.module_levels else FORMAT_VERSION,
            "levels": self.levels,
            **asdict(self.scheme),
            **({"levels": MIXED, "module_levels": dict(self.module_levels)} if self.module_levels else {}),
            "beta": self.scheme.beta or PAPER_BETA,
            "codec": self.codec,
            "modules_to_not_convert": list(self.modules_to_not_convert),
            "added_biases": list(self.added_biases),
            "tool_version": self.tool_version,
            "source": self.source,
            **({"source_revision": self.source_revision} if self.source_revision else {}),
            "source_sha256": self.source_sha256,
            "seed": self.seed,
            **({"calibration": asdict(self.calibration)} if self.calibration else {}),
            **({"block": {name: block.to_dict() for name, block in self.block.items()}} if self.block else {}),
            **({"names": dict(self.names)} if self.names else {}),
            **({"torch_only": self.torch_only} if self.torch_only else {}),
            **({"listing": self.listing.to_dict()} if self.listing else {}),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Artifact":
        """Reads the flat form strictly.

        Raises:
            FormatError: the method is not ternarize's; the version, stage, levels or codec is unknown; or a key is
                missing, unknown or of the wrong type.
        """
        if values.get("quant_method") != METHOD:
            raise FormatError(f"quant_method is {shown(values.get('quant_method'))}, not {METHOD!r}")
        version = values.get("format_version")
        if version not in _READ_VERSIONS or not isinstance(version, int) or isinstance(version, bool):
            raise FormatError(
                f"format_version is {shown(version)}; this ternarize reads versions 1 to {MIXED_VERSION}",
                hint="pip install -U ternarize-cli",
            )
        known = {f.name for f in (*fields(cls), *fields(Scheme))} - {"scheme"}
        known |= {"quant_method", "format_version", "digest"}
        if unknown := sorted(values.keys() - known):
            raise FormatError(f"quantization_config has unknown keys: {', '.join(map(shown, unknown[:3]))}")
        if values.get("stage") not in STAGES:
            raise FormatError(f"stage is {shown(values.get('stage'))}; it must be one of {', '.join(STAGES)}")
        levels, codec = values.get("levels"), values.get("codec")
        if levels not in (*LEVELS, MIXED):  # `in` a tuple also works for values that can't be hashed
            raise FormatError(f"levels is {shown(levels)}; it must be one of {', '.join(LEVELS)} and {MIXED}")
        module_levels = module_levels_from(values)
        levels = "ternary" if module_levels else levels
        if values["stage"] == "packed" and codec not in CODECS[levels]:
            raise FormatError(f"codec is {shown(codec)}; a packed {levels} model has {' or '.join(CODECS[levels])}")
        if values["stage"] == "latent" and codec is not None:
            raise FormatError(f"codec is {shown(codec)}; a ternary checkpoint that is not packed has none")
        apart = ("scheme", "modules_to_not_convert", "added_biases", "source_revision", "calibration", "block")
        optional = ("names", "torch_only", "listing", "module_levels")
        own = [f.name for f in fields(cls) if f.name not in (*apart, *optional)]
        for key in ("modules_to_not_convert", "added_biases"):
            names = values.get(key, [])
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise FormatError(f"quantization_config: {key} is {shown(names)}; it must be a list of names")
        missing = [k for k in [*own, *(f.name for f in fields(Scheme)), "modules_to_not_convert"] if k not in values]
        if missing:
            raise FormatError(f"quantization_config lacks {', '.join(missing)}")
        if not isinstance(values["seed"], int) or isinstance(values["seed"], bool):
            raise FormatError(f"quantization_config: seed is {shown(values['seed'])}; it must be a whole number")
        for key in ("tool_version", "source", "source_revision", "source_sha256", "torch_only"):
            if not isinstance(values.get(key, ""), str):
                raise FormatError(f"quantization_config: {key} is {shown(values[key])}; it must be text")
        try:
            chosen = {f.name: values[f.name] for f in fields(Scheme)} | {"levels": levels}
            if chosen["rule"] != "absmean" and isinstance(chosen["beta"], int | float):
                chosen["beta"] = None  # is written for any rule, and read by one
            scheme = Scheme(**chosen)
            for other in set(module_levels.values()):
                replace(scheme, levels=other)  # refuses the rule absmean
        except (InputError, TypeError) as e:
            raise FormatError(f"quantization_config: {e}") from e
        calibration = CalibrationData.from_dict(values["calibration"]) if values.get("calibration") else None
        return cls(
            scheme=scheme,
            modules_to_not_convert=tuple(values["modules_to_not_convert"]),
            added_biases=tuple(values.get("added_biases", ())),
            source_revision=values.get("source_revision", ""),
            calibration=calibration,
            block=blocks_from_dict(values.get("block", {})),
            names=_names_from(values.get("names", {})),
            torch_only=values.get("torch_only", ""),
            listing=Listing.from_dict(values["listing"]) if "listing" in values else None,
            module_levels=module_levels,
            **{k: values[k] for k in own},
        )


def _names_from(values: object) -> dict[str, str]:
    """Reads names of tensors in the model and in the weights file.

    Raises:
        FormatError: the value is no object of names.
    """
    found = check_mapping("names", values)
    for name, key in found.items():
        check_name("the name of a tensor in the model", name)
        check_name("the name of a tensor in the file", key)
    return found


def _one_of(what: str, value: object, known: tuple[object, ...]) -> None:
    if value not in known:
        raise InputError(f"{what} is {shown(value)}", hint=f"one of {', '.join(map(str, known))}")
