"""Runs a whole encoder in one call of the compiled library, on the tokens that are not padding."""

import logging
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ternarize_cli.errors import CheckpointError, TernarizeError
from ternarize_cli.format.block import ACTIVATIONS, Block
from ternarize_cli.kernels.block_check import disagreement
from ternarize_cli.kernels.fused_encoder import FusedForward, tables_of
from ternarize_cli.kernels.native.interface import MAX_HEAD, Encoder, NativeLayer, NativeNorm, NativeNorms
from ternarize_cli.kernels.native.library import Library, NormTensors, PackedCodes, library
from ternarize_cli.kernels.native.positions import (
    PatchBiases,
    Turns,
    patch_biases,
    patch_turns,
    relative_bias,
    rotary_turns,
)
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.layers import PackedLinear

__all__ = ["NativeEncoder", "NativeForward", "head_refusal", "tell_unfused"]

_HALF = 16  # outputs of a gate that lie side by side with as many that it multiplies
_IMAGE_SIZES = 8  # sizes of images whose positions are kept


_COMPARING = Lock()


def head_refusal(block: Block) -> str | None:
    """Says why the library can't run the attention of a block; None if it can."""
    return f"its heads are {block.head:,} wide, and {MAX_HEAD:,} is the most" if block.head > MAX_HEAD else None


