"""Runs a whole encoder of PyTorch in one call of the compiled library, on the tokens that are not padding."""

from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ternarize_cli.errors import TernarizeError
from ternarize_cli.format.block import Block
from ternarize_cli.kernels.block_check import disagreement
from ternarize_cli.kernels.fused_encoder import FusedForward, tables_of, tell_unfused
from ternarize_cli.kernels.module_tensors import is_replaced
from ternarize_cli.kernels.native.image_parts import image_blocks
from ternarize_cli.kernels.native.library_modules import is_marked, mark
from ternarize_cli.kernels.native.positions import patch_biases, patch_turns
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.layers import PackedLinear
from ternarize_cli.runtime.blocks import Blocks, Prepared, StoredLinear, norm_weights
from ternarize_cli.runtime.native.library import library

__all__ = ["ModuleSource", "NativeEncoder", "NativeForward"]

_IMAGE_SIZES = 8  # sizes of images whose positions are kept
_COMPARING = Lock()


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

    def _with_pooled(self, hidden: Tensor, first: Tensor) -> Any:
        made = super()._with_pooled(hidden, first)
        pooled = None if torch.compiler.is_compiling() else getattr(made, "pooler_output", None)
        if pooled is not None and is_marked(hidden):
            mark(pooled)
        return made

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


class ModuleSource:
    """Gives the weights of a model's blocks from its modules, as `runtime.blocks.BlockSource` asks for them.

    Attributes:
        block: the description of the blocks.
    """

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.block: Block = stack.block

    def linear(self, i: int, name: str, inputs: int) -> StoredLinear:
        """Returns a linear of block `i`; its number of inputs is that of the module."""
        layer: PackedLinear = self._stack.linears(i)[self.block.linears.index(name)]
        scale = layer.weight_scale.detach().float().flatten().expand(layer.out_features)
        bias = None if layer.bias is None else layer.bias.detach().float().numpy()
        return StoredLinear(layer.codec, layer.weight.numpy(), layer.in_features, scale.numpy(), bias)

    def norm(self, i: int | None, place: str, width: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Returns gain and shift, float32 `[width]` each, of a norm of block `i`, or of the model if `i` is None.

        Raises:
            CheckpointError: the norm has another width.
        """
        found = self._stack.gain(i, place, width)
        return None if found is None else (found[0].numpy(), found[1].numpy())

    def layer_scales(self, i: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Returns the factors, float32 `[width]`, of the outputs of attention and feed-forward; None for no factor."""
        attention, feed_forward = (None if by is None else by.numpy() for by in self._stack.layer_scales(i))
        return attention, feed_forward

    def relative_table(self) -> np.ndarray | None:
        """Returns the table of relative positions, float32 `[buckets, heads]`; None if the blocks have none."""
        found = self._stack.relative_table()
        return None if found is None else found.numpy()


class NativeEncoder:
    """A model's blocks, and its embedding tables if they are int8, laid out for the compiled library."""

    def __init__(self, model: Any) -> None:
        """Lays out the weights of a model that `stack.refusal` and `head_refusal` accept.

        Raises:
            CheckpointError: a norm has another width than the model.
            FormatError: the linears don't fit each other, or the library takes no linear of their size.
        """
        self._lib = library()
        self._model = model
        self._stack = Stack.of(model)
        self._block = block = self._stack.block
        source = ModuleSource(self._stack)
        self._blocks = Blocks(self._lib, source)
        self._count: int | None = None  # of the blocks that run; None: all
        self._turned: dict[tuple[int, ...], Prepared] = {}  # by the size of images
        self._tables: list[tuple[np.ndarray, np.ndarray]] | None = None
        if block.embeddings is not None:
            tables = tables_of(model, block)
            if tables is not None:
                self._tables = [(rows.numpy(), np.require(scale.numpy(), None, ["C", "A"])) for rows, scale in tables]
        self._embedding_norm = norm_weights(source, None, "embeddings", block.width)
        is_image = block.embeddings is None
        self._images = image_blocks(model, self._stack, self._blocks, self._embedding_norm) if is_image else None
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
        rows = [(t.reshape(-1) if full else t[real]).long().contiguous().numpy() for t in inputs]
        if self._tables is None or not _are_rows_of(self._tables, rows):  # the modules raise an error for a bad id
            x = self._embedded(rows)
        else:
            x = self._lib.embed(self._tables, rows, self._embedding_norm)
        self._blocks.encode_texts(x, real.sum(dim=1).numpy(), count=self._count)
        made = torch.from_numpy(x)
        if full:
            return mark(made.view(batch, tokens, made.shape[1]))
        padded = torch.zeros(batch, tokens, made.shape[1], dtype=torch.float32, device="cpu")
        padded[real] = made
        return mark(padded)

    def images(self, pixels: Tensor) -> Tensor:
        """Encodes images `[batch, channels, height, width]`: hidden states, float32 `[batch, patches, width]`."""
        if (
            self._images is not None
            and self._images.takes(tuple(pixels.shape))
            and not is_replaced(self._model.embeddings)
        ):
            rows, _ = self._images(pixels.float().contiguous().numpy(), self._count)
            return mark(torch.from_numpy(rows).view(len(pixels), -1, self._block.width))
        x = self._model.embeddings(pixels)
        norm = self._stack.norm(None, "embeddings")
        x = x if norm is None else norm(x)
        starts = np.arange(len(x) + 1, dtype=np.int32) * x.shape[1]
        rows = x.flatten(0, 1).float().contiguous().clone().numpy()
        made = self._for_images(pixels, x.shape[1])
        self._lib.encode(made.encoder, starts, rows)
        return mark(torch.from_numpy(rows).view(x.shape))

    def first_blocks(self, count: int, ids: Tensor | None, mask: Tensor | None, pixels: Tensor | None) -> Tensor:
        """Computes the hidden states after the first `count` blocks and the last norm, of texts or images.

        Nothing that this lays out is kept.
        """
        self._count = count
        try:
            if pixels is not None:
                return self.images(pixels)
            assert ids is not None
            return self.texts(ids, mask, None)
        finally:
            self._count = None
            self._turned.clear()

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

    def _embedded(self, rows: list[np.ndarray]) -> np.ndarray:
        """Computes the embedding from rows that the model's own tables give: float32 `[tokens, width]`.

        Args:
            rows: for each table of the embedding the rows that are looked up: int64 `[tokens]` each.
        """
        given = self._block.embeddings
        assert given is not None
        names = [name for name in (given.words, given.types, given.positions) if name is not None]
        found = [self._model.get_submodule(n)(torch.from_numpy(r)).detach() for n, r in zip(names, rows, strict=True)]
        x: np.ndarray = sum(found[1:], found[0]).float().contiguous().numpy()
        if self._embedding_norm is not None:
            self._lib.norm(self._embedding_norm, x)
        return x

    def _for_images(self, pixels: Tensor, tokens: int) -> Prepared:
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
            found = self._turned[size] = self._blocks.prepared(turns, tokens, biases, self._count)
        return found


def _are_rows_of(tables: list[tuple[np.ndarray, np.ndarray]], ids: list[np.ndarray]) -> bool:
    return all(
        not rows.size or (int(rows.min()) >= 0 and int(rows.max()) < len(table))
        for (table, _), rows in zip(tables, ids, strict=True)
    )
