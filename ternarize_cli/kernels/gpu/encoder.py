"""Runs fused encoders on an NVIDIA GPU: a block is four products, with a few kernels between them.

    embed ─▶ [ product ─▶ attention ─▶ round ─▶ product ─▶ add, norm, round ─▶ product, GELU ─▶ round ─▶ product ─▶
               add, norm, round ] × blocks

In pre-norm encoders (ViT), the norm at the end of a block in this picture is the first norm of the next block. Passes
are recorded as CUDA graphs, with texts padded to one of few lengths. In large batches with much padding, only the real
tokens are run.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ternarize_cli.arithmetic.cuda_graphs import Graphs
from ternarize_cli.data.length_buckets import width_of
from ternarize_cli.errors import InputError
from ternarize_cli.format.block import PLACES
from ternarize_cli.format.block_parts import LayerKind
from ternarize_cli.kernels.fused_encoder import FusedForward, tables_of
from ternarize_cli.kernels.gpu import fused
from ternarize_cli.kernels.gpu.attention import attention
from ternarize_cli.kernels.gpu.e4m3 import E4m3
from ternarize_cli.kernels.gpu.fused import Norm, Rounded, Sums
from ternarize_cli.kernels.gpu.products import Joined, Products
from ternarize_cli.kernels.stack import Stack, refusal

__all__ = ["GpuEncoder", "GpuForward", "gpu_refusal", "run_fused"]

_LOCK = threading.RLock()  # recorded passes share one set of input buffers
_SMALL, _LARGE = 8192, 1 << 17  # rows; passes with more rows than the second number are not recorded
_MOSTLY = 0.9  # share of real tokens from which on padding is run too
_FAST_ATTENTION = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION]
_COUNT_FROM_PADDING = ("roberta", "xlm-roberta", "camembert")
_MODELS = (
    *("BertModel", "RobertaModel", "XLMRobertaModel", "CamembertModel", "ElectraModel", "ErnieModel"),
    *("ViTModel", "DeiTModel", "Dinov2Model", "Dinov2WithRegistersModel"),
)
_HEADS = (64, 128)  # dimensions of a head for which PyTorch's attention is faster than the kernel in `attention`


Arithmetic = Callable[[Sequence[Sequence[Joined]]], Products]


def run_fused(model: nn.Module, backend: str, arithmetic: Arithmetic) -> str | None:
    """Makes a model run fused on the GPU; returns None, or the reason why it can't."""
    reason = gpu_refusal(model)
    if reason is None:
        model.forward = GpuForward(model, backend, arithmetic)
    return reason


def gpu_refusal(model: nn.Module) -> str | None:
    """Says why a model can't run fused on the GPU; None if its blocks are those of BERT or ViT."""
    reason = refusal(model)
    if reason is not None:
        return reason
    block = Stack.of(model).block
    places = set(block.norms) & {*PLACES}
    usual = places in ({"attention.before", "feed_forward.before"}, {"attention.sum", "feed_forward.sum"})
    plain = block.kinds == (LayerKind(),) and block.relative is None and not block.gated and len(block.qkv) == 3
    known = type(model).__name__ in _MODELS and block.activation == "gelu" and not block.unnormed
    known = known and all(m.bias is not None for m in model.modules() if isinstance(m, nn.LayerNorm))
    return None if usual and plain and known else f"{type(model).__name__} has blocks that the GPU runs by modules"


class GpuForward(FusedForward):
    """A model's forward pass on a GPU, with one of the arithmetics of `products`."""

    device = "cuda"

    def __init__(self, model: nn.Module, backend: str, arithmetic: Arithmetic) -> None:
        self.backend = backend
        self._arithmetic = arithmetic
        super().__init__(model)

    def _make_encoder(self, model: nn.Module) -> "GpuEncoder":
        with _apart(next(model.parameters()).device):
            return GpuEncoder(model, self._arithmetic)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Computes what the model's own `forward` computes."""
        try:
            return super().__call__(*arguments, **options)
        except InputError:
            raise
        except BaseException:
            self._encoder = None  # an error may have left it in an inconsistent state
            raise


@contextmanager
def _apart(device: torch.device) -> Iterator[None]:
    """Admits one thread at a time, on this GPU; later calls can write to the tensors that are made inside."""
    with _LOCK, torch.inference_mode(False), torch.no_grad():
        if device.type != "cuda":
            yield
            return
        with torch.cuda.device(device):
            yield


def _norm(m: Any) -> Norm:
    return Norm(m.weight.detach().float().contiguous(), m.bias.detach().float().contiguous(), m.eps)


