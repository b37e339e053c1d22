"""Lays the blocks of an encoder out for the compiled library, and runs them.

Where the weights come from is left to a `BlockSource`: the file of a packed model (`packed_file`), or the modules of a
model in PyTorch (`kernels.native`). Both give equal bytes, so both give equal vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ternarize_cli.errors import CheckpointError, FormatError
from ternarize_cli.format.block import ACTIVATIONS, Block
from ternarize_cli.format.codecs import Codec
from ternarize_cli.runtime.native.interface import MAX_HEAD, Encoder, NativeLayer, NativeNorm, NativeNorms
from ternarize_cli.runtime.native.library import Library
from ternarize_cli.runtime.native.weights import NormWeights, PackedCodes
from ternarize_cli.runtime.positions import Turns, relative_bias, rotary_turns

__all__ = [
    "BATCH_TOKENS",
    "BlockSource",
    "Blocks",
    "PatchBiases",
    "Prepared",
    "StoredLinear",
    "head_refusal",
    "norm_weights",
]

BATCH_TOKENS = 8192
"""The most tokens in a batch, padding included where there is any: 32 texts of 256 tokens, or 512 texts of 16."""
_HALF = 16  # outputs of a gate that lie side by side with as many that it multiplies


class StoredLinear(NamedTuple):
    """A packed linear.

    Attributes:
        codec: the codec of its codes.
        rows: uint8 `[out, width]`, the packed codes.
        inputs: number of inputs.
        scale: float32 `[out]`.
        bias: float32 `[out]`; None for no bias.
    """

    codec: Codec
    rows: np.ndarray
    inputs: int
    scale: np.ndarray
    bias: np.ndarray | None


class BlockSource(Protocol):
    """Gives the weights of blocks by the names in their description.

    Attributes:
        block: the description.
    """

    block: Block

    def linear(self, i: int, name: str, inputs: int) -> StoredLinear:
        """Returns a linear of block `i`, which has so many inputs."""

    def norm(self, i: int | None, place: str, width: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns gain and shift, float32 `[width]` each, of a norm of block `i`, or of the model if `i` is None.

        None: there is no norm at that place.
        """

    def layer_scales(self, i: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns the factors, float32 `[width]`, of the outputs of attention and feed-forward; None for no factor."""

    def relative_table(self) -> np.ndarray | None:
        """Returns the table of relative positions, float32 `[buckets, heads]`; None if the blocks have none."""


class PatchBiases(NamedTuple):
    """The biases by patches of all blocks, for one size of images.

    Attributes:
        rows, columns: the number of rows and columns of patches.
        tables: for each block its biases, float32 `[heads, (2 * rows - 1) * (2 * columns - 1) + 3]`: by the rows and
            then the columns from query to key, both ascending; then of the first token as query, as key, and as both.
    """

    rows: int
    columns: int
    tables: list[np.ndarray]


@dataclass(frozen=True)
class Prepared:
    """The structure of an encoder for some positions, with the arrays that it points to.

    Who runs the encoder holds this while it runs: another thread may replace it by one for more positions.

    Attributes:
        encoder: the C structure.
        positions: the longest sequence that it has rotary positions for.
        turns: for each kind of block its cosines and sines; None where nothing is turned.
    """

    encoder: Encoder
    positions: int
    turns: Sequence[Turns | None]
    _kept: Any


def head_refusal(block: Block) -> str | None:
    """Says why the library can't run the attention of a block; None if it can."""
    return f"its heads are {block.head:,} wide, and {MAX_HEAD:,} is the most" if block.head > MAX_HEAD else None


class Blocks:
    """The blocks of an encoder in the library's layout.

    Attributes:
        block: the description of the blocks.
        library: the compiled library.
    """

    def __init__(self, library: Library, source: BlockSource) -> None:
        """Lays the weights out.

        Raises:
            CheckpointError: a norm or a table has another shape than the description says.
            FormatError: the linears don't fit each other, or the library takes no linear of their size.
        """
        self.library, self.block = library, source.block
        self._kept: list[Any] = []
        table = source.relative_table()
        given = self.block.relative
        self._bias = None if given is None or table is None else relative_bias(given, table, self.block.heads)
        self._layers = [self._layer(source, i) for i in range(len(self.block))]
        self._last = self._norm(source, None, "last", self.block.width)
        self._for_texts: Prepared | None = None
        library.trim()

    def for_texts(self, tokens: int) -> Prepared:
        """Returns the encoder for texts of up to `tokens` tokens."""
        found = self._for_texts
        if found is None or found.positions < tokens:
            positions = 1 << max(tokens - 1, 255).bit_length()
            turns = [None if k.rotary is None else rotary_turns(k.rotary, positions) for k in self.block.kinds]
            found = self._for_texts = self.prepared(turns, positions)
        return found

    def encode_texts(
        self, x: np.ndarray, lengths: Sequence[int] | np.ndarray, *, count: int | None = None
    ) -> np.ndarray:
        """Runs all blocks over the embeddings of texts, and writes the last hidden states over `x`.

        Args:
            x: float32 `[tokens, width]`, the embeddings of all texts, one after the other.
            lengths: the number of tokens of each text.
            count: the number of blocks that run; None: all.

        Returns:
            int32 `[texts + 1]`: the row of `x` where each text begins, then the row where the last ends.
        """
        starts = np.zeros(len(lengths) + 1, dtype=np.int32)
        np.cumsum(lengths, out=starts[1:])
        made = self.for_texts(int(max(lengths, default=0)))
        if count is not None:
            made = self.prepared(made.turns, made.positions, count=count)
        self.library.encode(made.encoder, starts, x)
        return starts

    def prepared(
        self,
        turns: Sequence[Turns | None],
        positions: int,
        biases: PatchBiases | None = None,
        count: int | None = None,
    ) -> Prepared:
        """Makes the structure of the encoder.

        Args:
            turns: for each kind of block its cosines and sines; None where nothing is turned.
            positions: the number of positions that they are for.
            biases: the biases by patches; None if there are none.
            count: the number of blocks that run; None: all.

        Raises:
            CheckpointError: cosines and sines have another shape.
        """
        block = self.block
        layers = (NativeLayer * len(self._layers[:count]))(*self._layers[:count])
        for layer, kind in zip(layers, block.kind_of, strict=False):
            turn = turns[kind]
            if turn is not None:
                layer.cos, layer.sin = turn[0].ctypes.data, turn[1].ctypes.data
        for layer, table in zip(layers, () if biases is None else biases.tables, strict=False):
            layer.bias = table.ctypes.data
        pairs = next((kind.rotary.numbers // 2 for kind in block.kinds if kind.rotary is not None), 0)
        for turn in turns:
            if turn is not None and not turn[0].shape == turn[1].shape == (positions, pairs):
                raise CheckpointError(
                    f"rotary positions are {list(turn[0].shape)}, and should be {[positions, pairs]}",
                    hint="fetch the model again",
                )
        reach = 0 if block.relative is None else block.relative.distance
        encoder = Encoder(
            *(len(layers), block.width, block.heads, block.key_value_heads, block.head, block.inner),
            *(block.gated, ACTIVATIONS.index(block.activation), positions, pairs, reach),
            *((0, 0) if biases is None else (biases.rows, biases.columns)),
            *(block.scale, self._last, layers),
        )
        return Prepared(encoder, positions, turns, (layers, biases, self))

    def _layer(self, source: BlockSource, i: int) -> NativeLayer:
        block, width = self.block, self.block.width
        kind = block.kinds[block.kind_of[i]]
        heads = block.heads * block.head
        qkv = [source.linear(i, name, width) for name in block.qkv]
        output = source.linear(i, block.output, heads)
        up = [source.linear(i, name, width) for name in block.up]
        down = source.linear(i, block.down, block.inner)
        by = source.layer_scales(i)
        norms = [
            NativeNorms(*(self._norm(source, i, f"{part}.{place}", width) for place in ("before", "after", "sum")))
            for part in ("attention", "feed_forward")
        ]
        of_heads = [self._norm(source, i, place, block.head) for place in ("query", "key")]
        return NativeLayer(
            *(self._packed(qkv), self._packed([output], by[0]), self._packed(up, gated=block.gated)),
            *(self._packed([down], by[1]), *norms, *of_heads),
            *(None, None, None if self._bias is None else self._bias.ctypes.data),
            *(-1 if seen is None else seen for seen in (kind.before, kind.after)),
        )

    def _norm(self, source: BlockSource, i: int | None, place: str, width: int) -> NativeNorm:
        found = norm_weights(source, i, place, width)
        if found is None:
            return NativeNorm()
        self._kept.append(found)
        return found.norm

    def _packed(self, linears: list[StoredLinear], by: np.ndarray | None = None, *, gated: bool = False) -> Any:
        """Lays out linears that read one input as a single linear, whose outputs are concatenated.

        Args:
            linears: the linears.
            by: float32 `[out]`, factors for the outputs, which scale and bias are multiplied by; None for no factors.
            gated: whether the first half of the outputs is a gate; its outputs then lie side by side with those that
                they multiply, 16 of each in turn.

        Returns:
            The C structure of the linear.
        """
        if len({linear.codec for linear in linears}) > 1:
            raise FormatError("linears that read one input have different codecs", hint="pack the model again")
        scale = np.concatenate([linear.scale for linear in linears])
        zeros = (np.zeros(len(linear.rows), dtype=np.float32) for linear in linears)
        bias = np.concatenate([z if m.bias is None else m.bias for m, z in zip(linears, zeros, strict=True)])
        if by is not None:
            scale, bias = scale * by, bias * by
        rows = linears[0].rows if len(linears) == 1 else np.concatenate([linear.rows for linear in linears])
        if gated:
            rows, scale, bias = (_side_by_side(a) for a in (rows, scale, bias))
        made = PackedCodes(self.library, linears[0].codec, rows, linears[0].inputs, scale, bias)
        self._kept.append(made)
        for linear in linears:
            self.library.rest(linear.rows)
        return made.linear


def norm_weights(source: BlockSource, i: int | None, place: str, width: int) -> NormWeights | None:
    """Returns a norm of block `i`, or of the model if `i` is None, for the library; None if there is none."""
    found = source.norm(i, place, width)
    if found is None:
        return None
    described = source.block.norms[place]
    return NormWeights(described.kind, *found, described.eps)


def _side_by_side(rows: np.ndarray) -> np.ndarray:
    """Orders `[2 * n, …]` rows so that 16 of the first half precede 16 of the second; both are filled up with zeros."""
    half = len(rows) // 2
    room = -(-half // _HALF) * _HALF
    made = np.zeros((2, room, *rows.shape[1:]), dtype=rows.dtype)
    made[0, :half], made[1, :half] = rows[:half], rows[half:]
    split = made.reshape(2, room // _HALF, _HALF, *rows.shape[1:])
    return np.ascontiguousarray(np.swapaxes(split, 0, 1)).reshape(2 * room, *rows.shape[1:])
