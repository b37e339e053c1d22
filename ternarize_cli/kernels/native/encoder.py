"""Whole encoders in one call of the library, on real tokens only.

A model is taken whose blocks are of a known kind: attention of queries, keys and values with full width, and a feed-
forward of two linears with GELU, each with a residual and a layer norm before (ViT, DINOv2) or after it (BERT,
RoBERTa, multilingual E5, …). `attach` puts a `NativeForward` in place of the model's `forward`. Calls that ask for what
happens inside (hidden states, attentions, hooks), or that come in a form of their own, go through the modules as ever.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ternarize_cli.kernels.native.library import Encoder, Layer, Library, PackedCodes, library
from ternarize_cli.layers import Packed, PackedEmbedding, PackedLinear

__all__ = ["NativeForward", "attach", "refusal"]

_AFTER = ("BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer", "ElectraLayer", "ErnieLayer")
_BEFORE = ("ViTLayer", "DeiTLayer", "Dinov2Layer", "Dinov2WithRegistersLayer")
_MODELS = (
    *("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel", "ErnieModel"),
    *("ViTModel", "DeiTModel", "Dinov2Model", "Dinov2WithRegistersModel"),
)
_TRANSFORMERS_HOOK = "output_capturing_hook"
_TEXT = {"input_ids", "attention_mask", "token_type_ids"}
_IMAGES = {"pixel_values"}


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if type(m).__name__ in _AFTER + _BEFORE]


def _linears(block: nn.Module) -> list[PackedLinear]:
    """Of a block that is not refused: queries, keys, values, the output of attention, up, down."""
    return [m for m in block.modules() if isinstance(m, PackedLinear)]


def _norms(block: nn.Module) -> list[nn.LayerNorm]:
    return [m for m in block.modules() if isinstance(m, nn.LayerNorm)]


def _scale_of(block: nn.Module) -> list[Tensor | None]:
    """What DINOv2 multiplies the outputs of attention and feed-forward by, `[width]` each."""
    modules: list[Any] = [m for m in block.modules() if type(m).__name__.endswith("LayerScale")]
    return [m.lambda1.detach().float() for m in modules] if modules else [None, None]


def refusal(model: nn.Module) -> str | None:
    """Why a model does not run as a whole, in words; None if it does."""
    blocks = _blocks(model)
    config: Any = getattr(model, "config", None)
    known = type(model).__name__ in _MODELS and type(model).__module__.startswith("transformers.models.")
    if not known or not blocks or hasattr(model, "embeddings_project"):
        return f"{type(model).__name__} has no blocks that the native runtime knows"
    if len({type(b) for b in blocks}) > 1 or getattr(config, "is_decoder", False):
        return f"{type(model).__name__} is more than a stack of equal blocks"
    if getattr(config, "hidden_act", None) != "gelu":
        return f"its activation is {getattr(config, 'hidden_act', None)}, not gelu"
    if getattr(config, "position_embedding_type", None) not in (None, "absolute"):
        return f"its positions are {config.position_embedding_type}"
    width, inner = config.hidden_size, None
    for block in blocks:
        linears, norms = _linears(block), _norms(block)
        others = [m for m in block.modules() if isinstance(m, nn.Linear)]
        if len(linears) != 6 or len(norms) != 2 or others or len(_scale_of(block)) != 2:
            return "a block has other parts than six packed linears and two norms"
        inner = linears[4].out_features
        shapes = [(m.in_features, m.out_features) for m in linears]
        if shapes != [(width, width)] * 4 + [(width, inner), (inner, width)]:
            return "a block's linears have unusual shapes"
        if any(m.scheme.levels != "ternary" or m.scheme.granularity == "group" for m in linears):
            return "a linear is not ternary with a scale a row"
        if len({m.codec for m in linears}) > 1:
            return "a block's linears have different codecs"
        if any(norm.weight is None or norm.bias is None for norm in norms):
            return "a norm has no gain or bias"
    return None


def attach(model: nn.Module) -> None:
    """Lets a model that is not refused run as a whole from now on."""
    model.forward = NativeForward(model)


class NativeForward:
    """Takes the place of a model's `forward`; the library's form of its weights is made at the first call.

    A copy or a pickle of it makes its own.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._stack: _Stack | None = None
        self._made_of: int | None = None
        self._reads = _IMAGES if hasattr(model.embeddings, "patch_embeddings") else _TEXT

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stack": None}

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As the model's own."""
        model: Any = self._model
        given = {name: value for name, value in options.items() if value is not None}
        first = given.get("pixel_values" if self._reads == _IMAGES else "input_ids")
        generation = _generation(model)
        if arguments or not isinstance(first, Tensor) or not self._is_plain(given) or generation is None:
            return type(model).forward(model, *arguments, **options)
        with torch.no_grad():
            if self._stack is None or self._made_of != generation:
                self._stack, self._made_of = _Stack(model), generation
            if self._reads == _IMAGES:
                hidden = model.layernorm(self._stack.images(model.embeddings(first)))
            else:
                hidden = self._stack.texts(first, given.get("attention_mask"), given.get("token_type_ids"))
            pooler = getattr(model, "pooler", None)
            first_is_pooled = self._reads == _IMAGES and not hasattr(model, "pooler")  # DINOv2
            pooled = pooler(hidden) if pooler is not None else hidden[:, 0] if first_is_pooled else None
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def _is_plain(self, given: dict[str, Any]) -> bool:
        """Whether a call asks for no more than the last hidden states of usual inputs."""
        config: Any = self._model.config
        asked = {name for name, value in given.items() if name not in self._reads and value is not False}
        if given.get("return_dict") is False or getattr(config, "return_dict", True) is False:
            return False
        if getattr(config, "output_hidden_states", False) or getattr(config, "output_attentions", False):
            return False
        tensors = [given[name] for name in self._reads & given.keys()]
        return asked <= {"return_dict"} and all(
            isinstance(t, Tensor) and t.device.type == "cpu" and not t.requires_grad and t.shape == tensors[0].shape
            for t in tensors
        )


