"""Replaces the `forward` of models by fused passes on an NVIDIA GPU (`gpu.encoder`)."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.errors import TernarizeError, UnavailableError
from ternarize_cli.kernels.block_check import disagreement
from ternarize_cli.kernels.fused_encoder import FusedForward, tell_unfused
from ternarize_cli.kernels.gpu import tuning
from ternarize_cli.kernels.gpu.blocks import Arithmetic
from ternarize_cli.kernels.gpu.encoder import GpuEncoder, Pool
from ternarize_cli.kernels.module_tensors import is_replaced
from ternarize_cli.kernels.pooled_output import pooled_output
from ternarize_cli.kernels.stack import Stack, refusal

__all__ = ["GpuForward", "gpu_refusal", "run_fused"]

_WIDEST_HEAD = 256
_POOLERS = ("pooler", "head", "post_layernorm")
"""Names of the modules with which models of transformers pool."""
_READ_IDS = ("CLIPTextModel", "SiglipTextModel")
"""Models that pool the last token, or one that they find by its id."""
_FARTHEST = 0.2
"""The greatest distance from the model's modules that is taken for rounding to e4m3 (`block_check`)."""


def run_fused(
    model: nn.Module, backend: str, arithmetic: Arithmetic, levels: Sequence[str] = ("ternary",)
) -> str | None:
    """Makes a model run fused on the GPU; returns None, or the reason why it can't.

    Args:
        model: the model.
        backend: the name of the backend.
        arithmetic: makes the products.
        levels: the grids of codes that it takes.
    """
    reason = gpu_refusal(model, levels)
    if reason is None:
        model.forward = GpuForward(model, backend, arithmetic)
    return reason


def gpu_refusal(model: nn.Module, levels: Sequence[str] = ("ternary",)) -> str | None:
    """Says why a model can't run fused on the GPU, with products of codes of these levels; None if it can."""
    reason = refusal(model, levels)
    if reason is not None:
        return reason
    block = Stack.of(model).block
    if block.head > _WIDEST_HEAD:
        return f"its heads are {block.head:,} wide, and {_WIDEST_HEAD} is the most"
    of_heads = [block.norms[place].kind for place in ("query", "key") if place in block.norms]
    if block.head % 2 and (of_heads or any(kind.rotary is not None for kind in block.kinds)):
        return f"its heads are {block.head} wide, and the kernel norms and turns pairs of numbers"
    if of_heads not in ([], ["rms", "rms"]):
        return "its queries and keys have norms that are not both RMS norms"
    sums = any(f"{part}.sum" in block.norms for part in ("attention", "feed_forward"))
    if sums and any(f"{part}.before" in block.norms for part in ("attention", "feed_forward")):
        return "its blocks have norms before their parts and of sums, too"
    return None


class GpuForward(FusedForward):
    """A model's forward pass on a GPU, with one of the arithmetics of `products`; one thread runs it at a time."""

    device, closes_holes = "cuda", False

    def __init__(self, model: nn.Module, backend: str, arithmetic: Arithmetic) -> None:
        self.backend = backend
        self._arithmetic = arithmetic
        self._lock = threading.RLock()
        self._is_compared = False  # whether the model's modules gave the vectors of a fused encoder
        self._refused = False
        self._pooled_from: list[int] = []  # where the tensors lie from which recorded passes pool
        super().__init__(model)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._lock = threading.RLock()
        super().__setstate__(state)

    def _make_encoder(self, model: nn.Module) -> GpuEncoder | None:
        if self._refused:
            return None
        try:
            encoder = GpuEncoder(model, self._arithmetic, self._pool(model))
            with tuning.paused():
                reason = None if self._is_compared else disagreement(model, encoder, most=_FARTHEST)
        except (UnavailableError, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except (TernarizeError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
            reason = f"the description of its blocks does not fit it: {' '.join(str(e).split())[:200]}"
        self._is_compared = reason is None
        if reason is None:
            self._pooled_from = self._places()
            return encoder
        self._refused = True
        tell_unfused(model, reason)
        return None

    @staticmethod
    def _pool(model: Any) -> Pool | None:
        """Returns the function that pools, if it reads neither the last token nor the ids of tokens; otherwise None."""
        if type(model).__name__ in _READ_IDS:
            return None
        return lambda hidden, first: pooled_output(model, hidden, first)

    def _with_pooled(self, hidden: Tensor, first: Tensor) -> Any:
        encoder: Any = self._encoder
        pooled = None if torch.compiler.is_compiling() or encoder is None else encoder.pooled
        if pooled is None or not self._pools_as_recorded():
            return super()._with_pooled(hidden, first)
        kind: Any = self._output
        return kind(last_hidden_state=hidden, pooler_output=pooled)

    def _poolers(self) -> list[nn.Module]:
        found = (getattr(self._model, name, None) for name in _POOLERS)
        return [m for m in found if isinstance(m, nn.Module)]

    def _pools_as_recorded(self) -> bool:
        """Returns whether the model pools with the tensors that it had when the encoder was made, in its own way."""
        return self._places() == self._pooled_from and not any(map(is_replaced, self._poolers()))

    def _places(self) -> list[int]:
        """Returns the addresses of all tensors with which the model pools."""
        return [t.data_ptr() for m in self._poolers() for t in (*m.parameters(), *m.buffers())]

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Computes what the model's own `forward` computes."""
        if torch.compiler.is_compiling():  # a graph has no lock; the operator in it calls this again
            return super().__call__(*arguments, **options)
        with self._lock:
            try:
                return super().__call__(*arguments, **options)
            except BaseException:
                self._clear()
                raise

    def _clear(self) -> None:
        """Clears what a pass that failed has left; an encoder that can't be cleared is made again."""
        encoder: Any = self._encoder
        if encoder is None:
            return
        self._encoder = None
        with suppress(RuntimeError):  # such as those of a GPU that gave up
            encoder.clear()
            self._encoder = encoder
