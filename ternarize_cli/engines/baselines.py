"""The registry of rivals, with which a packed model is compared.

A rival is another way to run the full-precision model. It is built from a folder with full-precision weights and gives
a `Forward`, from a batch of `inputs` to the last hidden state. Rivals register by name. To add a rival, add a function
(or a file, such as `compiled`, `onnx` and `openvino`):

    @rival("onnx-fp32", "ONNX Runtime, fp32", needs=("onnx", "onnxscript"), runtime="onnxruntime", make=onnx_export)
    def _onnx_fp32(path: Path, device: str) -> Forward: ...

Files that are made only once, such as an export, are made apart from loading, so that loading can be timed. Names start
with the library that runs the rival: torch-*, onnx-*, openvino-*. A rival is registered even if its packages are not
installed, so that the error can say what to install.
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

from ternarize_cli.encoders import checkpoint
from ternarize_cli.engines import inputs
from ternarize_cli.engines.exports import quiet, transformer
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.measuring import gpu

__all__ = [
    "ALL",
    "EXACT",
    "NONE",
    "ROUNDED",
    "Forward",
    "ModelForward",
    "Rival",
    "available",
    "baseline_names",
    "forward_of",
    "libraries",
    "on_cpu",
    "on_gpu",
    "require_baseline",
    "require_packed",
    "rival",
]

ALL, NONE = "all", "none"
"""Names that stand for every rival that can run on this machine, and for no rival."""

Forward = Callable[..., Tensor]
"""A function from the tensors of an `inputs.Batch` to the last hidden state, [batch, tokens, width].

On a GPU it may return before the work is done.
"""

Load = Callable[[Path, str], Forward]


EXACT, ROUNDED = 0.01, 1.2
"""Tolerances of fp32 and of int8; unrelated outputs are off by 1.4, and int8 of a deep random model by up to 1."""


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Rival:
    """A registered rival.

    Attributes:
        name: the name that users type.
        summary: a description for users.
        load: `load(path, device)` gives the forward pass; `path` is the one that `prepare` returns.
        alone: like `load`, but in this process, where nothing else runs; for a runtime that `load` puts into a process
            of its own. None if there is no difference.
        needs: further packages that making the rival needs.
        runtime: the module that runs the rival, imported before loading is timed; None for eager torch.
        make: `make(folder)` writes the file that `load` reads, or finds it in the cache; None reads the model's folder.
        missing: says why the rival can't run on this machine, or returns None; called only if its packages are there.
        cpu_only, cuda_only: whether the rival runs on the CPU only, or on a GPU only.
        same_vectors: whether the rival gives the vectors of another rival and only its speed differs, so that `eval`
            leaves it out.
        packed: whether the rival runs the packed model's codes, and its folder is that of the packed model.
        tolerance: relative L2 distance from the model's output above which the rival computes something else.
        describe: `describe(path)` says in a sentence how the file of `make` is run; None if there is nothing to say.
    """

    name: str
    summary: str
    load: Load
    alone: Load | None = None
    needs: tuple[str, ...] = ()
    runtime: str | None = None
    make: Callable[[Path], Path] | None = None
    missing: Callable[[], str | None] = _nothing
    cpu_only: bool = False
    cuda_only: bool = False
    same_vectors: bool = False
    packed: bool = False
    describe: Callable[[Path], str] | None = None
    tolerance: float = 0.3

    def check(self, device: str) -> None:
        """Checks that the rival runs on a device.

        Raises:
            UnavailableError: the rival does not run on `device`.
        """
        if self.cpu_only:
            on_cpu(self.name, device)
        if self.cuda_only:
            on_gpu(self.name, device)

    def prepare(self, folder: Path, *, alone: bool = False) -> Path:
        """Makes the rival's files from a full-precision model, unless they exist, and imports its runtime.

        Args:
            folder: the folder of the model.
            alone: import a runtime for `alone`, too, which `load` imports in another process.

        Returns:
            The path for `load` and `alone`.

        Raises:
            TernarizeError: the files can't be made.
        """
        path = self.make(folder) if self.make else folder
        if self.runtime and (alone or not self.alone):
            with quiet():
                import_module(self.runtime)
        return path

    def build(self, folder: Path, device: str) -> Forward:
        """Prepares and loads the rival.

        Raises:
            UnavailableError: the rival does not run on `device`.
            TernarizeError: its files can't be made.
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


def baseline_names(*, same_vectors: bool = False) -> list[str]:
    """Lists the registered rivals, in the order of registration, installed or not.

    Args:
        same_vectors: include rivals that differ from another rival only in speed.
    """
    return [name for name, entry in _RIVALS.items() if same_vectors or not entry.same_vectors]


def require_packed(name: str, folder: Path) -> None:
    """Checks that a folder has what a rival of packed models runs.

    Raises:
        InputError: the model in it is not packed.
    """
    if checkpoint.stage(folder) != "packed":
        raise InputError(f"{name} runs the codes of a packed model, and {folder} is none", hint="ternarize pack")


def require_baseline(name: str, device: str = "cpu") -> Rival:
    """Gives the rival of a name, if it can run on this machine.

    Raises:
        InputError: there is no rival of that name.
        UnavailableError: a package that it needs is not installed, the machine lacks something, or it does not run on
            `device`.
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
    """Lists the packages that make and run these rivals."""
    entries = [_RIVALS[name] for name in chosen]
    found = [package for entry in entries for package in (*entry.needs, entry.runtime) if package]
    return list(dict.fromkeys(package.partition(".")[0] for package in found))


def available(device: str) -> tuple[list[str], list[str]]:
    """Lists the rivals of `--against all`: names of all that can run on this machine, and for others the reasons."""
    there, reasons = [], []
    for name in _RIVALS:
        try:
            require_baseline(name, device)
            there.append(name)
        except UnavailableError as e:
            reasons.append(str(e))
    return there, reasons


def on_cpu(name: str, device: str) -> None:
    """Checks that the device is the CPU, for a rival that runs only there.

    Raises:
        UnavailableError: the device is not the CPU.
    """
    if torch.device(device).type != "cpu":
        raise UnavailableError(f"{name} runs on the CPU, not on {device}", hint="leave it out, or --device cpu")


def on_gpu(name: str, device: str) -> None:
    """Checks that the device is a GPU, for a rival that runs only there.

    Raises:
        UnavailableError: the device is not a GPU.
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
        """Runs a batch: [batch, tokens, width]."""
        fed = {n: t.to(self._dtype) if t.is_floating_point() else t for n, t in zip(self._names, batch, strict=True)}
        with self._around():
            hidden: Tensor = self.model(**fed).last_hidden_state
            return hidden


def forward_of(
    model: nn.Module,
    dtype: torch.dtype = torch.float32,
    around: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ModelForward:
    """Makes the `Forward` of a transformers encoder that takes pixels in `dtype`; each pass runs within `around()`."""
    return ModelForward(model, dtype, around)


@rival("torch-fp32", "PyTorch, fp32, eager", tolerance=EXACT)
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


for _module in ("compiled", "int8", "onnx", "onnx_int2", "openvino", "varlen"):
    import_module(f"ternarize_cli.engines.{_module}")
