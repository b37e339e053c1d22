"""Describes the parts of a block: norms, what tokens see, positions and embeddings."""

from dataclasses import dataclass

from ternarize_cli.errors import FormatError
from ternarize_cli.format.block_values import check_count, check_flag, check_name, check_number, check_one_of

__all__ = ["Embeddings", "LayerKind", "Norm", "PatchBias", "Relative", "Rotary"]

_LARGEST_EPSILON = 0.999999
"""An epsilon lies below 1, for the compiled library too."""


@dataclass(frozen=True)
class Norm:
    """A norm over the values of a token.

    Attributes:
        name: the module that holds the gain as `weight`, and a layer norm's shift as `bias`; relative to the block, or
            to the model for the last norm and that of the embeddings.
        kind: "layer": `(x - mean) / sqrt(variance + eps) * gain + bias`; "rms": `x / sqrt(mean(x²) + eps) * gain`.
        eps: the epsilon.
        offset: is added to the stored weight to give the gain; Gemma stores gains less 1.
    """

    name: str
    kind: str
    eps: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        check_name("a norm's name", self.name)
        check_one_of("a norm's kind", self.kind, ("layer", "rms"))
        check_number("a norm's epsilon", self.eps, 1e-37, _LARGEST_EPSILON)
        check_number("a norm's offset", self.offset, 0.0, 1.0)


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: pairs of numbers of a head are turned by an angle that grows with the position.

    The pair `i` consists of the numbers `i` and `i + numbers / 2`, and its angle is `position * frequency[i]` with
    `frequency[i] = theta ** (-2i / numbers)`.

    Attributes:
        theta: the base of the frequencies.
        numbers: how many numbers of a head are turned, an even number; those behind them stay.
        factor: factor of cosines and sines.
        frequencies: the frequencies of all pairs, where they do not follow from `theta`; otherwise empty.
        of_patches: the angles depend on the row and column of an image's patch (DINOv3), and the model's own module
            computes them; tokens before the patches are not turned.
    """

    theta: float
    numbers: int
    factor: float = 1.0
    frequencies: tuple[float, ...] = ()
    of_patches: bool = False

    def __post_init__(self) -> None:
        check_number("the base of rotary positions", self.theta, 0.0, 1e30)
        check_count("the numbers that rotary positions turn", self.numbers, 2)
        check_number("the factor of rotary positions", self.factor, 0.0, 1e6)
        object.__setattr__(self, "frequencies", tuple(self.frequencies))
        if self.numbers % 2 or len(self.frequencies) not in (0, self.numbers // 2):
            raise FormatError("rotary positions turn pairs of numbers, with a frequency for each pair")
        for frequency in self.frequencies:
            check_number("a frequency of rotary positions", frequency, 0.0, 1e6)
        check_flag("of_patches", self.of_patches)


@dataclass(frozen=True)
class LayerKind:
    """What differs between the blocks of an encoder.

    Attributes:
        before: how many tokens before its own a token sees; None: all.
        after: how many tokens after its own a token sees; None: all; 0 for causal attention.
        rotary: the rotary positions; None if the block has none.
    """

    before: int | None = None
    after: int | None = None
    rotary: Rotary | None = None

    def __post_init__(self) -> None:
        for seen in (self.before, self.after):
            if seen is not None:
                check_count("the tokens that a token sees", seen, 0)


@dataclass(frozen=True)
class Relative:
    """A bias of attention scores by the distance from query to key, in buckets (T5, section 2.1 of arXiv 1910.10683).

    Half of the buckets are for keys after the query. Of each half, the first half is for single distances, and the
    others grow logarithmically up to `distance`, from which on the last is taken.

    Attributes:
        name: the table, `[buckets, heads]`, that holds the biases; relative to the model.
        buckets: number of buckets.
        distance: the distance from which on all are in one bucket.
    """

    name: str
    buckets: int
    distance: int

    def __post_init__(self) -> None:
        check_name("the table of relative positions", self.name)
        check_count("the buckets of relative positions", self.buckets, 4)
        check_count("the distance of relative positions", self.distance, self.buckets // 4 + 1, 1 << 16)


@dataclass(frozen=True)
class PatchBias:
    """A bias of attention scores by how many rows and columns of patches a key lies from its query (BEiT).

    The first token, which is no patch, has a bias of its own as query, as key, and as both. A module holds the table of
    biases for the images that the model was trained on, and makes of it the biases for another number of patches.

    Attributes:
        name: the module, which gives `[1, heads, tokens, tokens]` for the rows and columns of patches of an image;
            relative to the block, or to the model if it is shared.
        shared: whether all blocks have the same bias.
    """

    name: str
    shared: bool = False

    def __post_init__(self) -> None:
        check_name("the module of the bias by patches", self.name)
        check_flag("shared", self.shared)


@dataclass(frozen=True)
class Embeddings:
    """The embedding of a text's tokens: a sum of rows of tables, each named relative to the model.

    Attributes:
        words: the table of tokens.
        types: the table of token types; None if there is none.
        positions: the table of positions; None if there is none.
        first_position: the position of the first token: RoBERTa counts from the id of padding, plus 1.
        factor: factor of the rows of `words`; Gemma multiplies them by the root of the width.
    """

    words: str
    types: str | None = None
    positions: str | None = None
    first_position: int = 0
    factor: float = 1.0

    def __post_init__(self) -> None:
        for name in (self.words, self.types, self.positions):
            if name is not None:
                check_name("a table's name", name)
        check_count("the first position", self.first_position, 0)
        check_number("the factor of embeddings", self.factor, 0.0, 1e6)
