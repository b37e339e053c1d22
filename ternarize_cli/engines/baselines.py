"""The rivals: what a packed model is compared with.

A rival is a way to run the same encoder in full width. It is built from a folder with full-precision weights and
gives a `Forward`: a batch of `inputs` in, last hidden state out. Rivals register by name, so adding one is
adding a function (or a file, as `compiled`, `onnx` and `openvino`):

    @rival("onnx-fp32", "ONNX Runtime, fp32", needs=("onnx", "onnxscript"), runtime="onnxruntime", make=onnx_export)
    def _onnx_fp32(path: Path, device: str) -> Forward: ...

What has to be made only once, such as an export, is apart from loading, so that loading can be timed. Names start with
the library that runs them: torch-*, onnx-*, openvino-*. A rival whose packages are not installed is known all the same,
so that asking for it can say what to install.
"""

import importlib.util
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ternarize_cli.engines import inputs
from ternarize_cli.engines.exports import quiet, transformer
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.measuring import gpu

__all__ = [
    "ALL",
    "NONE",
    "Forward",
    "ModelForward",
    "Rival",
    "available",
    "forward_of",
    "libraries",
    "names",
    "on_cpu",
    "on_gpu",
    "require",
    "rival",
]

ALL, NONE = "all", "none"
"""Stand for every rival that can run here, and for no rival."""

Forward = Callable[..., Tensor]
"""The tensors of an `inputs.Batch` → last hidden state: [batch, tokens, width]. On a GPU it may still be at work."""

Load = Callable[[Path, str], Forward]


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Rival:
    """A registered rival.

    Attributes:
        name, summary: for people.
        load: `load(path, device)` gives its forward pass; the path is what `prepare` returns.
        needs: packages, beside ours, that it is made with.
        runtime: the module that runs it, imported before loading is timed; None for eager torch.
        make: `make(folder)` writes what it loads, or finds it where it is kept; None: it loads the model's own folder.
        missing: why it can't run on this machine, or None; asked when its packages are there.
        cpu_only, cuda_only: it runs on no other device.
        same_vectors: it computes what another rival computes, or is there for its speed alone, so that `eval` has no
            use for it.
    """

    name: str
    summary: str
    load: Load
    needs: tuple[str, ...] = ()
    runtime: str | None = None
    make: Callable[[Path], Path] | None = None
    missing: Callable[[], str | None] = _nothing
    cpu_only: bool = False
    cuda_only: bool = False
    same_vectors: bool = False

    def check(self, device: str) -> None:
        """Refuses a device that it does not run on.

        Raises:
            UnavailableError: as it says.
        """
        if self.cpu_only:
            on_cpu(self.name, device)
        if self.cuda_only:
            on_gpu(self.name, device)

    def prepare(self, folder: Path) -> Path:
        """Makes what it loads, where that is not there yet, of a full-precision model, and imports its runtime.

        Raises:
            TernarizeError: it can't be made.
        """
        path = self.make(folder) if self.make else folder
        if self.runtime:
            with quiet():
                import_module(self.runtime)
        return path

    def build(self, folder: Path, device: str) -> Forward:
        """Prepares and loads it.

        Raises:
            UnavailableError: it does not run on that device; TernarizeError: it can't be made.
        """
        self.check(device)
        return self.load(self.prepare(folder), device)


_RIVALS: dict[str, Rival] = {}


def rival(name: str, summary: str, **settings: Any) -> Callable[[Load], Load]:
    """Registers the decorated load function under `name`; `settings` are fields of `Rival`."""

    def register(load: Load) -> Load:
        _RIVALS[name] = Rival(name, summary, load, **settings)
        return load

    return register


def names(*, same_vectors: bool = False) -> list[str]:
    """Registered rivals, in the order in which they registered, installed or not.

    Args:
        same_vectors: those too that differ from another in speed alone.
    """
    return [name for name, entry in _RIVALS.items() if same_vectors or not entry.same_vectors]


