"""Rivals that run real tokens alone: the texts of a batch stand side by side in one row, without padding.

    ids, mask [batch, tokens]  ─▶  ids [1, real tokens]  ─▶  the model  ─▶  hidden states  ─▶  [batch, tokens, width]

sentence-transformers calls this unpadding. It needs the package flash-attn, or `kernels`; here the attention is
PyTorch's own flash attention (`torch.nn.attention.varlen` calls the same operator), which is told where each text
begins. transformers' models take positions and these starts by the names that they have for flash attention. A family
whose attention has a bias (T5, MPNet, DeBERTa) has no flash attention there, and is refused.

Where texts begin follows from their lengths, which the host knows when it has tokenised them. So it is found once for
each batch, and not timed again when the batch is. Off a GPU, attention runs text by text, to show that the rest is
right.
"""

from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

from ternarize_cli.engines import exports
from ternarize_cli.engines.baselines import Forward, rival
from ternarize_cli.engines.compiled import without_gpu_compiler
from ternarize_cli.errors import UnavailableError

__all__ = ["Unpadded"]

_ATTENTION = "ternarize-varlen"


class _Places(NamedTuple):
    """Where the texts of a batch are in a row.

    Attributes:
        real: int64 `[real tokens]`, places of real tokens in the flat batch.
        positions: int64 `[1, real tokens]`, place of each token in its text.
        starts: int32 `[texts + 1]`, where each text begins, and the end.
        longest: tokens of the longest text.
    """

    real: Tensor
    positions: Tensor
    starts: Tensor
    longest: int


@torch.library.custom_op("ternarize::varlen_attention", mutates_args=())
def _varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float, window: int, causal: bool
) -> Tensor:
    """Attention of `[tokens, heads, head]` within texts; `window` is the distance that is still seen, -1 for any."""
    if q.is_cuda:
        ends = (None, None) if window < 0 else (window, 0 if causal else window)
        made: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, starts, starts, longest, longest, 0.0, causal, False,
            scale=scale, window_size_left=ends[0], window_size_right=ends[1],
        )[0]  # fmt: skip
        return made
    made = torch.empty_like(q)
    edges = starts.tolist()
    for begin, end in pairwise(edges):
        places = torch.arange(end - begin)
        apart = places[:, None] - places
        seen = (apart.abs() <= window) if window >= 0 else torch.ones_like(apart, dtype=torch.bool)
        seen &= (apart >= 0) | (not causal)
        a, b, c = (t[begin:end].transpose(0, 1)[None] for t in (q, k, v))
        attended = F.scaled_dot_product_attention(a, b, c, attn_mask=seen, scale=scale, enable_gqa=True)
        made[begin:end] = attended[0].transpose(0, 1)
    return made


@_varlen_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int, scale: float, window: int, causal: bool) -> Tensor:
    return torch.empty_like(q)


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **ignored: Any,
) -> tuple[Tensor, None]:
    """A function of transformers' `AttentionInterface`, for `[1, heads, tokens, head]`."""
    if cu_seq_lens_q is None or attention_mask is not None:
        raise UnavailableError(f"the attention of {type(module).__name__} is not told where texts begin")
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    window = -1 if sliding_window is None else sliding_window - 1  # as transformers counts it for flash attention
    causal = bool(getattr(module, "is_causal", False))
    return _varlen_attention(q, k, v, cu_seq_lens_q, max_length_q, scale, window, causal)[None], None


class Unpadded:
    """The `Forward` of an encoder of texts that runs real tokens alone.

    Args:
        name: name of the rival, for messages.
        model: a model of transformers; its attention is replaced.

    Attributes:
        model: the model.

    Raises:
        UnavailableError: the model reads images, or its family has no flash attention in transformers.
    """

    def __init__(self, name: str, model: Any) -> None:
        self.model = model
        self._name = name
        kind = type(model).__name__
        if self.model.main_input_name != "input_ids":
            raise UnavailableError(f"{kind} reads images, which have no padding")
        if not getattr(model, "_supports_flash_attn", False):
            raise UnavailableError(f"transformers has no flash attention for {kind}: it may have a bias")
        AttentionInterface.register(_ATTENTION, _attend)
        self.model.set_attn_implementation(_ATTENTION)
        embeddings = getattr(model, "embeddings", None)
        counts_from_padding = hasattr(embeddings, "create_position_ids_from_input_ids")
        self._first = int(embeddings.padding_idx) + 1 if counts_from_padding and embeddings is not None else 0
        self._known = WeakTensorKeyDictionary()

    def __call__(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Runs a batch: `[batch, tokens, width]`, zeros at padding.

        Raises:
            UnavailableError: PyTorch's attention can't run this model.
        """
        if mask not in self._known:
            self._known[mask] = _places(mask)
        places: _Places = self._known[mask]
        try:
            kept: Tensor = self.model(
                input_ids=ids.flatten()[places.real][None],
                position_ids=places.positions + self._first,
                cu_seq_lens_q=places.starts,
                cu_seq_lens_k=places.starts,
                max_length_q=places.longest,
                max_length_k=places.longest,
            ).last_hidden_state[0]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as e:
            why = " ".join(str(e).split())[:200]
            raise UnavailableError(f"{self._name} can't run {type(self.model).__name__}: {why}") from e
        hidden = kept.new_zeros(ids.numel(), kept.shape[-1])
        hidden.index_copy_(0, places.real, kept)
        return hidden.view(*ids.shape, kept.shape[-1])


def _places(mask: Tensor) -> _Places:
    real = mask.flatten().nonzero().squeeze(1)
    lengths = mask.sum(dim=1)
    positions = (mask.cumsum(dim=1) - 1).flatten()[real][None]
    return _Places(real, positions, F.pad(lengths.cumsum(0), (1, 0)).int(), int(lengths.max()))


@rival(
    "torch-fp16-varlen",
    "PyTorch, fp16, real tokens alone, flash attention with variable lengths",
    cuda_only=True,
    same_vectors=True,
)
def _torch_fp16_varlen(path: Path, device: str) -> Forward:
    return Unpadded("torch-fp16-varlen", exports.transformer(path, torch.float16).to(device))


@rival(
    "torch-fp16-varlen-compiled",
    "PyTorch, fp16, real tokens alone, flash attention with variable lengths, torch.compile for any shape",
    runtime="torch._inductor.compile_fx",
    missing=without_gpu_compiler,
    cuda_only=True,
    same_vectors=True,
)
def _torch_fp16_varlen_compiled(path: Path, device: str) -> Forward:
    made = Unpadded("torch-fp16-varlen-compiled", exports.transformer(path, torch.float16).to(device))
    made.model.compile(dynamic=True)
    return made
