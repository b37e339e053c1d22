"""Prepares models of transformers so that a step of training can be recorded as a CUDA graph (`cuda_graphs`).

A recorded step must not copy from the CPU. Some models make numbers there in every pass, although they depend only on
the shape of a batch:

    MPNet, T5     the buckets of relative positions, which MPNet of transformers 5.17 makes on the CPU
    BEiT          the indices of relative positions of patches
    MPNet         the 0 of its mask, in transformers 5.17
    Gemma 3       a True in its mask, if it reads in both directions
    decoders      a cache of keys and values, whose window Mistral and Gemma copy; nothing reads it in training

Positions are made once by the models' own methods, and kept beside the model, on its device; masks are made there. So
values are those of the model, bit for bit, and its tensors do not change. Its config says `use_cache: false` from then
on, and a copy of MPNet, T5 or BEiT (`copy.deepcopy`) reads the tables of the original, and can't be pickled.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

__all__ = ["make_recordable"]

_Buckets = Callable[[int, torch.device], Tensor]


def make_recordable(model: nn.Module) -> None:
    """Replaces what copies from the CPU in every pass of a model, in place; a model without such parts stays as it is.

    A batch of a new shape still makes what is kept, so it must run once before its shape is recorded.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.use_cache = False
            mask = _MASKS.get((type(module).__name__, module.config._attn_implementation))
            if mask is not None:
                run: Any = partial(_with_mask, mask, module, module.forward)
                module.forward = run  # sentence-transformers calls it without hooks
        if hasattr(module, "compute_position_bias") and hasattr(module, "relative_attention_bias"):
            _keep_mpnet(module)
        elif hasattr(module, "compute_bias") and getattr(module, "has_relative_attention_bias", False):
            _keep_t5(module)
        elif hasattr(module, "generate_relative_position_index"):
            _keep_beit(module)


def _with_mask(make: "_Mask", model: Any, run: Callable[..., Any], *args: Any, **given: Any) -> Any:
    """Runs a model with the mask that it would make of the one it is given, `[batch, tokens]`."""
    mask = given.get("attention_mask")
    if isinstance(mask, Tensor) and mask.dim() == 2:
        given["attention_mask"] = make(model, mask.bool())
    return run(*args, **given)


def _mpnet_mask(model: Any, real: Tensor) -> Tensor:
    """Makes what MPNet adds to scores: `[batch, 1, 1, tokens]`, 0 for real tokens and the least number for others."""
    added = torch.zeros(real.shape, dtype=model.dtype, device=real.device)
    return added.masked_fill(~real, torch.finfo(model.dtype).min)[:, None, None]


def _gemma_masks(model: Any, real: Tensor) -> Any:
    """Makes masks by kind of block, bool `[batch, 1, tokens, tokens]`; a causal Gemma keeps the mask it is given."""
    if not model.config.use_bidirectional_attention:
        return real
    place = torch.arange(real.shape[1], device=real.device)
    near = (place[:, None] - place).abs() < model.config.sliding_window
    whole = real[:, None, None].expand(-1, -1, len(place), -1)
    return {"full_attention": whole, "sliding_attention": whole & near}


_Mask = Callable[[Any, Tensor], Any]
_MASKS: dict[tuple[str, str], _Mask] = {
    ("MPNetModel", "eager"): _mpnet_mask,
    ("Gemma3TextModel", "sdpa"): _gemma_masks,
}


def _keep_mpnet(encoder: Any) -> None:
    """Replaces `compute_position_bias` of MPNet's encoder."""
    own = encoder.compute_position_bias
    kept = _kept(encoder.relative_attention_bias, lambda size, device: own(torch.empty(1, size, 1, device=device)))

    def compute_position_bias(x: Tensor, position_ids: Tensor | None = None, num_buckets: int = 32) -> Tensor:
        made: Tensor
        if position_ids is not None or num_buckets != 32:
            made = own(x, position_ids, num_buckets)
            return made
        texts, tokens = x.shape[:2]
        values = encoder.relative_attention_bias(kept(tokens, x.device)).permute(2, 0, 1)
        made = values.unsqueeze(0).expand(texts, -1, tokens, tokens).contiguous()
        return made

    encoder.compute_position_bias = compute_position_bias


def _keep_t5(attention: Any) -> None:
    """Replaces `compute_bias` of the attention of T5 and its relatives."""
    own = attention.compute_bias
    kept = _kept(attention.relative_attention_bias, lambda size, device: own(size, size, device=device))

    def compute_bias(
        query_length: int, key_length: int, device: torch.device | None = None, past_seen_tokens: int = 0
    ) -> Tensor:
        if query_length != key_length or past_seen_tokens:
            made: Tensor = own(query_length, key_length, device=device, past_seen_tokens=past_seen_tokens)
            return made
        table = attention.relative_attention_bias
        values: Tensor = table(kept(query_length, device or table.weight.device)).permute(2, 0, 1)
        return values.unsqueeze(0)

    attention.compute_bias = compute_bias


def _kept(table: nn.Module, run: Callable[[int, torch.device], object]) -> _Buckets:
    """Makes a function that gives the ids, `[tokens, tokens]`, that a model looks up in its table of biases.

    Ids depend only on the distance of two tokens, so those of a text are a corner of those of a longer one. They are
    made for powers of two, so that they take little memory, and are never replaced: a recorded step reads them at
    their address.

    Args:
        table: the model's table.
        run: runs the model's own method for a number of tokens on a device.
    """
    known: dict[tuple[int, torch.device], Tensor] = {}

    def buckets(tokens: int, device: torch.device) -> Tensor:
        size = 1 << max(0, tokens - 1).bit_length()
        if (size, device) not in known:
            hook = table.register_forward_pre_hook(lambda _, args: known.update({(size, device): args[0]}))
            try:
                with torch.no_grad():
                    run(size, device)
            finally:
                hook.remove()
        return known[size, device][:tokens, :tokens]

    return buckets


def _keep_beit(bias: Any) -> None:
    """Replaces `generate_relative_position_index` of BEiT's relative positions."""
    own = bias.generate_relative_position_index
    known: dict[tuple[tuple[int, int], torch.device], Tensor] = {}

    def generate_relative_position_index(window_size: tuple[int, int]) -> Tensor:
        device = bias.relative_position_bias_table.device
        if (window_size, device) not in known:
            with torch.inference_mode(False):  # transformers may have kept it from a pass in inference mode
                known[window_size, device] = own(window_size).to(device, copy=True)
        return known[window_size, device]

    bias.generate_relative_position_index = generate_relative_position_index
