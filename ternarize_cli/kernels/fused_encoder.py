"""Recognises models that a backend can run fused, and replaces their `forward`.

A model can run fused if its blocks are of a known kind: attention of queries, keys and values of full width, and a
feed-forward of two linears with GELU, each with a residual and a layer norm before (ViT, DINOv2) or after it (BERT,
RoBERTa, multilingual E5, …). Calls that need inner values (hidden states, attentions, hooks) or have unusual arguments
run through the model's own modules.
"""

import inspect
from abc import ABC, abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ternarize_cli.kernels import FirstForward
from ternarize_cli.layers import Packed, PackedEmbedding, PackedLinear
from ternarize_cli.layers.forks import before_forward
from ternarize_cli.layers.operators import number_of

__all__ = [
    "FusedEncoder",
    "FusedForward",
    "blocks_of",
    "layer_scales",
    "linears_of",
    "norm_first",
    "norms_of",
    "refusal",
    "tables_of",
]

_AFTER = ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer", "ErnieLayer")
_BEFORE = ("ViTLayer", "DeiTLayer", "Dinov2Layer", "Dinov2WithRegistersLayer")
_MODELS = (
    *("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel", "ErnieModel"),
    *("ViTModel", "DeiTModel", "Dinov2Model", "Dinov2WithRegistersModel"),
)
_TRANSFORMERS_HOOK = "output_capturing_hook"
_TEXT = {"input_ids", "attention_mask", "token_type_ids"}
_IMAGES = {"pixel_values"}


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """Lists the blocks (transformer layers) of a model that are of a known kind, in order."""
    return [m for m in model.modules() if type(m).__name__ in _AFTER + _BEFORE]


def linears_of(block: nn.Module) -> list[PackedLinear]:
    """Lists a block's six packed linears: queries, keys, values, the output of attention, and feed-forward up and down.

    The model must be one that `refusal` accepts.
    """
    return [m for m in block.modules() if isinstance(m, PackedLinear)]


def norms_of(block: nn.Module) -> list[nn.LayerNorm]:
    """Lists a block's two layer norms, that of the attention and that of the feed-forward, in a model not refused."""
    return [m for m in block.modules() if isinstance(m, nn.LayerNorm)]


def norm_first(block: nn.Module) -> bool:
    """Returns whether a block's layer norms come before attention and feed-forward (pre-norm), not after them."""
    return type(block).__name__ in _BEFORE


def layer_scales(block: nn.Module) -> list[Tensor | None]:
    """Returns the factors by which DINOv2 multiplies the outputs of attention and of feed-forward.

    Each is float32 `[width]`; a block of another model has None in place of each.
    """
    modules: list[Any] = [m for m in block.modules() if type(m).__name__.endswith("LayerScale")]
    return [m.lambda1.detach().float() for m in modules] if modules else [None, None]