def require(name: str, device: str = "cpu") -> Rival:
    """The rival of that name, if it can run here.

    Raises:
        InputError: there is none.
        UnavailableError: packages that it needs are not installed, the machine lacks something, or it does not run on
            that device.
    """
    if name not in _RIVALS:
        raise InputError(
            f"there is no rival {name!r} to compare with",
            hint="--against one of: " + ", ".join([*_RIVALS, ALL, NONE]),
        )
    found = _RIVALS[name]
    wanted = [*found.needs, *([found.runtime] if found.runtime else [])]
    missing = [package for package in wanted if importlib.util.find_spec(package) is None]
    if missing:
        raise UnavailableError(f"{name} needs {', '.join(missing)}", hint="pip install 'ternarize-cli[rivals]'")
    found.check(device)
    if reason := found.missing():
        raise UnavailableError(f"{name} can't run here: {reason}", hint="leave it out")
    return found


def libraries(chosen: Iterable[str]) -> list[str]:
    """The packages that these rivals are made with and run by."""
    entries = [_RIVALS[name] for name in chosen]
    found = [package for entry in entries for package in (*entry.needs, entry.runtime) if package]
    return list(dict.fromkeys(package.partition(".")[0] for package in found))


def available(device: str) -> tuple[list[str], list[str]]:
    """What `--against all` means: the names of all rivals that can run here, and for each other one the reason."""
    there, reasons = [], []
    for name in _RIVALS:
        try:
            require(name, device)
            there.append(name)
        except UnavailableError as e:
            reasons.append(str(e))
    return there, reasons


def on_cpu(name: str, device: str) -> None:
    """Refuses any other device.

    Raises:
        UnavailableError: the rival runs on the CPU only.
    """
    if torch.device(device).type != "cpu":
        raise UnavailableError(f"{name} runs on the CPU, not on {device}", hint="leave it out, or --device cpu")


def on_gpu(name: str, device: str) -> None:
    """Refuses the CPU.

    Raises:
        UnavailableError: the rival runs on a GPU only.
    """
    if not gpu.is_gpu(device):
        raise UnavailableError(f"{name} runs on an NVIDIA GPU, not on {device}", hint="leave it out, or --device cuda")


class ModelForward:
    """The `Forward` of a transformers encoder.

    Attributes:
        model: the encoder.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, around: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.model = model
        self._names, self._dtype, self._around = inputs.names(model), dtype, around

    def __call__(self, *batch: Tensor) -> Tensor:
        """As `Forward`."""
        fed = {n: t.to(self._dtype) if t.is_floating_point() else t for n, t in zip(self._names, batch, strict=True)}
        with self._around():
            return self.model(**fed).last_hidden_state


def forward_of(
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ModelForward:
    """The `Forward` of a transformers encoder that takes pixels in `dtype`; each pass is run within `around()`."""
    return ModelForward(model, dtype, around)


@rival("torch-fp32", "PyTorch, fp32, eager")
def _torch_fp32(folder: Path, device: str) -> Forward:
    return _torch(folder, device, torch.float32, partial(gpu.tf32, False) if gpu.is_gpu(device) else nullcontext)


def _without_tf32() -> str | None:
    if not torch.cuda.is_available():
        return "torch sees no NVIDIA GPU"
    if torch.cuda.get_device_capability() >= (8, 0):
        return None
    return f"{torch.cuda.get_device_name()} is older than Ampere, and has no TF32"


@rival(
    "torch-tf32",
    "PyTorch, fp32 weights, products in TF32, eager",
    missing=_without_tf32,
    cuda_only=True,
    same_vectors=True,
)
def _torch_tf32(folder: Path, device: str) -> Forward:
    return _torch(folder, device, torch.float32, partial(gpu.tf32, True))


@rival("torch-bf16", "PyTorch, bf16 weights and activations, eager")
def _torch_bf16(folder: Path, device: str) -> Forward:
    return _torch(folder, device, torch.bfloat16)


@rival("torch-fp16", "PyTorch, fp16 weights and activations, eager")
def _torch_fp16(folder: Path, device: str) -> Forward:
    return _torch(folder, device, torch.float16)


def _torch(
    folder: Path,
    device: str,
    dtype: torch.dtype,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> Forward:
    return forward_of(transformer(folder, dtype).to(device), dtype, around)


for _module in ("compiled", "int8", "onnx", "openvino"):
    import_module(f"ternarize_cli.engines.{_module}")
