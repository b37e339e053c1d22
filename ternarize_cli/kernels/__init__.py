"""Registers and chooses kernel backends, which compute the products with packed weights.

A backend *prepares* a packed layer once (expands, transposes, compiles) and then runs it. `auto` picks a backend by
device. A backend that the user named and that can't run is an error: no other one replaces it silently. To add a
backend, add a file with a class under `@register`.
"""

import inspect
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from threading import RLock
from typing import Any, Protocol, get_type_hints

import torch
from torch import Tensor, nn

from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.layers import PackedLinear

__all__ = [
    "Backend",
    "BackendInfo",
    "FirstForward",
    "backend_names",
    "describe",
    "prepare",
    "refusal",
    "register",
    "require_backend",
    "use_backend",
]

Kernel = Callable[[Tensor], Tensor]
AUTO = {"cpu": ("native", "onednn", "reference"), "cuda": ("triton", "scaled_mm", "reference")}
"""The backends that `auto` tries, best first, by device type; those that run all linears of an encoder come first."""


class Backend(Protocol):
    """The interface of a backend; backends have no state.

    Attributes:
        name: the name that users type.
        device: the device that the backend runs on: "any", "cpu" or "cuda".
        weights: a description of the form of the weights in memory, such as "2-bit".
        levels: the grids of codes that the backend runs, keys of `scheme.LEVELS`.
        granularities: the granularities of scales that the backend takes, of "row", "tensor" and "group".
    """

    name: str
    device: str
    weights: str
    levels: tuple[str, ...]
    granularities: tuple[str, ...]

    def missing(self) -> str | None:
        """Says why this machine can't run the backend; None if it can."""

    def refuses(self, layer: PackedLinear) -> str | None:
        """Says why the backend can't run a layer because of its activations, device or shape; None if it can.

        The caller has already compared the layer's levels and granularity with the attributes.
        """

    def prepare(self, layer: PackedLinear) -> Kernel:
        """Makes the function that maps `[..., in]` to `[..., out]` for a layer that `refuses` accepts."""

    # A backend that runs fused encoders also has `fuse(model) -> str | None`: see `native.Native`.


@dataclass(frozen=True)
class BackendInfo:
    """Describes a backend on this machine: a line of `ternarize doctor`.

    Attributes:
        name: the name that users type.
        device: the device that the backend runs on: "any", "cpu" or "cuda".
        weights: a description of the form of the weights in memory.
        levels: the grids of codes that the backend runs.
        granularities: the granularities of scales that the backend takes.
        available: whether this machine can run the backend.
        reason: why this machine can't run the backend; "" if it can.
    """

    name: str
    device: str
    weights: str
    levels: tuple[str, ...]
    granularities: tuple[str, ...]
    available: bool
    reason: str


_REGISTRY: dict[str, Backend] = {}
_CHOOSING = RLock()


def register(cls: type[Backend]) -> type[Backend]:
    """Registers a backend class under its name; used as a class decorator."""
    _REGISTRY[cls.name] = cls()
    return cls


def backend_names() -> list[str]:
    """Lists the names of all registered backends, available or not."""
    return list(_REGISTRY)


def describe() -> list[BackendInfo]:
    """Describes every backend, with the reason if it can't run on this machine."""
    return [
        BackendInfo(b.name, b.device, b.weights, b.levels, b.granularities, b.missing() is None, b.missing() or "")
        for b in _REGISTRY.values()
    ]


def require_backend(name: str) -> Backend:
    """Returns the backend of a name.

    Raises:
        InputError: there is no backend of that name.
        UnavailableError: the backend can't run on this machine.
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
    """Says why a backend can't run a layer: first by its attributes, then by its own `refuses`; None if it can."""
    levels, granularity = layer.scheme.levels, layer.scheme.granularity
    if levels not in backend.levels:
        return f"its levels are {levels}, and {backend.name} runs {' and '.join(backend.levels)} only"
    if granularity not in backend.granularities:
        return (
            f"its scales are per {granularity}, and {backend.name} takes them per {' or '.join(backend.granularities)}"
        )
    return backend.refuses(layer)


def refusal(model: nn.Module, name: str) -> str | None:
    """Says why the backend of a name can't run the packed layers of a model; None if it can run all of them."""
    layers = [m for m in model.modules() if isinstance(m, PackedLinear)]
    return next((why for layer in layers if (why := _refusal(_REGISTRY[name], layer)) is not None), None)