def _generation(model: nn.Module) -> int | None:
    """The sum of the packed layers' generations, which grows when weights are loaded.

    None for a model that is not float32 on the CPU, that is training, whose layers are not all native's, or into a part
    of which somebody hooked. transformers' own hooks only serve calls that ask for hidden states.
    """
    if model.training:
        return None
    generation = 0
    for m in model.modules():
        if isinstance(m, PackedLinear) and m.backend != "native":
            return None
        if isinstance(m, Packed):
            generation += m.generation
        if any(p is not None and (p.dtype != torch.float32 or p.is_cuda) for p in m._parameters.values()):
            return None
        if m._forward_hooks or m._forward_pre_hooks:
            hooks = (*m._forward_hooks.values(), *m._forward_pre_hooks.values())
            if any(getattr(hook, "__name__", "") != _TRANSFORMERS_HOOK for hook in hooks):
                return None
    return generation


class _Stack:
    """A model's blocks and, where they are int8, its embedding tables, in the library's form."""

    def __init__(self, model: Any) -> None:
        self._lib: Library = library()
        self._model = model
        self._kept: list[Any] = []
        blocks = _blocks(model)
        config = model.config
        layers = (Layer * len(blocks))(*(self._layer(block) for block in blocks))
        inner, eps = _linears(blocks[0])[4].out_features, _norms(blocks[0])[0].eps
        before = type(blocks[0]).__name__ in _BEFORE
        self._encoder = Encoder(len(blocks), config.hidden_size, config.num_attention_heads, inner, before, eps, layers)
        self._kept.append(layers)
        self._tables = _tables(model.embeddings)
        self._lib.trim()

    def texts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """ids, mask, types: int64 `[batch, tokens]` → `[batch, tokens, width]`, zeros at padding."""
        batch, tokens = ids.shape
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
        full = bool(real.all())
        places = torch.arange(tokens, device="cpu").expand(batch, tokens)
        kinds = torch.zeros_like(ids) if types is None else types
        rows = [(t.reshape(-1) if full else t[real]).long().contiguous() for t in (ids, kinds, places)]
        if self._tables is None or not _are_rows_of(self._tables, rows):  # the modules' errors say what is wrong
            x = self._model.embeddings(input_ids=ids, token_type_ids=types).float()
            x = x.flatten(0, 1) if full else x[real]
        else:
            norm = self._model.embeddings.LayerNorm
            x = self._lib.embed(self._tables, rows, (norm.weight, norm.bias, norm.eps))
        starts = torch.zeros(batch + 1, dtype=torch.int32, device="cpu")
        starts[1:] = real.sum(dim=1).cumsum(dim=0)
        x = x.contiguous()
        self._lib.encode(self._encoder, starts, x)
        if full:
            return x.view(batch, tokens, x.shape[1])
        made = torch.zeros(batch, tokens, x.shape[1], dtype=torch.float32, device="cpu")
        made[real] = x
        return made

    def images(self, x: Tensor) -> Tensor:
        """x: `[batch, patches, width]`, embedded; the same shape."""
        starts = torch.arange(len(x) + 1, dtype=torch.int32, device="cpu") * x.shape[1]
        made = x.detach().float().reshape(-1, x.shape[-1]).clone()
        self._lib.encode(self._encoder, starts, made)
        return made.view(x.shape)

    def _layer(self, block: nn.Module) -> Layer:
        q, k, v, output, up, down = _linears(block)
        first, second = _norms(block)
        by = _scale_of(block)
        norms = [t.detach().float().contiguous() for m in (first, second) for t in (m.weight, m.bias)]
        self._kept.append(norms)
        return Layer(
            self._packed([q, k, v], None),
            self._packed([output], by[0]),
            self._packed([up], None),
            self._packed([down], by[1]),
            *(t.data_ptr() for t in norms),
        )

    def _packed(self, layers: list[PackedLinear], by: Tensor | None) -> ctypes.Structure:
        """Linears of the same input as one; their outputs are multiplied by `by`, through scale and bias."""
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


def _are_rows_of(tables: list[tuple[Tensor, Tensor]], ids: list[Tensor]) -> bool:
    return all(
        not rows.numel() or (int(rows.min()) >= 0 and int(rows.max()) < len(table))
        for (table, _), rows in zip(tables, ids, strict=True)
    )


def _tables(embeddings: nn.Module) -> list[tuple[Tensor, Tensor]] | None:
    """BERT's word, type and position tables, if they are int8."""
    names = ("word_embeddings", "token_type_embeddings", "position_embeddings")
    found = [getattr(embeddings, name, None) for name in names]
    if type(embeddings).__name__ != "BertEmbeddings":
        return None
    if not all(isinstance(table, PackedEmbedding) and table.table_bits == 8 for table in found):
        return None
    return [(table.weight, table.weight_scale.float().flatten()) for table in found]  # type: ignore[union-attr]
