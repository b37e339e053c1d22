"""Pools the last hidden states of a model, where its blocks ran fused.

On the CPU the functions of the runtime pool (`runtime.image_pooling`), so that a packed model gives equal vectors with
and without PyTorch, bit for bit. On a GPU, and in a compiled graph, the model's own modules do, or what is faster.
"""

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ternarize_cli.kernels.module_tensors import ModuleTensors, is_replaced, states
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.runtime.image_pooling import AttentionPooler, FirstPooler, MeanPooler, Pooler, TanhPooler

__all__ = ["pooled_output", "pools_first_token"]

_laid_out: "WeakKeyDictionary[nn.Module, tuple[object, Pooler]]" = WeakKeyDictionary()


def pooled_output(model: Any, hidden: Tensor, first: Tensor) -> Any:
    """Computes what a model pools from its last hidden states, as the `forward` of its class does.

    Args:
        model: a model of transformers.
        hidden: the last hidden states, `[batch, tokens, width]`.
        first: the ids of the tokens, `[batch, tokens]`, or the pixels, `[batch, channels, height, width]`.

    Returns:
        The model's `pooler_output`, `[batch, width]`; None if it pools nothing.
    """
    name = type(model).__name__
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling():
        pooler = _pooler(model, first)
        if pooler is not None:
            return torch.from_numpy(pooler(hidden.numpy()))
    if name == "CLIPVisionModel":
        return model.post_layernorm(hidden[:, 0])
    if name == "CLIPTextModel":
        end = model.eos_token_id
        places = first.int().argmax(dim=-1) if end == 2 else (first.int() == end).int().argmax(dim=-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), places]
    if name == "SiglipVisionModel":
        if not model.use_head:
            return None
        return model.head(hidden) if is_replaced(model.head) else _siglip_head(model.head, hidden)
    if name == "SiglipTextModel":
        return model.head(hidden[:, -1, :])
    own: Any = getattr(model, "pooler", None)
    return own(hidden) if own is not None else hidden[:, 0] if _pools_its_first_token(model, first) else None


def pools_first_token(model: Any) -> bool:
    """Returns whether a model has a pooler that reads the first token alone."""
    return _is_tanh_of_first(getattr(model, "pooler", None))


def _pools_its_first_token(model: Any, first: Tensor) -> bool:
    """Returns whether a model gives its first token as it is, as DINOv2 and DINOv3 do."""
    return first.is_floating_point() and not hasattr(model, "pooler")


def _pooler(model: Any, first: Tensor) -> Pooler | None:
    """Lays out a model's pooling for the runtime; None if the runtime has none like it.

    It is laid out again when a tensor of it has changed, and left alone when the `forward` of a part was replaced.
    """
    found = _parts(model, first)
    if found is None or is_replaced(found[0]):
        return None
    part, make = found
    state = states([*part.parameters(), *part.buffers()])
    known = _laid_out.get(model)
    if known is None or known[0] != state:
        known = _laid_out[model] = (state, make(ModuleTensors(model)))
    return known[1]


def _parts(model: Any, first: Tensor) -> tuple[nn.Module, Callable[[ModuleTensors], Pooler]] | None:
    """Returns the module that pools, and a function that lays it out."""
    name = type(model).__name__
    if name == "CLIPVisionModel":
        part = model.post_layernorm
        return part, lambda t: FirstPooler(t.library, t.norm("post_layernorm", len(part.weight)))
    if name == "SiglipVisionModel" and model.use_head:
        block = Stack.of(model).block
        return model.head, lambda t: AttentionPooler(t, "head", block.width, block.heads, block.activation)
    pooler: Any = getattr(model, "pooler", None)
    if name == "BeitModel" and pooler is not None:
        norm = pooler.layernorm
        if norm is None:
            return pooler, lambda t: FirstPooler(t.library)
        return pooler, lambda t: MeanPooler(t.library, t.norm("pooler.layernorm", len(norm.weight)))
    if _is_tanh_of_first(pooler):
        return pooler, lambda t: TanhPooler(t.linear("pooler.dense", pooler.dense.in_features))
    if name.startswith(("Dinov2", "DINOv3")) and _pools_its_first_token(model, first):
        return nn.Identity(), lambda t: FirstPooler(t.library)
    return None


def _is_tanh_of_first(pooler: Any) -> bool:
    """Returns whether this pooler of transformers computes tanh of a linear of the first token, as BERT's does.

    Of all classes of transformers 5.24 with these two parts, each does. A model with hooks on either does not come here
    (`FusedForward`).
    """
    parts = dict(pooler.named_children()) if isinstance(pooler, nn.Module) else {}
    if parts.keys() != {"dense", "activation"} or type(parts["activation"]) is not nn.Tanh:
        return False
    module = type(pooler).__module__
    return getattr(type(pooler).forward, "__module__", "") == module and module.startswith("transformers.models.")


def _siglip_head(head: Any, hidden: Tensor) -> Tensor:
    """Computes SigLIP's attention pooling of all patches of an image.

    Its only query is a parameter. So keys and values need not be made for each patch: the query goes through the
    weights of the keys first, and the weighted mean of the patches through those of the values. A bias of the keys
    adds the same to all scores of a head, and softmax takes it off again.
    """
    attention = head.attention
    heads, width = attention.num_heads, attention.embed_dim
    queries, keys, values = (w.view(heads, -1, width) for w in attention.in_proj_weight.chunk(3))
    query_bias, _, value_bias = attention.in_proj_bias.view(3, heads, -1)
    query = torch.matmul(queries, head.probe[0, 0]) + query_bias  # [heads, width of a head]
    seeking = torch.einsum("hd,hdw->hw", query * query.shape[1] ** -0.5, keys)
    weights = torch.softmax(linear(hidden, seeking), dim=1)  # [batch, patches, heads]
    mean = torch.einsum("bph,bpw->bhw", weights, hidden)
    pooled = torch.einsum("bhw,hdw->bhd", mean, values) + value_bias
    state = attention.out_proj(pooled.flatten(1))
    made: Tensor = state + head.mlp(head.layernorm(state))
    return made
