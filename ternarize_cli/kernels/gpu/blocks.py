"""Runs the blocks of an encoder, as their description says (`format.block`).

A block is four products, with a few kernels between them:

    [ norm ─▶ ] product ─▶ attention, round ─▶ product ─▶ add, norm, round ─▶ product, activation, round ─▶ product ─▶
    add, norm, round

The last kernel computes what stands before the next block, too.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ternarize_cli.format.block import PLACES, Block
from ternarize_cli.kernels.gpu import attention as kernel
from ternarize_cli.kernels.gpu.attention import Attention, Scores
from ternarize_cli.kernels.gpu.heads import Heads, prepare
from ternarize_cli.kernels.gpu.matmul import on_gpu
from ternarize_cli.kernels.gpu.norm import Norm, Sums, norm
from ternarize_cli.kernels.gpu.positions import Turns, scaled_distances
from ternarize_cli.kernels.gpu.products import FeedForward, Joined, Products
from ternarize_cli.kernels.gpu.rounding import Rounded, RowWay, quantise, row_ways
from ternarize_cli.kernels.gpu.tuning import Choices, bucket
from ternarize_cli.kernels.stack import Stack

__all__ = ["Arithmetic", "GpuBlocks", "Layout", "norm_of"]

Arithmetic = Callable[[Sequence[Sequence[Joined]], FeedForward], Products]
_PREPARED = 512  # from more tokens on, queries and keys are normed and turned before attention
_TORCH_FROM = 128  # from more tokens on, PyTorch's attention may be faster than the kernel
_TORCH_HEADS = (64, 128, 256)
_TORCH = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]


class Layout(NamedTuple):
    """How the tokens of a batch lie in the rows of a pass.

    Attributes:
        texts: number of texts or images.
        tokens: number of tokens of each, or of the longest text if `starts` is given.
        turns: for each kind of block its cosines and sines; None where nothing is turned.
        mask: int `[texts, tokens]`, 0 at padding; None means that there is no padding.
        starts: int32 `[texts + 1]`: the row where each text starts, then the number of rows; None means that all texts
            have equally many tokens.
        places: int `[rows]`, the positions of tokens, if `starts` is given.
        spans: int32 `[2, rows]`, where the text of each row starts and ends, if `starts` is given.
        pairs: for each block what is added to scores by query and key (`attention.Scores`); None for nothing.
    """

    texts: int
    tokens: int
    turns: Sequence[Turns | None]
    mask: Tensor | None = None
    starts: Tensor | None = None
    places: Tensor | None = None
    spans: Tensor | None = None
    pairs: Sequence[Tensor] | None = None


class GpuBlocks:
    """The blocks of a model, laid out for the GPU.

    Attributes:
        block: their description.
        products: their products.
        kept: dtype of the residual of texts. Where norms are RMS, some values grow beyond float16.
        reads_spans: whether attention of some block may read `Layout.spans`.
    """

    def __init__(self, stack: Stack, arithmetic: Arithmetic) -> None:
        """Lays the weights out.

        Args:
            stack: the blocks.
            arithmetic: makes the products.
        """
        self.block: Block = stack.block
        block, width = self.block, self.block.width
        count = len(block)
        self.products = arithmetic(
            [_joined(stack, i) for i in range(count)], FeedForward(block.activation, block.gated)
        )
        is_wide = any(n.kind == "rms" for place, n in block.norms.items() if place not in ("query", "key"))
        if is_wide and on_gpu():  # Triton's interpreter does not know bfloat16
            self.products.between = torch.bfloat16
        self.kept = torch.float32 if is_wide else torch.float16
        self._norms = [{p: norm_of(stack, i, p, width) for p in PLACES if p in block.norms_of(i)} for i in range(count)]
        self._last = norm_of(stack, None, "last", width)
        gains = [[norm_of(stack, i, p, block.head) for p in ("query", "key")] for i in range(count)]
        heads = Heads(block.heads, block.key_value_heads, block.head, block.scale)
        self._heads = [
            heads if q is None or k is None else heads._replace(gains=(q.gain, k.gain), eps=q.eps) for q, k in gains
        ]
        table = stack.relative_table()
        distances = None if table is None else scaled_distances(block, table)
        seen = [(-1 if k.before is None else k.before, -1 if k.after is None else k.after) for k in block.kinds]
        self._scores = [Scores(*seen[kind], distances) for kind in block.kind_of]
        self._choices = Choices()
        self.reads_spans = any(kind.rotary is None for kind in block.kinds) and all(h.is_bare for h in self._heads)

    def __call__(self, x: Tensor, rounded: Rounded | None, layout: Layout, count: int | None = None) -> Tensor:
        """Runs blocks: from the residual `[rows, width]` to the hidden states after the last norm, float32.

        Args:
            x: the residual.
            rounded: the residual, rounded, if that is known.
            layout: how tokens lie in rows.
            count: the number of blocks that run; None: all.
        """
        by, rows = self.products, len(x)
        b = by.order(rows)
        y: Tensor | Sums | None = None
        before: dict[str, Norm] = {}
        for i, norms in enumerate(self._norms[:count]):
            by.begin(i, rows)
            if i or "attention.before" in norms or rounded is None:
                x, rounded = self._entered(x, y, before, "feed_forward", norms.get("attention.before"), b)
            attended = self._attended(i, by.run(i, 0, rounded), layout)
            y = by.before_norm(i, 1, attended)
            x, rounded = self._entered(x, y, norms, "attention", norms.get("feed_forward.before"), b)
            y = by.before_norm(i, 3, by.activated(i, 2, rounded))
            before = norms
        total, inner = before.get("feed_forward.sum"), before.get("feed_forward.after")
        x, _ = norm(x, y, total or self._last, after=True, dtype=None, inner=inner, kept=torch.float32)
        if total is not None and self._last is not None:
            x, _ = norm(x, None, self._last, after=True, dtype=None)
        return x

    def _entered(
        self, x: Tensor, y: Tensor | Sums | None, norms: dict[str, Norm], part: str, by: Norm | None, b: int
    ) -> tuple[Tensor, Rounded]:
        """Adds the output of a part of a block to the residual, and norms and rounds it for the part that follows.

        Args:
            x: the residual.
            y: the output; None before the first block.
            norms: the norms of the block that gave it.
            part: the part that gave it.
            by: the norm before the part that follows; None for none.
            b: the order of the rounded values.
        """
        dtype, total = self.products.dtype, norms.get(f"{part}.sum")
        if y is None and by is None:
            return x, quantise(x, dtype, b=b)
        after, inner = total is not None, norms.get(f"{part}.after")

        def call(how: RowWay | None) -> tuple[Tensor, Rounded]:
            return norm(x, y, total or by, after=after, dtype=dtype, inner=inner, b=b, how=how)

        if isinstance(y, Sums):  # which the first call clears
            return call(None)
        kind = f"norm {x.dtype}{' of y' if inner else ''}"
        return call(self._choices.of(kind, (*x.shape, 0), lambda rows: row_ways(rows, x.shape[1]), call))

    def _attended(self, i: int, qkv: Tensor, layout: Layout) -> Rounded:
        """Computes the attention of block `i` from queries, keys and values, rounded for the next product."""
        kind, tokens = self.block.kind_of[i], layout.tokens
        heads = self._heads[i]._replace(turns=layout.turns[kind])
        if (tokens > _PREPARED and not heads.is_bare) or 0 < 2 * heads.pairs < heads.head:
            heads = prepare(qkv, heads, tokens, layout.places)
        scores = self._scores[i]
        if layout.pairs is not None:
            scores = scores._replace(pairs=layout.pairs[i])
        if scores.before >= tokens - 1:
            scores = scores._replace(before=-1)
        if scores.after >= tokens - 1 and tokens > 1:
            scores = scores._replace(after=-1)
        factor = self.products.attention_factor(i)
        across = layout.spans is not None and heads.is_bare

        def call(how: Attention | None) -> Rounded:
            if how is None:
                return self.products.attended(i, _by_torch(qkv, heads, layout, causal=scores.after == 0))
            return self.products.attended(
                i,
                kernel.attention(
                    qkv, heads, layout.mask, layout.texts, scores=scores, starts=layout.starts,
                    longest=0 if layout.starts is None else tokens, spans=layout.spans, times=factor, how=how,
                ),
            )  # fmt: skip

        def ways(_: int) -> list[Attention | None]:
            plain = layout.mask is None and layout.starts is None and heads.is_bare and qkv.is_cuda
            plain = plain and scores.distances is None and scores.pairs is None and scores.before < 0
            by_torch = plain and scores.after <= 0 and tokens > _TORCH_FROM and heads.head in _TORCH_HEADS
            return [*([None] if by_torch else []), *kernel.ways(tokens, heads.head, across=across)]

        named: dict[str, Any] = {
            "turned": heads.turns,
            "normed": heads.gains,
            "masked": layout.mask,
            "unpadded": layout.starts,
        }
        named |= {"distances": scores.distances, "pairs": scores.pairs, "e4m3": factor or None}
        named[f"of {layout.texts} texts"] = across or None  # how short texts are decides, too
        said = [name for name, value in named.items() if value is not None]
        window = f"{scores.before}:{scores.after}"
        key = f"attention {heads.heads}/{heads.shared} x {heads.head} {window} {' '.join(said)}"
        shape = (len(qkv), bucket(tokens), heads.width)
        return call(self._choices.of(key, shape, ways, call))


def norm_of(stack: Stack, i: int | None, place: str, width: int) -> Any:
    """Lays out a norm of block `i`, or of the model if `i` is None; returns None if there is none."""
    found = stack.gain(i, place, width)
    if found is None:
        return None
    described = stack.block.norms[place]
    return Norm(described.kind, *found, described.eps)


def _by_torch(qkv: Tensor, heads: Heads, layout: Layout, *, causal: bool) -> Tensor:
    """Computes attention with PyTorch's fused kernels: `[rows, heads · head]`."""
    q, k, v = qkv.view(layout.texts, layout.tokens, -1, heads.head).split((heads.heads, heads.shared, heads.shared), 2)
    with sdpa_kernel(_TORCH, set_priority=True):
        y = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            is_causal=causal, scale=heads.scale, enable_gqa=heads.shared != heads.heads,
        )  # fmt: skip
    return y.transpose(1, 2).reshape(len(qkv), -1)


def _joined(stack: Stack, i: int) -> list[Joined]:
    qkv, output, up, down = stack.joined(i)
    after_attention, after_feed_forward = stack.layer_scales(i)
    return [Joined(qkv), Joined([output], after_attention), Joined(up), Joined([down], after_feed_forward)]