class NativeForward(FusedForward):
    """Replaces a model's `forward` by a call of the compiled library."""

    backend, device = "native", "cpu"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._is_compared = False  # whether the model's modules gave the vectors of a fused encoder
        self._refused = ""  # why they did not

    def _make_encoder(self, model: nn.Module) -> "NativeEncoder | None":
        with _COMPARING:  # of several threads that call the model first, one compares, and the others wait
            if self._is_compared:
                return NativeEncoder(model)
            if self._refused:
                return None
            # A model that was in training when its backend was chosen, for example, could not be compared then.
            encoder, reason = self._compared(model)
            if encoder is None and not any(m.training for m in self._modules):  # dropout gives other vectors, too
                self._refused = reason
                tell_unfused(model, reason)
            return encoder

    def checked(self) -> str | None:
        """Lays the weights out, and says how the result differs from the model's modules (`block_check`).

        Returns None if it does not. A model that can't run fused now, such as one in training or on the meta device, is
        compared when it is first run fused.
        """
        model: Any = self._model
        generation = self._generation(model)
        if generation is None or next(model.parameters()).is_meta:
            return None
        encoder, reason = self._compared(model)
        if encoder is not None:
            self._encoder, self._made_of = encoder, generation
        return reason or None

    def _compared(self, model: nn.Module) -> tuple["NativeEncoder | None", str]:
        """Makes a fused encoder; returns None and the reason if the model's modules compute something else."""
        try:
            with torch.no_grad():
                encoder = NativeEncoder(model)
                reason = disagreement(model, encoder)
        except (TernarizeError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            return None, f"the description of its blocks does not fit it: {' '.join(str(e).split())[:200]}"
        self._is_compared = reason is None
        return (encoder, "") if reason is None else (None, reason)


def tell_unfused(model: nn.Module, reason: str) -> None:
    """Logs that a model runs linear by linear, and why."""
    logging.getLogger("ternarize_cli").warning("note: %s runs linear by linear: %s", type(model).__name__, reason)


class _Made(NamedTuple):
    """The structure of an encoder for some positions, with the tensors that it points to.

    Who runs the encoder holds this while it runs: another thread may replace it by one for more positions.
    """

    encoder: Encoder
    positions: int
    kept: Any


class NativeEncoder:
    """A model's blocks, and its embedding tables if they are int8, laid out for the compiled library."""

    def __init__(self, model: Any) -> None:
        """Lays out the weights of a model that `stack.refusal` and `head_refusal` accept.

        Raises:
            CheckpointError: a norm has another width than the model.
            FormatError: the linears don't fit each other, or the library takes no linear of their size.
        """
        self._lib: Library = library()
        self._model = model
        self._stack = Stack.of(model)
        self._block = block = self._stack.block
        self._kept: list[Any] = []
        given = block.relative
        self._bias = None if given is None else relative_bias(given, model.get_submodule(given.name), block.heads)
        self._layers = [self._layer(i) for i in range(len(block))]
        self._last = self._norm(None, "last", block.width)
        self._turned: dict[tuple[int, ...], _Made] = {}  # by the size of images; () for texts
        self._tables: list[tuple[Tensor, Tensor]] | None = None
        if block.embeddings is not None:
            tables = tables_of(model, block)
            self._tables = tables and [(table, _aligned(scale)) for table, scale in tables]
            self._embedding_norm = self._norm_tensors(None, "embeddings", block.width)
        self._lib.trim()

    def texts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """Encodes a batch of texts.

        Args:
            ids: int64 `[batch, tokens]`, ids of tokens.
            mask: int64 `[batch, tokens]`, 0 at padding; None means that there is no padding.
            types: int64 `[batch, tokens]`, token types; None means that all are 0.

        Returns:
            The last hidden states, float32 `[batch, tokens, width]`, with zeros at padding.
        """
        batch, tokens = ids.shape
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        full = bool(real.all())
        inputs = self._inputs(ids, types)
        rows = [(t.reshape(-1) if full else t[real]).long().contiguous() for t in inputs]
        if self._tables is None or not _are_rows_of(self._tables, rows):  # the modules raise an error for a bad id
            x = self._embedded(inputs)
            x = x.flatten(0, 1) if full else x[real]
        else:
            x = self._lib.embed(self._tables, rows, self._embedding_norm)
        starts = torch.zeros(batch + 1, dtype=torch.int32, device="cpu")
        starts[1:] = real.sum(dim=1).cumsum(dim=0)
        x = x.contiguous()
        made = self._for_texts(tokens)
        self._lib.encode(made.encoder, starts, x)
        if full:
            full_batch: Tensor = x.view(batch, tokens, x.shape[1])
            return full_batch
        padded = torch.zeros(batch, tokens, x.shape[1], dtype=torch.float32, device="cpu")
        padded[real] = x
        return padded

    def images(self, pixels: Tensor) -> Tensor:
        """Encodes images `[batch, channels, height, width]`: hidden states, float32 `[batch, patches, width]`."""
        x = self._model.embeddings(pixels)
        norm = self._stack.norm(None, "embeddings")
        x = x if norm is None else norm(x)
        starts = torch.arange(len(x) + 1, dtype=torch.int32, device="cpu") * x.shape[1]
        rows = torch.empty(len(x) * x.shape[1], x.shape[2], dtype=torch.float32, device="cpu")
        rows.view(x.shape).copy_(x)
        made = self._for_images(pixels, x.shape[1])
        self._lib.encode(made.encoder, starts, rows)
        return rows.view(x.shape)

    def first_blocks(self, count: int, ids: Tensor | None, mask: Tensor | None, pixels: Tensor | None) -> Tensor:
        """Computes the hidden states after the first `count` blocks and the last norm, of texts or images.

        Nothing that this lays out is kept.
        """
        whole = self._layers
        self._layers = whole[:count]
        try:
            if pixels is not None:
                return self.images(pixels)
            assert ids is not None
            return self.texts(ids, mask, None)
        finally:
            self._layers = whole
            self._turned.clear()

    # -- embeddings ----------------------------------------------------------------------------------------------------

    def _inputs(self, ids: Tensor, types: Tensor | None) -> list[Tensor]:
        """Lists for each table of the embedding the rows that are looked up: int64 `[batch, tokens]` each."""
        given = self._block.embeddings
        assert given is not None
        found = [ids]
        if given.types is not None:
            found.append(torch.zeros_like(ids) if types is None else types)
        if given.positions is not None and given.first_position:  # counted without the padding token, as in RoBERTa
            counted = (ids != given.first_position - 1).long()
            found.append(counted.cumsum(dim=1) * counted + given.first_position - 1)
        elif given.positions is not None:
            found.append(torch.arange(ids.shape[1], device="cpu").expand(ids.shape))
        return found

    def _embedded(self, inputs: list[Tensor]) -> Tensor:
        """Computes the embedding with the model's own modules: float32 `[batch, tokens, width]`."""
        given = self._block.embeddings
        assert given is not None
        names = [name for name in (given.words, given.types, given.positions) if name is not None]
        parts: list[Tensor] = [self._model.get_submodule(name)(rows) for name, rows in zip(names, inputs, strict=True)]
        x = sum(parts[1:], parts[0])
        norm = self._stack.norm(None, "embeddings")
        made: Tensor = (x if norm is None else norm(x)).detach().float()
        return made

    # -- the library's structures --------------------------------------------------------------------------------------

    def _for_texts(self, tokens: int) -> _Made:
        """Returns the encoder for texts of up to `tokens` tokens."""
        found = self._turned.get(())
        if found is None or found.positions < tokens:
            positions = 1 << max(tokens - 1, 255).bit_length()
            turns = [None if k.rotary is None else rotary_turns(k.rotary, positions) for k in self._block.kinds]
            found = self._turned[()] = self._made(turns, positions)
        return found

    def _for_images(self, pixels: Tensor, tokens: int) -> _Made:
        """Returns the encoder for images of the size of `pixels`."""
        size = tuple(pixels.shape[-2:])
        if all(kind.rotary is None for kind in self._block.kinds) and self._block.patch_bias is None:
            size = ()
        found = self._turned.get(size)
        if found is None:
            if len(self._turned) >= _IMAGE_SIZES:
                self._turned.clear()
            turned = [kind.rotary is not None for kind in self._block.kinds]
            turns = [patch_turns(self._model, pixels, tokens) if is_turned else None for is_turned in turned]
            biases = patch_biases(self._model, self._stack, pixels, tokens)
            found = self._turned[size] = self._made(turns, tokens, biases)
        return found

    def _made(self, turns: list[Turns | None], positions: int, biases: PatchBiases | None = None) -> _Made:
        block = self._block
        layers = (NativeLayer * len(self._layers))(*self._layers)
        for layer, kind in zip(layers, block.kind_of, strict=False):
            turn = turns[kind]
            if turn is not None:
                layer.cos, layer.sin = turn[0].data_ptr(), turn[1].data_ptr()
        for layer, table in zip(layers, () if biases is None else biases.tables, strict=False):
            layer.bias = table.data_ptr()
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
        return _Made(encoder, positions, (turns, layers, biases))

    def _layer(self, i: int) -> NativeLayer:
        block, width = self._block, self._block.width
        qkv, output, up, down = self._stack.joined(i)
        by = self._stack.layer_scales(i)
        kind = block.kinds[block.kind_of[i]]
        norms = [
            NativeNorms(*(self._norm(i, f"{part}.{place}", width) for place in ("before", "after", "sum")))
            for part in ("attention", "feed_forward")
        ]
        heads = [self._norm(i, place, block.head) for place in ("query", "key")]
        return NativeLayer(
            *(self._packed(qkv), self._packed([output], by[0]), self._packed(up, gated=block.gated)),
            *(self._packed([down], by[1]), *norms, *heads),
            *(None, None, None if self._bias is None else self._bias.data_ptr()),
            *(-1 if seen is None else seen for seen in (kind.before, kind.after)),
        )

    def _norm(self, i: int | None, place: str, width: int) -> NativeNorm:
        found = self._norm_tensors(i, place, width)
        return NativeNorm() if found is None else found.norm

    def _norm_tensors(self, i: int | None, place: str, width: int) -> NormTensors | None:
        found = self._stack.gain(i, place, width)
        if found is None:
            return None
        norm = self._block.norms[place]
        made = NormTensors(norm.kind, *found, norm.eps)
        self._kept.append(made)
        return made

    def _packed(self, layers: list[PackedLinear], by: Tensor | None = None, *, gated: bool = False) -> Any:
        """Lays out linears that read one input as a single linear, whose outputs are concatenated.

        Args:
            layers: the linears.
            by: float32 `[out]`, factors for the outputs, which scale and bias are multiplied by; None for no factors.
            gated: whether the first half of the outputs is a gate; its outputs then lie side by side with those that
                they multiply, 16 of each in turn.

        Returns:
            The C structure of the linear.
        """
        scale = torch.cat([m.weight_scale.float().flatten().expand(m.out_features) for m in layers])
        zeros = [m.weight_scale.new_zeros(m.out_features, dtype=torch.float32) for m in layers]
        bias = torch.cat([z if m.bias is None else m.bias.float() for m, z in zip(layers, zeros, strict=True)])
        if by is not None:
            scale, bias = scale * by, bias * by
        rows = torch.cat([m.weight for m in layers])
        if gated:
            rows, scale, bias = (_side_by_side(t) for t in (rows, scale, bias))
        made = PackedCodes(self._lib, layers[0].codec, rows, layers[0].in_features, scale, bias)
        self._kept.append(made)
        for m in layers:
            self._lib.rest(m.weight)
        return made.linear


def _side_by_side(rows: Tensor) -> Tensor:
    """Orders `[2 * n, …]` rows so that 16 of the first half precede 16 of the second; both are filled up with zeros."""
    half = len(rows) // 2
    room = -(-half // _HALF) * _HALF
    made = rows.new_zeros(2, room, *rows.shape[1:])
    made[0, :half], made[1, :half] = rows[:half], rows[half:]
    laid: Tensor = made.unflatten(1, (room // _HALF, _HALF)).transpose(0, 1).flatten(0, 2).contiguous()
    return laid


def _aligned(tensor: Tensor) -> Tensor:
    """Returns a tensor at an address that its dtype needs: a copy, if it is mapped from an odd place in a file."""
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _are_rows_of(tables: list[tuple[Tensor, Tensor]], ids: list[Tensor]) -> bool:
    return all(
        not rows.numel() or (int(rows.min()) >= 0 and int(rows.max()) < len(table))
        for (table, _), rows in zip(tables, ids, strict=True)
    )
