"""Pools the last hidden states of a model, where its blocks ran fused."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

__all__ = ["pooled_output"]


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
    if name == "CLIPVisionModel":
        return model.post_layernorm(hidden[:, 0])
    if name == "CLIPTextModel":
        end = model.eos_token_id
        places = first.int().argmax(dim=-1) if end == 2 else (first.int() == end).int().argmax(dim=-1)
        return hidden[torch.arange(len(hidden), device=hidden.device), places]
    if name == "SiglipVisionModel":
        return _siglip_head(model.head, hidden) if model.use_head else None
    if name == "SiglipTextModel":
        return model.head(hidden[:, -1, :])
    pooler: Any = getattr(model, "pooler", None)
    if hidden.device.type == "cpu" and not torch.compiler.is_compiling() and _is_tanh_of_first(pooler):
        return _tanh(pooler.dense(hidden[:, 0]))
    first_is_pooled = first.is_floating_point() and not hasattr(model, "pooler")  # DINOv2 and DINOv3
    return pooler(hidden) if pooler is not None else hidden[:, 0] if first_is_pooled else None


def _is_tanh_of_first(pooler: Any) -> bool:
    """Returns whether this pooler of transformers computes tanh of a linear of the first token, as BERT's does.

    Of all classes of transformers 5.24 with these two parts, each does. One whose `forward` was replaced is left alone;
    a model with hooks on either does not come here (`FusedForward`).
    """
    parts = dict(pooler.named_children()) if isinstance(pooler, nn.Module) else {}
    if parts.keys() != {"dense", "activation"} or type(parts["activation"]) is not nn.Tanh:
        return False
    module = type(pooler).__module__
    is_its_own = getattr(type(pooler).forward, "__module__", "") == module and module.startswith("transformers.models.")
    return is_its_own and not any("forward" in m.__dict__ for m in (pooler, parts["activation"]))


def _tanh(x: Tensor) -> Tensor:
    """Computes tanh on the calling thread.

    torch's tanh starts all threads of OpenMP, even for one vector, and these then look for work for some milliseconds,
    in the way of everything else that the machine does.
    """
    if x.dtype != torch.float32 or x.requires_grad:
        return torch.tanh(x)
    return torch.from_numpy(np.tanh(x.numpy()))


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
