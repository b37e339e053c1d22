"""Replaces the `forward` of models that a backend can run fused: those whose blocks are described (`stack`).

Calls that need inner values (hidden states, attentions, hooks) or have unusual arguments run through the model's own
modules.
"""

import inspect
import logging
import typing
from abc import ABC, abstractmethod
from operator import attrgetter
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ternarize_cli.errors import CheckpointError
from ternarize_cli.format.block import Block
from ternarize_cli.kernels import FirstForward
from ternarize_cli.kernels.pooled_output import pooled_output
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.layers import ROW_FACTOR_HOOK, Packed, PackedEmbedding, PackedLinear
from ternarize_cli.layers.forks import before_forward
from ternarize_cli.layers.operators import number_of

__all__ = ["FusedEncoder", "FusedForward", "output_kinds", "tables_of", "tell_unfused"]

_KNOWN_HOOKS = ("output_capturing_hook", ROW_FACTOR_HOOK)
"""Names of the hooks that change nothing here: transformers' own, and the factor of embeddings."""
_HOOKS, _PRE_HOOKS = attrgetter("_forward_hooks"), attrgetter("_forward_pre_hooks")
_TEXT = {"input_ids", "attention_mask"}
_IMAGES = {"pixel_values"}
_POOLS_ITS_LAST_TOKEN = ("SiglipTextModel",)
"""Models that pool the last token, even if it is padding, whose hidden state is not computed here."""


class FusedEncoder(Protocol):
    """A model's embeddings and blocks in the memory layout of a backend."""

    def texts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """Encodes a batch of texts.

        Args:
            ids: int64 `[batch, tokens]`, ids of tokens.
            mask: int64 `[batch, tokens]`, 0 at padding; None means that there is no padding.
            types: int64 `[batch, tokens]`, token types; None means that all are 0.

        Returns:
            The last hidden states, float32 `[batch, tokens, width]`.
        """

    def images(self, pixels: Tensor) -> Tensor:
        """Encodes images, float `[batch, channels, height, width]`.

        Returns:
            The hidden states after the last layer norm, float32 `[batch, patches, width]`.
        """


