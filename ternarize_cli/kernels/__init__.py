"""Kernel backends: who multiplies the packed weights.

A backend *prepares* a packed layer once (expands, transposes, compiles) and then runs it. `auto` picks per device;
a backend that was asked for by name and can't run is an error, never a silent replacement. Adding one is adding a file
with a class under `@register`.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Protocol

from torch import Tensor, nn

from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.layers import PackedLinear

__all__ = ["Backend", "BackendInfo", "describe", "names", "prepare", "register", "require", "use_backend"]

Kernel = Callable[[Tensor], Tensor]
AUTO = {"cpu": ("native", "onednn", "reference"), "cuda": ("triton", "reference")}
"""What `auto` tries, best first, by device type."""


class Backend(Protocol):
    """What a backend class offers; all are stateless.

    Attributes:
        name: as users type it.
        device: "any", "cpu" or "cuda".
        weights: how weights lie in memory, in words.
        levels: the grids that it runs, keys of `scheme.LEVELS`.
        granularities: the scales that it takes: "row", "tensor", "group".
    """

    name: str
    device: str
    weights: str
    levels: tuple[str, ...]
    granularities: tuple[str, ...]

    def missing(self) -> str | None:
        """Why this machine can't run it, in words; None if it can."""

    def refuses(self, layer: PackedLinear) -> str | None:
        """Why it can't run this layer (its activations, device, shape); None if it can.

        Levels and granularities are declared and need not be looked at.
        """

    def prepare(self, layer: PackedLinear) -> Kernel:
        """A function from `[..., in]` to `[..., out]` for a layer that is not refused."""

    # One that runs whole encoders has `whole(model) -> str | None`, too: see `native.Native`.


@dataclass(frozen=True)
class BackendInfo:
    """A line of `ternarize doctor`."""

    name: str
    device: str
    weights: str
    levels: tuple[str, ...]
    granularities: tuple[str, ...]
    available: bool
    reason: str


_REGISTRY: dict[str, Backend] = {}


def register(cls: type[Backend]) -> type[Backend]:
    """Class decorator that adds a backend under its name."""
    _REGISTRY[cls.name] = cls()
    return cls


def names() -> list[str]:
    """All registered backends, available or not."""
    return list(_REGISTRY)


def describe() -> list[BackendInfo]:
    """Every backend, with the reason when one can't run here."""
    return [
        BackendInfo(b.name, b.device, b.weights, b.levels, b.granularities, b.missing() is None, b.missing() or "")
        for b in _REGISTRY.values()
    ]


def require(name: str) -> Backend:
    """The backend of that name.

    Raises:
        InputError: there is none of that name.
        UnavailableError: it can't run on this machine.
    """
    if name not in _REGISTRY:
        raise InputError(f"there is no backend {name!r}", hint=f"one of auto, {', '.join(_REGISTRY)}")
    reason = _REGISTRY[name].missing()
    if reason is not None:
        raise UnavailableError(
            f"the backend {name} can't run here: {reason}", hint="ternarize doctor, or --backend auto"
        )
    return _REGISTRY[name]


def _refusal(backend: Backend, layer: PackedLinear) -> str | None:
    """Why a backend can't run a layer: what it declares, then what it says itself."""
    levels, granularity = layer.scheme.levels, layer.scheme.granularity
    if levels not in backend.levels:
        return f"its levels are {levels}, and {backend.name} runs {' and '.join(backend.levels)} only"
    if granularity not in backend.granularities:
        return (
            f"its scales are per {granularity}, and {backend.name} takes them per {' or '.join(backend.granularities)}"
        )
    return backend.refuses(layer)


def prepare(layer: PackedLinear) -> tuple[str, Kernel]:
    """Prepares a layer on the backend it asks for; returns the backend's name and the kernel.

    Raises:
        UnavailableError: the backend can't run here or can't run this layer.
    """
    if layer.backend == "auto":
        for name in AUTO.get(layer.weight.device.type, ("reference",)):
            backend = _REGISTRY[name]
            if name == "native" and os.environ.get("TERNARIZE_NATIVE_ISA"):
                require(name)  # who chose its instructions chose it
            if backend.missing() is None and _refusal(backend, layer) is None:
                return name, backend.prepare(layer)
    backend = require("reference" if layer.backend == "auto" else layer.backend)
    reason = _refusal(backend, layer)
    if reason is not None:
        raise UnavailableError(f"the backend {backend.name} can't run this model: {reason}", hint="--backend auto")
    return backend.name, backend.prepare(layer)


def use_backend(encoder: nn.Module, name: str) -> str:
    """Sets and prepares the backend of every packed layer.

    Args:
        encoder: any module; a model without packed layers takes "auto" only.
        name: a registered backend or "auto".

    Returns:
        What runs: one name, several joined by "+" where `auto` mixes, or "torch" if nothing is packed. Behind a backend
        that runs whole encoders stands "(linears only)" where it does not know this one.

    Raises:
        InputError: no such backend, or a backend was named for a model that is not packed.
        UnavailableError: it can't run here or can't run this model.
    """
    if name != "auto":
        require(name)
    layers = [m for m in encoder.modules() if isinstance(m, PackedLinear)]
    if not layers:
        if name != "auto":
            raise InputError(f"--backend {name} runs packed models, and this one is not packed", hint="ternarize pack")
        return "torch"
    for layer in layers:
        layer.backend = name
        layer.ensure_kernel()
    ran = "+".join(sorted({layer.backend for layer in layers}))
    whole = [_runs_whole(m) for m in encoder.modules() if hasattr(m, "config")]
    return f"{ran} (linears only)" if hasattr(_REGISTRY.get(ran), "whole") and not any(whole) else ran


def _runs_whole(model: nn.Module) -> bool:
    """Lets the backend of all packed layers of a model run it as a whole, where it can."""
    model.__dict__.pop("forward", None)  # an earlier backend's
    used = {m.backend for m in model.modules() if isinstance(m, PackedLinear)}
    if len(used) != 1 or not hasattr(backend := _REGISTRY[used.pop()], "whole"):
        return False
    return backend.whole(model) is None


PackedLinear.prepare = staticmethod(prepare)
for _module in ("reference", "onednn", "native", "bitblas", "triton", "scaled_mm"):
    import_module(f"{__name__}.{_module}")
