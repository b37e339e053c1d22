"""Makes a model's forward pass fast in training, under autocast.

    linears         of the teacher: their weights are cast once, and kept beside those in float32
    layer norms     on a GPU: one pass, which gives the dtype of the products, so that what follows it moves half the
                    bytes: a residual that begins with a norm, as BERT's, is in this dtype, too
    residuals       on a GPU: of ViT and DINOv2 in the dtype of the products; their additions would make float32 of them
    attention       on a GPU: of BERT, RoBERTa and XLM-R, and of MPNet, whose biases of relative positions are looked up
                    in the kernel, not written out for every pair of tokens; queries, keys and values are one product

A model computes as before without autocast, and on a GPU where Triton can't compile. On a GPU MPNet's biases of
relative positions do not train.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ternarize_cli.arithmetic.gpu_training import compiles
from ternarize_cli.arithmetic.trained_linear import trained_linear
from ternarize_cli.layers import TernaryLinear

__all__ = ["make_fast"]

_LINEARS_OF = dict.fromkeys(
    ("BertSelfAttention", "RobertaSelfAttention", "XLMRobertaSelfAttention", "CamembertSelfAttention"),
    ("query", "key", "value"),
)
_BLOCKS = ("ViTLayer", "Dinov2Layer", "Dinov2WithRegistersLayer")
_LAYER_SCALES = ("Dinov2LayerScale", "Dinov2WithRegistersLayerScale")
_REACH = 128
"""From this distance on all tokens have one bias (MPNet)."""
_LARGEST_HEAD = 128


def make_fast(model: nn.Module) -> None:
    """Replaces what has a kernel for training in a model, in place; parts that have none stay as they are."""
    modules = list(model.modules())
    norms = not any("Fourier" in type(module).__name__ for module in modules)  # whose transform takes float32 (FNet)
    positions = all(_is_plain(module) for module in modules if type(module).__name__ == "MPNetSelfAttention")
    for module in modules:
        name = type(module).__name__
        if type(module) is nn.LayerNorm and norms and _is_of_rows(module):
            _replace(module, _norm)
        elif type(module) is nn.Linear and not module.weight.requires_grad:
            _replace(module, _frozen_linear, {})
        elif name in _BLOCKS:
            module.register_forward_pre_hook(_cast_residual)
        elif name in _LAYER_SCALES:
            _replace(module, _scaled)
        elif name in _LINEARS_OF and _is_plain(module):
            layers = [getattr(module, part) for part in _LINEARS_OF[name]]
            _replace(module, _bert_attention, layers, {})
        elif name == "MPNetSelfAttention" and positions:
            _replace(module, _mpnet_attention, [module.q, module.k, module.v], {})
        elif name == "MPNetEncoder" and positions:
            encoder: Any = module
            encoder.compute_position_bias = partial(_distances, encoder.compute_position_bias)


def _replace(module: nn.Module, function: Callable[..., Any], *given: Any) -> None:
    """Makes `function(module, its own forward, *given, *arguments)` the forward of a module."""
    replaced: Any = module
    replaced.forward = partial(function, module, module.forward, *given)


def _is_of_rows(norm: nn.LayerNorm) -> bool:
    """Whether a norm is over the last dimension, and has a gain and a shift."""
    return len(norm.normalized_shape) == 1 and isinstance(norm.bias, Tensor)


def _is_plain(module: Any) -> bool:
    """Whether attention of BERT's kind reads in both directions, and its heads fit the kernel."""
    is_one_way = getattr(module, "is_decoder", False) or getattr(module, "is_causal", False)
    return not is_one_way and module.attention_head_size <= _LARGEST_HEAD


def _is_fast(x: Tensor) -> bool:
    """Whether the kernels compute with this tensor."""
    return x.is_cuda and x.numel() > 0 and torch.is_autocast_enabled("cuda") and compiles()


def _norm(module: Any, run: Callable[..., Tensor], input: Tensor) -> Tensor:
    if not _is_fast(input):
        return run(input)
    from ternarize_cli.arithmetic.gpu_training.norm import layer_norm

    return layer_norm(input, module.weight, module.bias, module.eps, torch.get_autocast_dtype(input.device.type))


