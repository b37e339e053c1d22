"""Describes the blocks of an encoder, so that a runtime can compute them without the code that defined the model.

A block (transformer layer) is attention and then a feed-forward, each with a residual: `x = x + f(x)`. A description
names the modules that hold a block's weights, and says what is computed with them. It is stored in an artifact's
`quantization_config` under `block`, as a dict from the name of a stack of blocks to its description: "" for an encoder
that is one stack, "text_model" and "vision_model" for CLIP.

Norms are named by their place:

    attention.before, feed_forward.before    of the input of attention, or of the feed-forward
    attention.after, feed_forward.after      of its output, before the residual is added
    attention.sum, feed_forward.sum          of the sum of both
    query, key                               of each head's queries and keys
    last                                     of the last hidden states
    embeddings                               of the embeddings
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

from ternarize_cli.errors import FormatError, shown
from ternarize_cli.format.block_parts import Embeddings, LayerKind, Norm, PatchBias, Relative, Rotary
from ternarize_cli.format.block_values import (
    check_count,
    check_flag,
    check_mapping,
    check_name,
    check_number,
    check_one_of,
)

__all__ = [
    "ACTIVATIONS",
    "PLACES",
    "Block",
    "Embeddings",
    "LayerKind",
    "Norm",
    "PatchBias",
    "Relative",
    "Rotary",
    "blocks_from_dict",
]

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")
"""The activations of a feed-forward: GELU by the error function and by tanh, x·sigmoid(1.702 x), x·sigmoid(x), ReLU."""
PLACES = tuple(f"{part}.{place}" for part in ("attention", "feed_forward") for place in ("before", "after", "sum"))
"""The places of norms around attention and feed-forward."""
_OTHER_PLACES = ("query", "key", "last", "embeddings")


@dataclass(frozen=True)
class Block:
    """The description of a stack of equal blocks.

    Names of modules are relative to the block, if nothing else is said.

    Attributes:
        layers: the name of the list of blocks, relative to the model.
        kinds: the kinds of blocks that differ in what tokens see and in rotary positions.
        kind_of: for each block the index of its kind.
        width: the width of the hidden states.
        heads, key_value_heads: number of heads of queries, and of keys and values.
        head: the width of a head.
        scale: factor of the products of queries and keys.
        qkv: the linears of queries, keys and values, in this order; one name if one linear holds all three.
        output: the linear behind attention.
        up: the linears of the feed-forward that read the hidden states. A gated feed-forward has two, of which the
            first goes through the activation and is multiplied by the second, or one linear that holds both.
        down: the linear that writes the output of the feed-forward.
        inner: the width of the feed-forward between `up` and `down`.
        activation: one of `ACTIVATIONS`.
        gated: whether the feed-forward is gated.
        norms: the norms by their place.
        unnormed: the blocks without the norm `attention.before` (the first block of ModernBERT).
        layer_scales: the parameters `[width]` by which the outputs of attention and of the feed-forward are multiplied;
            empty if there are none.
        relative: the bias by relative positions, which all blocks share; None if there is none.
        patch_bias: the bias by rows and columns of patches, of images; None if there is none.
        embeddings: the embedding of texts; None for images, which the model's own modules embed.
    """

    layers: str
    kinds: tuple[LayerKind, ...]
    kind_of: tuple[int, ...]
    width: int
    heads: int
    key_value_heads: int
    head: int
    scale: float
    qkv: tuple[str, ...]
    output: str
    up: tuple[str, ...]
    down: str
    inner: int
    activation: str
    gated: bool
    norms: Mapping[str, Norm] = field(default_factory=dict)
    unnormed: tuple[int, ...] = ()
    layer_scales: tuple[str, ...] = ()
    relative: Relative | None = None
    patch_bias: PatchBias | None = None
    embeddings: Embeddings | None = None

    def __post_init__(self) -> None:
        for key in ("kinds", "kind_of", "qkv", "up", "unnormed", "layer_scales"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        for name in (self.layers, *self.qkv, self.output, *self.up, self.down, *self.layer_scales):
            check_name("the name of a module", name)
        for what in ("width", "heads", "key_value_heads", "head", "inner"):
            check_count(what, getattr(self, what), 1)
        check_number("the scale of attention", self.scale, 0.0, 1e6)
        check_one_of("the activation", self.activation, ACTIVATIONS)
        check_flag("gated", self.gated)
        for place in self.norms:
            check_one_of("the place of a norm", place, (*PLACES, *_OTHER_PLACES))
        for index in (*self.kind_of, *self.unnormed):
            check_count("the index of a block or a kind", index, 0)
        if not self.kind_of or max(self.kind_of) >= len(self.kinds) or any(i >= len(self) for i in self.unnormed):
            raise FormatError("kind_of gives each block the index of a kind")
        if len(self.kinds) > len(self):
            raise FormatError(f"kind_of has {len(self)} blocks, and there are {len(self.kinds)} kinds")
        if self.heads % self.key_value_heads:
            raise FormatError(f"{self.key_value_heads} heads of keys and values don't divide {self.heads} of queries")
        if len(self.qkv) not in (1, 3) or len(self.up) not in ((1, 2) if self.gated else (1,)):
            raise FormatError("queries, keys and values are three linears or one, and a gate two or one")
        if len(self.layer_scales) not in (0, 2):
            raise FormatError("layer_scales are two parameters or none")
        if self.patch_bias is not None and (self.relative is not None or self.embeddings is not None):
            raise FormatError("a block has a bias by patches, or one by distance, and texts have no patches")
        turned = {kind.rotary.numbers for kind in self.kinds if kind.rotary is not None}
        if len(turned) > 1 or max(turned, default=0) > self.head:
            raise FormatError("rotary positions turn more numbers than a head has, or not as many in every block")

    def __len__(self) -> int:
        """The number of blocks."""
        return len(self.kind_of)

    @property
    def linears(self) -> tuple[str, ...]:
        """The names of a block's linears, relative to the block."""
        return (*self.qkv, self.output, *self.up, self.down)

    @property
    def counts_places(self) -> bool:
        """Whether attention depends on how far tokens are apart, so that tokens may not be left out between others."""
        windows = any(kind.rotary is not None or kind.before or kind.after for kind in self.kinds)
        return self.relative is not None or windows

    def norms_of(self, i: int) -> dict[str, Norm]:
        """The norms of block `i` by their place, without the last norm and that of the embeddings."""
        left_out = {"last", "embeddings", *(("attention.before",) if i in self.unnormed else ())}
        return {place: norm for place, norm in self.norms.items() if place not in left_out}

    def to_dict(self) -> dict[str, Any]:
        """Converts to JSON's types; values that are their default are left out."""
        return {key: value for key, value in _plain(self).items() if key != "norms"} | {
            "norms": {place: _plain(norm) for place, norm in self.norms.items()}
        }

    @classmethod
    def from_dict(cls, values: Any) -> "Block":
        """Reads the JSON form strictly.

        Raises:
            FormatError: a key is missing or unknown, or a value has the wrong type or is out of range.
        """
        given = dict(check_mapping("a block", values))
        norms = check_mapping("norms", given.pop("norms", {}))
        given["norms"] = {place: _made(Norm, norm) for place, norm in norms.items()}
        kinds = given.get("kinds")
        if not isinstance(kinds, list):
            raise FormatError(f"quantization_config: block has {shown(kinds)} for kinds; it must be a list")
        given["kinds"] = tuple(
            _made(LayerKind, {**kind, "rotary": _made(Rotary, kind["rotary"]) if kind.get("rotary") else None})
            for kind in (check_mapping("a kind of block", kind) for kind in kinds)
        )
        for key, kind in (("relative", Relative), ("patch_bias", PatchBias), ("embeddings", Embeddings)):
            if given.get(key) is not None:
                given[key] = _made(kind, given[key])
        made: Block = _made(cls, given)
        return made


