"""Chooses the backends, rivals and device of a benchmark; checks their names before any model is built."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ternarize_cli import kernels
from ternarize_cli.encoders.loading import checked_device
from ternarize_cli.engines import baselines, exports
from ternarize_cli.errors import InputError, UnavailableError
from ternarize_cli.measuring import gpu

__all__ = ["DEFAULT_GPU_RIVALS", "DEFAULT_RIVALS", "able_backends", "choose_backends", "choose_rivals"]

DEFAULT_RIVALS = ("torch-fp32", "torch-bf16")
DEFAULT_GPU_RIVALS = ("torch-fp32", "torch-fp16", "torch-fp16-compiled")


def choose_backends(backends: Sequence[str], device: str | None) -> tuple[list[str], str]:
    """Chooses the backends, and the one device on which all of them run.

    Args:
        backends: names that the user typed; an empty list takes all backends that run on the device.
        device: the device that the user typed; None picks a GPU if a backend runs only there, else the CPU.

    Raises:
        InputError: there is no such backend or device, or a backend does not run on the device.
        UnavailableError: a backend or the device can't be used on this machine.
    """
    known = {info.name: info for info in kernels.describe()}
    for name in backends:
        if name != "auto":
            kernels.require_backend(name)
    device = None if device is None else checked_device(device)
    devices = {name: known[name].device for name in backends if name != "auto"}
    on_gpu = [name for name, kind in devices.items() if kind == "cuda"]
    on_cpu = [name for name, kind in devices.items() if kind == "cpu"]
    if on_gpu and on_cpu:
        raise InputError(
            f"{on_gpu[0]} runs on a GPU and {on_cpu[0]} on the CPU; one run has one device",
            hint="bench them in two runs",
        )
    device = device or ("cuda" if on_gpu else "cpu")
    kind = torch.device(device).type
    for name in on_cpu if kind == "cuda" else on_gpu:
        raise InputError(
            f"{name} does not run on {device}", hint="--device cuda" if kind == "cpu" else "leave --device out"
        )
    able = [info.name for info in known.values() if info.available and info.device in ("any", kind)]
    return list(dict.fromkeys(backends or able)), device


def able_backends(backends: Sequence[str], packed: Path) -> tuple[list[str], list[str]]:
    """Returns the backends that can run a packed model, and a note for each that can't."""
    model = exports.transformer(packed)
    refused = {name: why for name in backends if (why := kernels.refusal(model, name)) is not None}
    notes = [f"left out: {name} can't run this model: {why}" for name, why in refused.items()]
    return [name for name in backends if name not in refused], notes


def choose_rivals(rivals: Sequence[str] | None, device: str, *, texts: bool) -> tuple[list[str], list[str]]:
    """Chooses the rivals, with "all" replaced by names; also returns a note for each rival that is left out.

    Args:
        rivals: names that the user typed; None takes the defaults of the device that can run.
        device: name of a torch device.
        texts: whether texts are encoded end to end, which rivals for GPUs alone can't do.

    Raises:
        InputError: there is no such rival, or "none" was named together with others.
        UnavailableError: a named rival can't run on this machine, or can't encode texts.
    """
    if rivals is None and not gpu.is_gpu(device):
        rivals = DEFAULT_RIVALS
    if rivals is not None and baselines.NONE in rivals and len(rivals) > 1:
        raise InputError("--against none can't be combined with rivals", hint="leave out the other rivals, or none")
    chosen: list[str] = []
    notes: list[str] = []
    for name in rivals if rivals is not None else DEFAULT_GPU_RIVALS:
        if name == baselines.ALL:
            there, reasons = baselines.available(device)
            chosen += [rival for rival in there if not (texts and baselines.require_baseline(rival, device).cuda_only)]
            notes += [f"left out: {reason}" for reason in reasons]
            continue
        if name == baselines.NONE:
            continue
        try:
            entry = baselines.require_baseline(name, device)
            if texts and entry.cuda_only:
                raise UnavailableError(f"{name} runs forward passes, and --text encodes texts", hint="leave it out")
            chosen.append(name)
        except UnavailableError as e:
            if rivals is not None:
                raise
            notes.append(f"left out: {e}")
    return list(dict.fromkeys(chosen)), notes