def _cast_residual(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not args or not _is_fast(args[0]):
        return args
    return args[0].to(torch.get_autocast_dtype(args[0].device.type)), *args[1:]


def _scaled(module: Any, run: Callable[..., Tensor], x: Tensor) -> Tensor:
    return x * module.lambda1.to(x.dtype) if _is_fast(x) else run(x)


def _frozen_linear(module: Any, run: Callable[..., Tensor], kept: dict[str, Any], input: Tensor) -> Tensor:
    device = input.device.type
    casts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return _by_frozen([module], kept, input) if casts else run(input)


def _by_frozen(layers: Sequence[Any], kept: dict[str, Any], x: Tensor) -> Tensor:
    """Runs frozen linears as one, whose weights are cast to the dtype of autocast once and kept in `kept`."""
    if not kept:
        dtype = torch.get_autocast_dtype(x.device.type)
        kept["weight"] = torch.cat([layer.weight for layer in layers]).detach().to(dtype)
        biases = [layer.bias for layer in layers]
        kept["bias"] = None if biases[0] is None else torch.cat(biases).detach().to(dtype)
    return F.linear(x, kept["weight"], kept["bias"])


def _joined(layers: Sequence[nn.Module], kept: dict[str, Any], x: Tensor) -> Tensor:
    """Runs linears that read the same, by one product where that can be, and puts their results side by side."""
    first = layers[0]
    same_bias = len({getattr(layer, "bias", None) is None for layer in layers}) == 1
    if same_bias and all(type(layer) is nn.Linear and not layer.weight.requires_grad for layer in layers):
        return _by_frozen(layers, kept, x)
    ternary = [layer for layer in layers if type(layer) is TernaryLinear and layer.training]
    alike = len({layer.scheme for layer in ternary}) == 1 and all(layer.weight_scale.dim() == 2 for layer in ternary)
    if not (same_bias and alike and len(ternary) == len(layers)):
        return torch.cat([layer(x) for layer in layers], dim=-1)
    scheme = ternary[0].scheme
    weight, scale = (torch.cat(parts) for parts in zip(*((y.matrix, y.weight_scale) for y in ternary), strict=True))
    bias = None if first.bias is None else torch.cat([layer.bias for layer in ternary])
    return trained_linear(x, weight, scale, bias, scheme.levels, activation_bits=scheme.activation_bits)


def _bert_attention(
    module: Any,
    run: Callable[..., Any],
    layers: Sequence[nn.Module],
    kept: dict[str, Any],
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **given: Any,
) -> Any:
    asks_more = any(value is not None for value in args) or any(given.get(name) for name in _MORE)
    if asks_more or not (_is_fast(hidden_states) and _is_of_keys(attention_mask)):
        return run(hidden_states, attention_mask, *args, **given)
    from ternarize_cli.arithmetic.gpu_training.attention import self_attention

    qkv, mask = _joined(layers, kept, hidden_states), _real_keys(attention_mask, hidden_states)
    return self_attention(qkv, module.num_attention_heads, module.scaling, mask), None


_MORE = ("cache", "past_key_value", "past_key_values", "output_attentions")
"""Arguments of attention that the kernel can't do."""


def _mpnet_attention(
    module: Any,
    run: Callable[..., Any],
    layers: Sequence[nn.Module],
    kept: dict[str, Any],
    hidden_states: Tensor,
    attention_mask: Tensor | None = None,
    position_bias: Tensor | None = None,
    **given: Any,
) -> Any:
    if not _is_fast(hidden_states):
        return run(hidden_states, attention_mask, position_bias, **given)
    from ternarize_cli.arithmetic.gpu_training.attention import self_attention

    qkv, scale = _joined(layers, kept, hidden_states), module.attention_head_size**-0.5
    heads, mask = module.num_attention_heads, _real_keys(attention_mask, hidden_states)
    return (module.o(self_attention(qkv, heads, scale, mask, position_bias)),)


def _distances(own: Callable[..., Tensor], x: Tensor, *args: Any, **given: Any) -> Tensor:
    """Gives MPNet's biases of relative positions: by distance, `[heads, 257]`, for the kernel, else as MPNet does."""
    if args or given or not _is_fast(x):
        return own(x, *args, **given)
    with torch.no_grad():
        biases = own(torch.empty(1, _REACH + 1, 1, device=x.device))[0]
        return torch.cat([biases[:, 1:, 0].flip(1), biases[:, 0]], dim=1)


def _is_of_keys(mask: Tensor | None) -> bool:
    """Whether a mask is None, or `[texts, 1, any, tokens]`."""
    return mask is None or (mask.dim() == 4 and mask.shape[1] == 1)


def _real_keys(mask: Tensor | None, x: Tensor) -> Tensor:
    """Gives the keys that are no padding, uint8 `[texts, tokens]`, of a mask `[texts, 1, any, tokens]` of a model.

    They are made once for a mask, which all blocks share. Without a mask they are ones: transformers makes none for a
    batch without padding, but while a CUDA graph is recorded it always does, when no other kernel may be compiled.
    """
    if mask is None:
        return torch.ones(x.shape[:2], dtype=torch.uint8, device=x.device)
    found: Tensor | None = getattr(mask, "real_keys", None)
    if found is None:
        row = mask[:, 0, 0]
        found = (row if row.dtype == torch.bool else row > -1).to(torch.uint8)
        mask.real_keys = found  # type: ignore[attr-defined]
    return found