class FusedForward(ABC):
    """Replaces a model's `forward`; the first call lays the weights out for the backend.

    A copy or a pickle of this object lays them out again when it is first called.

    Attributes:
        backend: the name of the backend.
        device: the type of the device that the backend runs on: "cpu" or "cuda".
        closes_holes: whether tokens that a mask leaves out between others make those move together.
    """

    backend: str
    device: str
    closes_holes = True

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._encoder: FusedEncoder | None = None
        self._made_of: int | None = None
        self._modules = list(model.modules())
        self._known, self._looked = self._looked_up(), Packed.changes
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))
        # a class around the encoder, such as a classifier, calls it with arguments by position
        self._positions = tuple(self.__signature__.parameters)
        self._block = block = Stack.of(model).block
        # Where real tokens alone are computed, side by side, a hole would close, which places in a text would notice.
        self._counts_places = self.closes_holes and block.counts_places
        text = _TEXT | ({"token_type_ids"} if block.embeddings and block.embeddings.types else set())
        self._reads = text if block.embeddings else _IMAGES
        self._output = next(iter(output_kinds(model)), BaseModelOutputWithPooling)
        self._number = number_of(self._last_hidden_states)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_encoder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._number = number_of(self._last_hidden_states)

    @property
    def __code__(self) -> Any:
        """The code of `__call__`: torch.export asks each `forward` for the place where it was written."""
        return type(self).__call__.__code__

    @abstractmethod
    def _make_encoder(self, model: nn.Module) -> FusedEncoder | None:
        """Lays out a model that `refusal` accepts for the backend; returns None if its modules have to run instead."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Computes what the model's own `forward` computes, and takes its arguments."""
        named = {**dict(zip(self._positions, arguments, strict=False)), **options}
        given = {name: value for name, value in named.items() if value is not None}
        if torch.compiler.is_compiling():
            return self._compiled(given)
        before_forward()
        model: Any = self._model
        if self._looked != Packed.changes and self._has_moved():
            model.forward = FirstForward(model, "auto")
            return model.forward(*arguments, **options)
        first = given.get("pixel_values" if self._reads == _IMAGES else "input_ids")
        generation = self._generation(model)
        if not isinstance(first, Tensor) or not self._is_plain(given) or generation is None:
            return type(model).forward(model, *arguments, **options)
        with torch.no_grad():
            encoder = self._encoder
            if encoder is None or self._made_of != generation:
                encoder = self._make_encoder(model)
                self._encoder, self._made_of = encoder, generation
            if encoder is None:
                return type(model).forward(model, *arguments, **options)
            if self._reads == _IMAGES:
                hidden = encoder.images(first)
            else:
                hidden = encoder.texts(first, given.get("attention_mask"), given.get("token_type_ids"))
            return self._with_pooled(hidden, first)

    def _with_pooled(self, hidden: Tensor, first: Tensor) -> Any:
        """Returns the model's output: the hidden states, and what the model pools from them.

        Args:
            hidden: the last hidden states, `[batch, tokens, width]`.
            first: the ids of the tokens, or the pixels.
        """
        pooled = pooled_output(self._model, hidden, first)
        kind: Any = self._output
        return kind(last_hidden_state=hidden, **({} if pooled is None else {"pooler_output": pooled}))

    def _compiled(self, given: dict[str, Any]) -> Any:
        """Computes what `__call__` computes, as a graph that has one operator in place of the encoder."""
        model: Any = self._model
        first = given.get("pixel_values" if self._reads == _IMAGES else "input_ids")
        if first is None or model.training or not self._is_plain(given):
            return type(model).forward(model, **given)
        names = sorted([n for n in given if n in self._reads], key=lambda name: (given[name] is not first, name))
        tokens = _tokens_of(model, first) if self._reads == _IMAGES else 0
        if tokens is None:
            return type(model).forward(model, **given)
        hidden = torch.ops.ternarize.encode(
            [given[name] for name in names], " ".join(names), self._number, tokens, self._block.width
        )
        return self._with_pooled(hidden, first)

    def _last_hidden_states(self, **inputs: Tensor) -> Tensor:
        hidden: Tensor = self(**inputs).last_hidden_state
        return hidden

    def _is_plain(self, given: dict[str, Any]) -> bool:
        """Returns whether a call asks only for the last hidden states, and gives tensors on the backend's device."""
        config: Any = self._model.config
        asked = {name for name, value in given.items() if name not in self._reads and value is not False}
        if given.get("return_dict") is False or getattr(config, "return_dict", True) is False:
            return False
        if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
            return False
        mask = given.get("attention_mask")
        if type(self._model).__name__ in _POOLS_ITS_LAST_TOKEN and isinstance(mask, Tensor) and not bool(mask.all()):
            return False
        ids = given.get("input_ids")
        if isinstance(ids, Tensor) and ids.is_floating_point():
            return False
        if self._counts_places and isinstance(mask, Tensor) and _has_hole(mask):
            return False
        tensors = [value for name, value in given.items() if name in self._reads]
        return asked <= {"return_dict"} and all(
            isinstance(t, Tensor)
            and t.device.type == self.device
            and not t.requires_grad
            and t.shape == tensors[0].shape
            for t in tensors
        )

    def _generation(self, model: nn.Module) -> int | None:
        """Returns the sum of the packed layers' `generation`, which grows when weights are loaded or moved.

        Returns None if the model can't run fused now: it is not float32 on the backend's device, is training, has
        layers of other backends, or has hooks but `_KNOWN_HOOKS`.
        What can change only together with `Packed.changes` is checked only when that count has changed.
        """
        some = any(map(_HOOKS, self._modules)) or any(map(_PRE_HOOKS, self._modules))
        if model.training or (some and any(_is_hooked(m) for m in self._modules)):
            return None
        if self._looked != Packed.changes:
            self._modules = list(model.modules())
            self._known, self._looked = self._looked_up(), Packed.changes
        return self._known

    def _has_moved(self) -> bool:
        """Returns whether packed layers wait for a new choice of backend, since they were moved to another device."""
        return any(isinstance(m, PackedLinear) and m.backend == "auto" for m in self._model.modules())

    def _looked_up(self) -> int | None:
        for m in self._modules:
            if isinstance(m, PackedLinear) and m.backend != self.backend:
                return None
            given = (p for p in m._parameters.values() if p is not None)
            if any(p.dtype != torch.float32 or p.device.type != self.device for p in given):
                return None
        return sum(m.generation for m in self._modules if isinstance(m, Packed))