class GpuEncoder:
    """A model's embeddings and blocks, prepared for the GPU."""

    def __init__(self, model: Any, arithmetic: Arithmetic) -> None:
        self._model = model
        stack = Stack.of(model)
        block = stack.block
        self._first = "attention.before" in block.norms
        places = [f"{part}.{'before' if self._first else 'sum'}" for part in ("attention", "feed_forward")]
        self._products = arithmetic([_joined(stack, i) for i in range(len(block))])
        self._norms = [[_norm(stack.norm(i, place)) for place in places] for i in range(len(block))]
        self._last = _norm(model.layernorm) if self._first else None
        self._heads, self._width = model.config.num_attention_heads, model.config.hidden_size
        self._tables = tables_of(model, block) if type(model.embeddings).__name__ == "BertEmbeddings" else None
        self._embedding_norm = _norm(model.embeddings.LayerNorm) if self._tables is not None else None
        self._graphs, self._large_graphs = Graphs(self._recorded), Graphs(self._recorded, most=8)
        self._longest = getattr(model.config, "max_position_embeddings", 0)
        if model.config.model_type in _COUNT_FROM_PADDING:
            self._longest -= (model.config.pad_token_id or 0) + 1
        self._padding = getattr(model.config, "pad_token_id", None) or 0
        self._patches = _patches(model)
        if isinstance(self._products, E4m3):
            self._sample(self._products)

    # -- fused passes --------------------------------------------------------------------------------------------------

    def texts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """Encodes texts: int64 `[texts, tokens]` to float32 `[texts, tokens, width]`; values at padding are undefined.

        Raises:
            InputError: a text has more tokens than the model has positions.
        """
        tokens = ids.shape[1]
        if tokens > self._longest and self._tables is not None:
            raise InputError(f"a text has {tokens} tokens, and the model takes at most {self._longest}")
        if not ids.numel():
            return torch.zeros(*ids.shape, self._width, device=ids.device)
        with _apart(ids.device):
            mask, types = (t if t is None else t.contiguous() for t in (mask, types))
            return self._texts(ids.contiguous(), mask, types)

    def _texts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        tokens = ids.shape[1]
        if ids.numel() > _SMALL and mask is not None:
            real = int((mask != 0).sum())
            if real < _MOSTLY * ids.numel():
                return self._unpadded(ids, mask, types)
            mask = None if real == ids.numel() else mask
        width = max(tokens, min(width_of(tokens), self._longest))
        if width > tokens and mask is None:
            mask = torch.ones_like(ids)
        given = {"ids": ids} | ({} if mask is None else {"mask": mask}) | ({} if types is None else {"types": types})
        if width > tokens:
            given = {name: F.pad(t, (0, width - tokens)) for name, t in given.items()}
            given["ids"][:, tokens:] = self._padding
        hidden = self._run(given)
        return hidden[:, :tokens].contiguous() if width > tokens else hidden

    def images(self, pixels: Tensor) -> Tensor:
        """Encodes images: `[images, channels, height, width]` to last hidden states, float32."""
        if not len(pixels):
            hidden: Tensor = self._model.layernorm(self._model.embeddings(pixels))
            return hidden
        with _apart(pixels.device):
            return self._run({"pixels": pixels.contiguous()})

    def _run(self, given: dict[str, Tensor]) -> Tensor:
        rows = given["ids"].numel() if "ids" in given else len(given["pixels"]) * self._patches
        if rows > _LARGE or not next(iter(given.values())).is_cuda:
            return self._recorded(given)
        graphs = self._graphs if rows <= _SMALL else self._large_graphs
        return graphs(given).clone()

    def _recorded(self, given: Mapping[str, Tensor]) -> Tensor:
        """Runs a pass whose operations depend on no value, so that it can be recorded."""
        if "pixels" in given:
            hidden = self._model.embeddings(given["pixels"])
            shape, mask = hidden.shape, None
            x, rounded = hidden.flatten(0, 1).float(), None
        else:
            shape, mask = (*given["ids"].shape, self._width), given.get("mask")
            x, rounded = self._embedded(given["ids"], given.get("types"), given["ids"].numel())
        texts, tokens = shape[:2]

        def attend(qkv: Tensor) -> Tensor:
            head = self._width // self._heads
            if mask is None and tokens > 128 and head in _HEADS and qkv.is_cuda:
                q, k, v = qkv.view(texts, tokens, 3, self._heads, head).permute(2, 0, 3, 1, 4)
                with sdpa_kernel(_FAST_ATTENTION, set_priority=True):
                    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, self._width)
            return attention(qkv, mask, texts, self._heads)

        return self._blocks(x, rounded, attend).view(shape)

    def _unpadded(self, ids: Tensor, mask: Tensor, types: Tensor | None) -> Tensor:
        real = (mask != 0).flatten().nonzero().squeeze(1)
        if not len(real):
            return torch.zeros(*ids.shape, self._width, device=ids.device)
        x, rounded = self._embedded(ids, types, len(real))
        lengths = (mask != 0).sum(dim=1)
        starts = F.pad(lengths.cumsum(0), (1, 0)).int()
        longest = int(lengths.max())

        def attend(qkv: Tensor) -> Tensor:
            return attention(qkv, None, len(ids), self._heads, starts=starts, longest=longest)

        kept = self._blocks(x[real], rounded and Rounded(rounded.q[real], rounded.t[real]), attend)
        hidden = torch.zeros(ids.numel(), self._width, device=ids.device)
        return hidden.index_copy_(0, real, kept).view(*ids.shape, self._width)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _embedded(self, ids: Tensor, types: Tensor | None, rows: int) -> tuple[Tensor, Rounded | None]:
        """Computes the residual `[texts · tokens, width]`; for BERT's tables also its rounded norm, for `rows` rows."""
        if self._tables is not None and self._embedding_norm is not None:
            return fused.embed(
                ids, types, self._tables, self._embedding_norm, dtype=self._products.dtype, kept=torch.float16,
                b=self._products.order(rows),
            )  # fmt: skip
        return self._model.embeddings(input_ids=ids, token_type_ids=types).flatten(0, 1).half(), None

    def _blocks(self, x: Tensor, rounded: Rounded | None, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """Runs all blocks: from the residual `[rows, width]` to the last hidden states, float32 `[rows, width]`."""
        by, dtype, rows, last = self._products, self._products.dtype, len(x), len(self._norms) - 1
        b = by.order(rows)
        if rounded is None and not self._first:
            rounded = fused.quantise(x, dtype, b=b)
        y: Tensor | Sums | None = None
        for i, (first, second) in enumerate(self._norms):
            by.begin(i, rows)
            if self._first:
                x, rounded = fused.norm(x, y, first, after=False, dtype=dtype, b=b)
            assert rounded is not None
            attended = fused.quantise(attend(by.run(i, 0, rounded)), dtype, b=b)
            y = by.before_norm(i, 1, attended)
            if self._first:
                x, rounded = fused.norm(x, y, second, after=False, dtype=dtype, b=b)
                y = by.before_norm(i, 3, by.activated(i, 2, rounded))
                continue
            x, rounded = fused.norm(x, y, first, after=True, dtype=dtype, b=b)
            y = by.before_norm(i, 3, by.activated(i, 2, rounded))
            if i < last:
                x, rounded = fused.norm(x, y, second, after=True, dtype=dtype, b=b)
        norm = self._last or self._norms[-1][1]
        return fused.norm(x, y, norm, after=True, dtype=None, kept=torch.float32)[0]

    def _sample(self, products: E4m3) -> None:
        """Runs a sample batch, which depends only on the model, so that the products choose their scales."""
        generator = torch.Generator().manual_seed(0)
        device = self._norms[0][0].gain.device
        with products.watching():
            if hasattr(self._model.embeddings, "patch_embeddings"):
                shape = (2, self._model.config.num_channels, *_image_size(self._model))
                pixels = torch.randn(shape, generator=generator)
                self._recorded({"pixels": pixels.to(device)})
            else:
                tokens = min(32, self._longest)
                ids = torch.randint(self._model.config.vocab_size, (4, tokens), generator=generator)
                self._recorded({"ids": ids.to(device)})


def _patches(model: Any) -> int:
    """Estimates the tokens of an image of the model's usual size; 0 for an encoder of texts."""
    config = model.config
    if not hasattr(model.embeddings, "patch_embeddings"):
        return 0
    high, wide = _image_size(model)
    return int((high // config.patch_size) * (wide // config.patch_size)) + 1


def _image_size(model: Any) -> tuple[int, int]:
    size = model.config.image_size
    return (size[0], size[1]) if isinstance(size, list | tuple) else (size, size)


def _joined(stack: Stack, i: int) -> list[Joined]:
    qkv, output, up, down = stack.joined(i)
    after_attention, after_feed_forward = stack.layer_scales(i)
    return [Joined(qkv), Joined([output], after_attention), Joined(up), Joined([down], after_feed_forward)]
