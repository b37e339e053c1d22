"""Runs a whole encoder in one call of the compiled library, on the tokens that are not padding."""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.errors import CheckpointError
from ternarize_cli.kernels.fused_encoder import (
    FusedForward,
    blocks_of,
    layer_scales,
    linears_of,
    norm_first,
    norms_of,
    tables_of,
)
from ternarize_cli.kernels.native.interface import MAX_HEAD
from ternarize_cli.kernels.native.library import Encoder, Library, NativeLayer, PackedCodes, library
from ternarize_cli.layers import PackedLinear

__all__ = ["NativeEncoder", "NativeForward", "head_refusal"]


def head_refusal(model: Any) -> str | None:
    """Says why the library can't run the attention of a model that `refusal` accepts; None if it can."""
    width, heads = linears_of(blocks_of(model)[0])[0].in_features, model.config.num_attention_heads
    if isinstance(heads, int) and heads > 0 and width // heads > MAX_HEAD:
        return f"its heads are {width // heads:,} wide, and {MAX_HEAD:,} is the most"
    return None


class NativeForward(FusedForward):
    """Replaces a model's `forward` by a call of the compiled library."""

    backend, device = "native", "cpu"

    def _make_encoder(self, model: nn.Module) -> "NativeEncoder":
        return NativeEncoder(model)


class NativeEncoder:
    """A model's blocks, and its embedding tables if they are int8, laid out for the compiled library."""

    def __init__(self, model: Any) -> None:
        """Lays out the weights of a model that `refusal` and `head_refusal` accept.

        Raises:
            CheckpointError: the number of heads does not divide the width, the epsilon of the layer norms is no small
                positive number, or a layer norm has another width than the model.
            FormatError: the linears don't fit each other, or the library takes no linear of their size.
        """
        self._lib: Library = library()
        self._model = model
        self._kept: list[Any] = []
        blocks = blocks_of(model)
        width, inner = linears_of(blocks[0])[0].in_features, linears_of(blocks[0])[4].out_features
        heads, eps = _heads(model.config, width), _epsilon([norm for block in blocks for norm in norms_of(block)])
        layers = (NativeLayer * len(blocks))(*(self._layer(block, width) for block in blocks))
        self._encoder = Encoder(len(blocks), width, heads, inner, norm_first(blocks[0]), eps, layers)
        self._kept.append(layers)
        self._tables = tables_of(model.embeddings)
        if self._tables is not None:
            self._tables = [(table, _aligned(scale)) for table, scale in self._tables]
            norm = model.embeddings.LayerNorm
            self._norm = (*_norm_tensors(norm, width), _epsilon([norm]))
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
        places = torch.arange(tokens, device="cpu").expand(batch, tokens)
        kinds = torch.zeros_like(ids) if types is None else types
        rows = [(t.reshape(-1) if full else t[real]).long().contiguous() for t in (ids, kinds, places)]
        if self._tables is None or not _are_rows_of(self._tables, rows):  # the modules raise an error for a bad id
            x = self._model.embeddings(input_ids=ids, token_type_ids=types).float()
            x = x.flatten(0, 1) if full else x[real]
        else:
            x = self._lib.embed(self._tables, rows, self._norm)
        starts = torch.zeros(batch + 1, dtype=torch.int32, device="cpu")
        starts[1:] = real.sum(dim=1).cumsum(dim=0)
        x = x.contiguous()
        self._lib.encode(self._encoder, starts, x)
        if full:
            full_batch: Tensor = x.view(batch, tokens, x.shape[1])
            return full_batch
        made = torch.zeros(batch, tokens, x.shape[1], dtype=torch.float32, device="cpu")
        made[real] = x
        return made

    def images(self, pixels: Tensor) -> Tensor:
        """Encodes images `[batch, channels, height, width]`: hidden states, float32 `[batch, patches, width]`."""
        x = self._model.embeddings(pixels)
        starts = torch.arange(len(x) + 1, dtype=torch.int32, device="cpu") * x.shape[1]
        made = x.detach().float().reshape(-1, x.shape[-1]).clone()
        self._lib.encode(self._encoder, starts, made)
        hidden: Tensor = self._model.layernorm(made.view(x.shape))
        return hidden

    def _layer(self, block: nn.Module, width: int) -> NativeLayer:
        q, k, v, output, up, down = linears_of(block)
        first, second = norms_of(block)
        by = layer_scales(block)
        norms = [t for norm in (first, second) for t in _norm_tensors(norm, width)]
        self._kept.append(norms)
        return NativeLayer(
            self._packed([q, k, v], None),
            self._packed([output], by[0]),
            self._packed([up], None),
            self._packed([down], by[1]),
            *(t.data_ptr() for t in norms),
        )

    def _packed(self, layers: list[PackedLinear], by: Tensor | None) -> ctypes.Structure:
        """Lays out linears that read one input as a single linear, whose outputs are concatenated.

        Args:
            layers: the linears.
            by: float32 `[out]`, factors for the outputs, which scale and bias are multiplied by; None for no factors.

        Returns:
            The C structure of the linear.
        """
        scale = torch.cat([m.weight_scale.float().flatten().expand(m.out_features) for m in layers])
        bias = torch.cat([torch.zeros(m.out_features) if m.bias is None else m.bias.float() for m in layers])
        if by is not None:
            scale, bias = scale * by, bias * by
        rows = torch.cat([m.weight for m in layers])
        made = PackedCodes(self._lib, layers[0].codec, rows, layers[0].in_features, scale, bias)
        self._kept.append(made)
        for m in layers:
            self._lib.rest(m.weight)
        return made.linear


def _heads(config: Any, width: int) -> int:
    heads = config.num_attention_heads
    if isinstance(heads, bool) or not isinstance(heads, int) or heads < 1 or width % heads:
        raise CheckpointError(
            f"num_attention_heads is {heads!r}, which does not divide the width {width}", hint="fetch the model again"
        )
    return heads


def _epsilon(norms: list[nn.LayerNorm]) -> float:
    found = {norm.eps for norm in norms}
    eps = next(iter(found))
    if len(found) > 1 or not isinstance(eps, float) or not math.isfinite(eps) or not 1e-37 < eps < 1:
        values = ", ".join(repr(value) for value in found)
        raise CheckpointError(
            f"layer_norm_eps is {values}; it is one small positive number", hint="fetch the model again"
        )
    return eps


def _norm_tensors(norm: nn.LayerNorm, width: int) -> tuple[Tensor, Tensor]:
    if norm.weight.shape != (width,) or norm.bias.shape != (width,):
        raise CheckpointError(
            f"a layer norm is {list(norm.weight.shape)} wide in a model of width {width}", hint="fetch the model again"
        )
    gain, bias = (_aligned(t.detach().float().contiguous()) for t in (norm.weight, norm.bias))
    return gain, bias


def _aligned(tensor: Tensor) -> Tensor:
    """Returns a tensor at an address that its dtype needs: a copy, if it is mapped from an odd place in a file."""
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _are_rows_of(tables: list[tuple[Tensor, Tensor]], ids: list[Tensor]) -> bool:
    return all(
        not rows.numel() or (int(rows.min()) >= 0 and int(rows.max()) < len(table))
        for (table, _), rows in zip(tables, ids, strict=True)
    )