def refusal(model: nn.Module) -> str | None:
    """Says why no backend can run a model fused; None if its blocks and linears are of a known kind."""
    blocks = blocks_of(model)
    config: Any = getattr(model, "config", None)
    known = type(model).__name__ in _MODELS and type(model).__module__.startswith("transformers.models.")
    if not known or not blocks or hasattr(model, "embeddings_project"):
        return f"{type(model).__name__} has no blocks that it knows"
    if len({type(b) for b in blocks}) > 1 or getattr(config, "is_decoder", False):
        return f"{type(model).__name__} is more than a stack of equal blocks"
    if getattr(config, "hidden_act", None) != "gelu":
        return f"its activation is {getattr(config, 'hidden_act', None)}, not gelu"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"its positions are {config.position_embedding_type}"
    width, inner = config.hidden_size, None
    for block in blocks:
        linears, norms = linears_of(block), norms_of(block)
        others = [m for m in block.modules() if isinstance(m, nn.Linear)]
        if len(linears) != 6 or len(norms) != 2 or others or len(layer_scales(block)) != 2:
            return "a block has other parts than six packed linears and two norms"
        inner = linears[4].out_features
        shapes = [(m.in_features, m.out_features) for m in linears]
        if shapes != [(width, width)] * 4 + [(width, inner), (inner, width)]:
            return "a block's linears have unusual shapes"
        if any(m.scheme.levels != "ternary" or m.scheme.granularity == "group" for m in linears):
            return "a linear is not ternary with one scale per row"
        if len({m.codec for m in linears}) > 1:
            return "a block's linears have different codecs"
        if any(norm.weight is None or norm.bias is None for norm in norms):
            return "a norm has no gain or bias"
    return None


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
    """

    backend: str
    device: str

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._encoder: FusedEncoder | None = None
        self._made_of: int | None = None
        self._modules = list(model.modules())
        self._known, self._looked = self._looked_up(), Packed.changes
        self.__signature__ = inspect.signature(type(model).forward.__get__(model))
        # a class around the encoder, such as a classifier, calls it with arguments by position
        self._positions = tuple(self.__signature__.parameters)
        self._reads = _IMAGES if hasattr(model.embeddings, "patch_embeddings") else _TEXT
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
    def _make_encoder(self, model: nn.Module) -> FusedEncoder:
        """Lays out a model that `refusal` accepts for the backend."""

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
            if self._encoder is None or self._made_of != generation:
                self._encoder, self._made_of = self._make_encoder(model), generation
            if self._reads == _IMAGES:
                hidden = self._encoder.images(first)
            else:
                hidden = self._encoder.texts(first, given.get("attention_mask"), given.get("token_type_ids"))
            return self._with_pooled(hidden)

    def _with_pooled(self, hidden: Tensor) -> BaseModelOutputWithPooling:
        model: Any = self._model
        pooler = getattr(model, "pooler", None)
        first_is_pooled = self._reads == _IMAGES and not hasattr(model, "pooler")  # DINOv2
        pooled = pooler(hidden) if pooler is not None else hidden[:, 0] if first_is_pooled else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def _compiled(self, given: dict[str, Any]) -> Any:
        """Computes what `__call__` computes, as a graph that has one operator in place of the encoder."""
        model: Any = self._model
        first = given.get("pixel_values" if self._reads == _IMAGES else "input_ids")
        if first is None or model.training or not self._is_plain(given):
            return type(model).forward(model, **given)
        names = sorted([n for n in given if n in self._reads], key=lambda name: (given[name] is not first, name))
        tokens = _tokens_of(model, first) if self._reads == _IMAGES else 0
        hidden = torch.ops.ternarize.encode(
            [given[name] for name in names], " ".join(names), self._number, tokens, model.config.hidden_size
        )
        return self._with_pooled(hidden)

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
        layers of other backends, or has hooks (except transformers' own, which only serve calls for hidden states).
        What can change only together with `Packed.changes` is checked only when that count has changed.
        """
        if model.training or any(_is_hooked(m) for m in self._modules):
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


def _tokens_of(model: Any, pixels: Tensor) -> int:
    """Returns the number of tokens of an image: its patches, the CLS token and its like, and DINOv2's registers."""
    embeddings, patches = model.embeddings, model.embeddings.patch_embeddings
    high, wide = (n // size for n, size in zip(pixels.shape[-2:], patches.patch_size, strict=True))
    before = embeddings.position_embeddings.shape[1] - patches.num_patches
    registers: int = embeddings.register_tokens.shape[1] if hasattr(embeddings, "register_tokens") else 0
    return int(high * wide + before + registers)


def _is_hooked(m: nn.Module) -> bool:
    if not m._forward_hooks and not m._forward_pre_hooks:
        return False
    hooks = (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
    return any(getattr(hook, "__name__", "") != _TRANSFORMERS_HOOK for hook in hooks)


def tables_of(embeddings: nn.Module) -> list[tuple[Tensor, Tensor]] | None:
    """Returns BERT's tables of words, token types and positions: int8 `[rows, width]`, with scales, float32 `[rows]`.

    Returns None if the embeddings are not BERT's, or a table is not packed in 8 bits.
    """
    names = ("word_embeddings", "token_type_embeddings", "position_embeddings")
    found = [getattr(embeddings, name, None) for name in names]
    if type(embeddings).__name__ != "BertEmbeddings":
        return None
    if not all(isinstance(table, PackedEmbedding) and table.table_bits == 8 for table in found):
        return None
    return [(table.weight, table.weight_scale.float().flatten()) for table in found]  # type: ignore[union-attr]
