"""Runs an encoder on an NVIDIA GPU: its embedding, and its blocks (`gpu.blocks`).

Passes are recorded as CUDA graphs, with texts padded to one of few lengths. In large batches with much padding, only
the real tokens are run, in one of few sizes (`gpu.token_rows`).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ternarize_cli.arithmetic.cuda_graphs import Graphs
from ternarize_cli.data.length_buckets import width_of
from ternarize_cli.errors import CheckpointError, InputError
from ternarize_cli.kernels.fused_encoder import tables_of
from ternarize_cli.kernels.gpu import tuning
from ternarize_cli.kernels.gpu.blocks import Arithmetic, GpuBlocks, Layout, norm_of
from ternarize_cli.kernels.gpu.e4m3 import E4m3
from ternarize_cli.kernels.gpu.embedding import Tables, embed
from ternarize_cli.kernels.gpu.norm import norm
from ternarize_cli.kernels.gpu.pass_sizes import MOST
from ternarize_cli.kernels.gpu.patches import PatchProducts
from ternarize_cli.kernels.gpu.positions import Turns, TurnTables, image_turns, patch_pairs
from ternarize_cli.kernels.gpu.rounding import Rounded
from ternarize_cli.kernels.gpu.token_rows import TokenCounts, count_tokens, spread, token_rows
from ternarize_cli.kernels.pooled_output import pools_first_token
from ternarize_cli.kernels.stack import Stack
from ternarize_cli.layers.text_lengths import lengths_of, with_lengths

__all__ = ["GpuEncoder"]

_SMALL, _LARGE = 8192, 1 << 17  # rows; passes with more rows than the second number are not recorded
_MOSTLY = 0.9  # share of real tokens from which on padding is run too
_IMAGE_SIZES = 8  # sizes of images whose positions are kept


Pool = Callable[[Tensor, Tensor], Tensor | None]


class GpuEncoder:
    """A model's embedding and blocks, prepared for the GPU.

    Attributes:
        pooled: what the model pools from the hidden states of the last pass, if `pool` was given and the pass gave it.
    """

    def __init__(self, model: Any, arithmetic: Arithmetic, pool: Pool | None = None) -> None:
        """Lays out the weights of a model that `stack.refusal` accepts.

        Args:
            model: the model.
            arithmetic: makes the products.
            pool: computes the model's pooled vectors from the last hidden states and the ids or pixels, in a way that
                padding behind a text does not change; it is recorded with the pass.

        Raises:
            CheckpointError: a norm or a table has another shape than the description says.
        """
        self._model, self._pool = model, pool
        self.pooled: Tensor | None = None
        self._stack = Stack.of(model)
        self._block = block = self._stack.block
        self._device: torch.device = next(model.parameters()).device
        self._count: int | None = None  # of the blocks that run; None: all
        with self._apart():
            self._blocks = GpuBlocks(self._stack, arithmetic)
            self._norm = norm_of(self._stack, None, "embeddings", block.width)
            self._turn_tables = TurnTables(block, self._device)
            self._of_size: dict[tuple[int, ...], tuple[list[Turns | None], list[Tensor] | None]] = {}
            self._tables: Tables | None = None
            self._longest: int | None = None
            self._padding = 0  # any row of the table: masks hide it, and a config may name a row that is not there
            given = block.embeddings
            if given is not None:
                found = tables_of(model, block)
                if found is not None:
                    others = iter([(rows.contiguous(), scale.contiguous()) for rows, scale in found])
                    types, positions = given.types is not None, given.positions is not None
                    self._tables = Tables(next(others), next(others) if types else None, None)
                    self._tables = self._tables._replace(positions=next(others) if positions else None)
                if given.positions is not None:
                    self._longest = model.get_submodule(given.positions).num_embeddings - given.first_position
                    if self._longest < 1:
                        raise CheckpointError(
                            f"{given.positions} has no position {given.first_position}, where texts begin",
                            hint="fetch the model again",
                        )
                    self._padding = given.first_position - 1 if given.first_position else self._padding
            self._forget_recorded()
            self._last_pass: Any = None  # the event that marks its end
            if isinstance(self._blocks.products, E4m3):
                self._sample(self._blocks.products)

    def texts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        """Encodes texts: int64 `[texts, tokens]` to float32 `[texts, tokens, width]`; values at padding are undefined.

        Raises:
            InputError: a text has more tokens than the model has positions.
        """
        tokens = ids.shape[1]
        if self._longest is not None and tokens > self._longest:
            raise InputError(f"a text has {tokens} tokens, and the model takes at most {self._longest}")
        if not ids.numel():
            self.pooled = None
            return torch.zeros(*ids.shape, self._block.width, device=ids.device)
        with self._apart():
            known = None if mask is None else lengths_of(mask)
            mask, types = (t if t is None else t.contiguous() for t in (mask, types))
            if mask is not None:
                with_lengths(mask, known)
            return self._texts(ids.contiguous(), mask, types)

    def images(self, pixels: Tensor) -> Tensor:
        """Encodes images: `[images, channels, height, width]` to last hidden states, float32."""
        with self._apart():
            if not len(pixels):
                self.pooled = None
                hidden: Tensor = self._embedded_images(pixels)
                return hidden
            size = tuple(pixels.shape[-2:])
            if size not in self._of_size:
                if len(self._of_size) >= _IMAGE_SIZES:  # recorded passes read what was kept
                    self._of_size.clear()
                    self._forget_recorded()
                tokens = self._embedded_images(pixels[:1]).shape[1]
                turned = [kind.rotary is not None for kind in self._block.kinds]
                turns = [image_turns(self._model, pixels, tokens) if is_turned else None for is_turned in turned]
                self._of_size[size] = turns, patch_pairs(self._model, self._stack, pixels)
            return self._run({"pixels": pixels.contiguous()}, pixels.numel() // self._pixels_a_token())

    def first_blocks(self, count: int, ids: Tensor | None, mask: Tensor | None, pixels: Tensor | None) -> Tensor:
        """Computes the hidden states after the first `count` blocks and the last norm, of texts or images."""
        self._count = count
        try:
            if pixels is not None:
                return self.images(pixels)
            assert ids is not None
            return self.texts(ids, mask, None)
        finally:
            self._count = None
            self._forget_recorded()

    def clear(self) -> None:
        """Clears what a pass that failed midway has left behind."""
        with self._apart():
            self._blocks.products.clear()

    def _forget_recorded(self) -> None:
        self._graphs, self._large_graphs = Graphs(self._recorded), Graphs(self._recorded, most=8)
        self._unpadded_graphs = Graphs(self._recorded_unpadded, most=16)

    # -- passes --------------------------------------------------------------------------------------------------------

    def _texts(self, ids: Tensor, mask: Tensor | None, types: Tensor | None) -> Tensor:
        tokens = ids.shape[1]
        if ids.numel() > _SMALL and mask is not None:
            known = lengths_of(mask)
            counts = count_tokens(mask) if known is None else TokenCounts(known)  # counting waits for the card
            real = int(counts.lengths.sum())
            # of a corpus, whose lengths are known, numbers of texts and tokens hardly repeat
            most = _MOSTLY * ids.numel() if known is None else ids.numel()
            if real < most and not (self._block.counts_places and counts.has_hole):
                return self._unpadded(ids, mask, types, counts)
            mask = None if real == ids.numel() else mask
        width = width_of(tokens)
        width = max(tokens, width if self._longest is None else min(width, self._longest))
        if width > tokens and mask is None:
            mask = torch.ones_like(ids)
        given = {"ids": ids} | ({} if mask is None else {"mask": mask}) | ({} if types is None else {"types": types})
        if width > tokens:
            given = {name: F.pad(t, (0, width - tokens)) for name, t in given.items()}
            given["ids"][:, tokens:] = self._padding
        hidden = self._run(given, ids.numel())
        return hidden[:, :tokens].contiguous() if width > tokens else hidden

    def _run(self, given: dict[str, Tensor], rows: int) -> Tensor:
        if rows > _LARGE or self._device.type != "cuda":
            hidden, self.pooled = self._recorded(given)
            return hidden
        graphs = self._graphs if rows <= _SMALL else self._large_graphs
        hidden, pooled = graphs(given)
        self.pooled = None if pooled is None else pooled.clone()
        return hidden.clone()

    def _recorded(self, given: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Runs a pass whose operations depend on no value, so that it can be recorded."""
        if "pixels" in given:
            hidden = self._embedded_images(given["pixels"])
            shape = hidden.shape
            turns, pairs = self._of_size[tuple(given["pixels"].shape[-2:])]
            x, rounded = hidden.flatten(0, 1).to(self._blocks.kept), None
            layout = Layout(shape[0], shape[1], turns, pairs=pairs)
        else:
            ids = given["ids"]
            shape = torch.Size((*ids.shape, self._block.width))
            x, rounded = self._embedded(ids, given.get("types"), self._positions(ids))
            layout = Layout(ids.shape[0], ids.shape[1], self._turn_tables(ids.shape[1]), given.get("mask"))
        made = self._blocks(x, rounded, layout, self._count).view(shape)
        return made, None if self._pool is None else self._pool(made, next(iter(given.values())))

    def _recorded_unpadded(self, given: Mapping[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Runs such a pass over real tokens alone: to hidden states `[rows, width]`, and what is pooled from them."""
        inputs, places, starts, longest = given["inputs"], given["places"], given["starts"], given["longest"]
        embedded = self._embedded(inputs[:1], inputs[2:] if len(inputs) > 2 else None, inputs[1:2])
        spans = places[:2] if self._blocks.reads_spans else None
        turns = self._turn_tables(longest)
        layout = Layout(len(starts) - 1, longest, turns, starts=starts, places=places[2], spans=spans)
        hidden = self._blocks(*embedded, layout, self._count)
        if self._pool is None or not pools_first_token(self._model):
            return hidden, None
        begins = starts[:-1].clamp(max=len(hidden) - 1)  # empty texts may begin behind all rows
        first = torch.where((starts.diff() > 0)[:, None], hidden.index_select(0, begins), 0)
        return hidden, self._pool(first[:, None], inputs[:1])

    def _unpadded(self, ids: Tensor, mask: Tensor, types: Tensor | None, counts: TokenCounts) -> Tensor:
        """Runs the real tokens alone, of which the host knows `counts`."""
        self.pooled = None
        count = int(counts.lengths.sum())
        if not count:
            return torch.zeros(*ids.shape, self._block.width, device=ids.device)
        made = token_rows(ids, mask, types, self._positions(ids), counts.lengths)
        given = {"inputs": made.inputs, "places": made.places, "starts": made.starts, "longest": made.longest}
        is_recorded = count <= min(_LARGE, MOST) and self._device.type == "cuda"
        hidden, pooled = (self._unpadded_graphs if is_recorded else self._recorded_unpadded)(given)
        if pooled is not None and counts.begins_real:
            self.pooled = pooled[: len(ids)].clone()
        return spread(hidden, made.row_of).view(*ids.shape, self._block.width)

    # -- parts ---------------------------------------------------------------------------------------------------------

    def _positions(self, ids: Tensor) -> Tensor | None:
        """Counts positions without the padding token, as RoBERTa does; None if they count from 0 in each text."""
        given = self._block.embeddings
        if given is None or not given.first_position:
            return None
        counted = (ids != given.first_position - 1).long()
        return counted.cumsum(dim=1) * counted + given.first_position - 1

    def _embedded(self, ids: Tensor, types: Tensor | None, places: Tensor | None) -> tuple[Tensor, Rounded]:
        """Computes the residual `[texts · tokens, width]` of tokens at these positions, and that rounded."""
        given, dtype, kept = self._block.embeddings, self._blocks.products.dtype, self._blocks.kept
        assert given is not None
        b = self._blocks.products.order(ids.numel())
        if self._tables is not None:
            return embed(ids, types, places, self._tables, self._norm, dtype=dtype, kept=kept, b=b)
        find = self._model.get_submodule
        x = find(given.words)(ids)
        if given.types is not None:
            x = x + find(given.types)(torch.zeros_like(ids) if types is None else types)
        if given.positions is not None:
            x = x + find(given.positions)(torch.arange(ids.shape[1], device=ids.device) if places is None else places)
        return norm(x.flatten(0, 1).float(), None, self._norm, after=True, dtype=dtype, b=b, kept=kept)

    def _embedded_images(self, pixels: Tensor) -> Tensor:
        """Computes the embedding of images, float32 `[images, tokens, width]`."""
        with PatchProducts() if pixels.is_cuda else nullcontext():
            x = self._model.embeddings(pixels)
        by: Any = self._stack.norm(None, "embeddings")
        embedded: Tensor = x.float() if by is None else by(x.float())
        return embedded

    def _pixels_a_token(self) -> int:
        """The numbers of an image that make a token."""
        size, channels = self._model.config.patch_size, getattr(self._model.config, "num_channels", 3)
        high, wide = size if isinstance(size, list | tuple) else (size, size)
        return int(high * wide * channels)

    def _sample(self, products: E4m3) -> None:
        """Runs a sample batch, which depends only on the model, so that the products choose their scales."""
        generator = torch.Generator().manual_seed(0)
        config = self._model.config
        with products.watching(), tuning.paused():
            if self._block.embeddings is None:
                size = config.image_size
                shape = (
                    2,
                    getattr(config, "num_channels", 3),
                    *(size if isinstance(size, list | tuple) else [size] * 2),
                )
                self.images(torch.randn(shape, generator=generator).to(self._device))
            else:
                words: Any = self._model.get_submodule(self._block.embeddings.words)
                tokens = min(32, self._longest or 32)
                ids = torch.randint(words.num_embeddings, (4, tokens), generator=generator)
                self._recorded({"ids": ids.to(self._device)})

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """Runs on the model's GPU, after what other streams run of it; later calls can write to what is made inside."""
        with torch.inference_mode(False), torch.no_grad():
            if self._device.type != "cuda":
                yield
                return
            with torch.cuda.device(self._device):
                last = getattr(self, "_last_pass", None)
                stream = torch.cuda.current_stream()
                if last is not None:
                    stream.wait_event(last)
                try:
                    yield
                finally:
                    self._last_pass = stream.record_event()