def output_kinds(model: nn.Module) -> list[type[Any]]:
    """Lists the classes of what a model's own `forward` returns, by its annotation; none if it has none to resolve."""
    try:
        returned = typing.get_type_hints(type(model).forward).get("return")
    except NameError:  # an annotation that only type checkers can resolve
        return []
    return [kind for kind in (returned, *typing.get_args(returned)) if hasattr(kind, "__dataclass_fields__")]


def _tokens_of(model: Any, pixels: Tensor) -> int | None:
    """Returns the number of tokens of an image: its patches, the CLS token and its like, and DINOv2's registers.

    Returns None for a model that does not tell it in the way of ViT and DINOv2.
    """
    embeddings: Any = model.embeddings
    patches: Any = getattr(embeddings, "patch_embeddings", None)
    if not hasattr(patches, "num_patches") or not hasattr(embeddings, "position_embeddings"):
        return None
    high, wide = (n // size for n, size in zip(pixels.shape[-2:], patches.patch_size, strict=True))
    positions = embeddings.position_embeddings  # None in a BEiT whose positions are all relative
    before = embeddings.cls_token.shape[1] if positions is None else positions.shape[1] - patches.num_patches
    registers: int = embeddings.register_tokens.shape[1] if hasattr(embeddings, "register_tokens") else 0
    return int(high * wide + before + registers)


def _has_hole(mask: Tensor) -> bool:
    """Returns whether a row of a mask `[batch, tokens]` has zeros between ones."""
    real = mask.bool()
    if mask.dim() != 2 or bool(real.all()):
        return False
    starts = (real[:, 1:] & ~real[:, :-1]).sum(dim=1) + real[:, 0]
    return bool((starts > 1).any())


def _is_hooked(m: nn.Module) -> bool:
    if not m._forward_hooks and not m._forward_pre_hooks:
        return False
    hooks = (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    return any(getattr(hook, "__name__", "") not in _KNOWN_HOOKS for hook in hooks)


def tables_of(model: nn.Module, block: Block) -> list[tuple[Tensor, Tensor]] | None:
    """Returns the tables of a text model's embedding, in the order words, types, positions, without those it lacks.

    Each is int8 `[rows, width]`, with its scales, float32 `[rows]`, which have the factor of the embedding.

    Returns None if a table is not packed in 8 bits.

    Raises:
        CheckpointError: a table has another width than the blocks.
    """
    given = block.embeddings
    assert given is not None
    found: list[Any] = [model.get_submodule(n) for n in (given.words, given.types, given.positions) if n is not None]
    if not all(isinstance(table, PackedEmbedding) and table.table_bits == 8 for table in found):
        return None
    for table in found:
        if table.embedding_dim != block.width:
            raise CheckpointError(
                f"an embedding table is {table.embedding_dim} wide, and the blocks {block.width}",
                hint="fetch the model again",
            )
    factors = [given.factor, 1.0, 1.0]
    return [(t.weight, t.weight_scale.float().flatten() * factor) for t, factor in zip(found, factors, strict=False)]


def tell_unfused(model: nn.Module, reason: str) -> None:
    """Logs that a model runs linear by linear, and why."""
    logging.getLogger("ternarize_cli").warning("note: %s runs linear by linear: %s", type(model).__name__, reason)