def prepare(layer: PackedLinear) -> tuple[str, Kernel]:
    """Prepares a layer for the backend that its attribute `backend` names.

    Returns:
        The backend's name, and the function that maps activations `[..., in]` to `[..., out]`.

    Raises:
        InputError: there is no backend of that name.
        UnavailableError: the backend can't run on this machine, or can't run this layer.
    """
    if layer.backend == "auto":
        names = AUTO.get(layer.weight.device.type, ("reference",))
        if "native" in names and os.environ.get("TERNARIZE_NATIVE_ISA"):
            require_backend("native")  # choosing a backend's instructions chooses the backend
        for name in [n for n in names if n in layer.shared] or names:
            backend = _REGISTRY[name]
            if backend.missing() is None and _refusal(backend, layer) is None:
                return name, backend.prepare(layer)
    backend = require_backend("reference" if layer.backend == "auto" else layer.backend)
    reason = _refusal(backend, layer)
    if reason is not None:
        raise UnavailableError(f"the backend {backend.name} can't run this model: {reason}", hint="--backend auto")
    return backend.name, backend.prepare(layer)


def use_backend(encoder: nn.Module, name: str) -> str:
    """Sets and prepares the backend of every packed layer.

    Args:
        encoder: any module; one without packed layers takes only "auto".
        name: the name of a registered backend, or "auto".

    Returns:
        The name of the backend that runs the layers; several names, joined by "+", if `auto` mixes backends; "torch" if
        nothing is packed. "(linears only)" follows if the backend runs fused encoders, but can't run this one fused.

    Raises:
        InputError: there is no such backend, or a backend was named for a model that is not packed.
        UnavailableError: the backend can't run on this machine, or can't run this model.
    """
    if name != "auto":
        require_backend(name)
    layers = [m for m in encoder.modules() if isinstance(m, PackedLinear)]
    if not layers:
        if name != "auto":
            raise InputError(f"--backend {name} runs packed models, and this one is not packed", hint="ternarize pack")
        return "torch"
    shared = _running_all(encoder, layers) if name == "auto" else ()
    for layer in layers:
        layer.backend, layer.shared = name, shared
        layer.ensure_kernel()
    ran = "+".join(sorted({layer.backend for layer in layers}))
    fused = [_runs_fused(m) for m in encoder.modules() if hasattr(m, "config")]
    return f"{ran} (linears only)" if hasattr(_REGISTRY.get(ran), "fuse") and not any(fused) else ran


def _running_all(encoder: nn.Module, layers: Sequence[PackedLinear]) -> tuple[str, ...]:
    """The backends but `reference` that can run every packed layer of an encoder, so that it can run fused.

    Without this an encoder whose linears are not all ternary would have one backend for some and one for the others.
    """
    names = {name for layer in layers for name in AUTO.get(layer.weight.device.type, ())} - {"reference"}
    return tuple(name for name in names if _REGISTRY[name].missing() is None and refusal(encoder, name) is None)


class FirstForward:
    """Replaces a model's `forward` until its first call, which chooses the backend: by then the model has its device.

    transformers and sentence-transformers load a model on the CPU and may move it afterwards.

    Args:
        model: the loaded model.
        backend: the name of a backend, or "auto"; "" takes what TERNARIZE_BACKEND names, or "auto" if that is not set.
    """

    def __init__(self, model: nn.Module, backend: str = "") -> None:
        self._model = model
        self._backend = backend
        # sentence-transformers chooses by these what it passes, and whether it pools what comes back
        self.__signature__ = inspect.signature(model.forward)
        with suppress(Exception):  # an annotation that only type checkers can resolve
            self.__annotations__ = {"return": get_type_hints(model.forward)["return"]}

    @property
    def __code__(self) -> Any:
        """The code of this `forward`, which torch.export asks for."""
        return type(self).__call__.__code__

    @torch.compiler.disable(reason="its first call chooses the backend of a packed model: run the model once before")  # type: ignore[untyped-decorator]
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Chooses the backend, and runs the model.

        Raises:
            InputError: there is no backend of that name.
            UnavailableError: the backend can't run on this machine, or can't run this model; or torch.export traces the
                model before it has run.
        """
        if torch.compiler.is_exporting():
            raise UnavailableError("this model has no backend yet", hint="run it once before torch.export")
        with _CHOOSING:  # of several threads that call the model first, one chooses, and the others wait
            if self._model.__dict__.get("forward") is self:
                use_backend(self._model, self._backend or os.environ.get("TERNARIZE_BACKEND") or "auto")
                if self._model.__dict__.get("forward") is self:  # nothing is packed any more: it was dequantised
                    del self._model.forward
        return self._model.forward(*arguments, **options)


def _runs_fused(model: nn.Module) -> bool:
    """Lets the backend of a model's packed layers run the whole model fused, if it can; returns whether it does."""
    used = {m.backend for m in model.modules() if isinstance(m, PackedLinear)}
    fuses = len(used) == 1 and hasattr(backend := _REGISTRY[used.pop()], "fuse") and backend.fuse(model) is None
    if not fuses:
        model.__dict__.pop("forward", None)  # of an earlier backend, or `FirstForward`
    return fuses


PackedLinear.prepare = staticmethod(prepare)
for _module in ("reference", "onednn", "native", "bitblas", "triton", "scaled_mm"):
    import_module(f"{__name__}.{_module}")