def blocks_from_dict(values: Any) -> dict[str, Block]:
    """Reads the descriptions of an artifact: a dict from the name of a stack of blocks to its JSON form.

    Raises:
        FormatError: a description breaks the format.
    """
    found = check_mapping("block", values)
    for name in found:
        if name:
            check_name("the name of a stack of blocks", name)
    return {name: Block.from_dict(block) for name, block in found.items()}


def _plain(value: Any) -> Any:
    """Converts a dataclass to JSON's types, without the fields that have their default value."""
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if getattr(value, f.name) != f.default}


def _made(kind: Any, values: Any) -> Any:
    """Makes a dataclass of the values of its fields, and refuses unknown and missing ones."""
    if isinstance(values, kind):
        return values
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in check_mapping(kind.__name__, values).items()}
    known = {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(kind)}
    if unknown := sorted(given.keys() - known.keys()):
        raise FormatError(
            f"quantization_config: block: {kind.__name__} has unknown keys: {', '.join(map(shown, unknown[:3]))}",
            hint="pip install -U ternarize-cli",
        )
    if missing := [name for name, is_needed in known.items() if is_needed and name not in given]:
        raise FormatError(f"quantization_config: block: {kind.__name__} lacks {', '.join(missing)}")
    try:
        return kind(**given)
    except TypeError as e:
        raise FormatError(f"quantization_config: block: {kind.__name__}: {e}") from e
