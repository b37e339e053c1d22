"""Measures memory and start-up time of one candidate, in a process of its own.

    python -m ternarize_cli.bench.probe '{"candidate": {"name": "onednn", …}, "point": {…}, "threads": 2, "seed": 0}'

A process that has held a model never returns all of its memory, so several candidates can't be measured in one process.
This process imports everything, notes its resident memory, loads the model, runs one forward pass, and prints as JSON

    imports_bytes    resident memory after the imports, before the model, which any such process needs
    loaded_bytes     resident memory after loading, minus that after the imports
    resident_bytes   resident memory after the forward pass
    peak_bytes       the highest resident memory until then, loading included
    load_ms          time from the end of the imports until the model can be called; files are in the system's cache
    cold_start_ms    time of the first forward pass

On a GPU these are the host's memory, the first pass has batch 1, and the process also prints

    device_weights_bytes   storages of the model's parameters and buffers, and of the weights that its backend prepared
    device_bytes           torch's memory after that pass, minus its memory before loading
    device_peak_bytes      torch's highest memory in passes at the point
    device_reserved_bytes  memory that torch has taken from the driver by then, with that of recorded graphs

Files that are made once and kept (an ONNX export, compiled C++) exist before the clock starts, so load times are those
of a server's second start. The peak is VmHWM of /proc/self/status if there is one, because the counter of `getrusage`
survives `exec` on Linux, and so may be the peak of the process that started this one.
"""

import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from ternarize_cli.arithmetic.cuda_graphs import Graphs
from ternarize_cli.bench.candidates import BenchCandidate
from ternarize_cli.engines.baselines import Forward
from ternarize_cli.engines.inputs import Batch, random_batch
from ternarize_cli.errors import TernarizeError
from ternarize_cli.measuring import gpu
from ternarize_cli.measuring.timing import GridPoint

__all__ = ["Memory", "device_weights", "peak_bytes", "probe"]

_PASSES = 3  # the first pass, the pass that records, and a pass of the recording


@dataclass(frozen=True)
class Memory:
    """Resident memory in bytes, and times in milliseconds, of a process with one candidate.

    Attributes:
        name, kind: name and kind of the candidate.
        imports_bytes: memory after the imports, which any such process needs.
        resident_bytes: memory after the first forward pass.
        peak_bytes: the highest memory until then, loading included.
        loaded_bytes: memory after loading, minus that after the imports.
        load_ms: time of loading, without imports.
        cold_start_ms: time of the first forward pass.
        model_bytes: peak memory minus that after the imports.
        device_weights_bytes, device_bytes, device_peak_bytes, device_reserved_bytes: memory of the GPU, which the
            docstring of this module explains; None on the CPU. Weights are also None if a rival hides its tensors.
    """

    name: str
    kind: str
    imports_bytes: int
    resident_bytes: int
    peak_bytes: int
    loaded_bytes: int
    load_ms: float
    cold_start_ms: float
    model_bytes: int
    device_weights_bytes: int | None = None
    device_bytes: int | None = None
    device_peak_bytes: int | None = None
    device_reserved_bytes: int | None = None

    @property
    def on_device(self) -> tuple[int | None, ...]:
        """Memory of the GPU in bytes: weights, in use, peak, reserved."""
        return self.device_weights_bytes, self.device_bytes, self.device_peak_bytes, self.device_reserved_bytes


def probe(candidate: BenchCandidate, point: GridPoint, *, threads: int, seed: int) -> Memory:
    """Measures a candidate at one point in a subprocess.

    Raises:
        TernarizeError: the subprocess failed; it may have been killed because memory was short.
    """
    request = {
        "candidate": {**asdict(candidate), "folder": str(candidate.folder.resolve())},
        "point": asdict(point),
        "threads": threads,
        "seed": seed,
    }
    command = [sys.executable, "-P", "-m", "ternarize_cli.bench.probe", json.dumps(request)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if ended.returncode != 0:
        told = ended.stderr.strip().splitlines()
        reason = f"signal {-ended.returncode}" if ended.returncode < 0 else told[-1] if told else "no message"
        raise TernarizeError(
            f"measuring the memory of {candidate.name} failed: {reason}", hint="--no-memory leaves it out"
        )
    measured = json.loads(ended.stdout.splitlines()[-1])
    return Memory(
        candidate.name, candidate.kind, **measured, model_bytes=measured["peak_bytes"] - measured["imports_bytes"]
    )


def peak_bytes() -> int:
    """The highest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measure(request: str) -> dict[str, float]:
    import sentence_transformers  # noqa: F401  (counted as an import for every candidate)

    from ternarize_cli.encoders import transformers_plugin

    os.environ["CI"] = "true"  # OpenVINO sends no usage report then (`openvino_runtime`)
    values = json.loads(request)
    fields = values["candidate"]
    candidate, point = BenchCandidate(**{**fields, "folder": Path(fields["folder"])}), GridPoint(**values["point"])
    transformers_plugin.quiet_libraries()
    torch.set_num_threads(values["threads"])
    device = candidate.device
    load = candidate.prepare()
    before = 0
    if gpu.is_gpu(device):
        torch.zeros(1, device=device)
        before = gpu.allocated(device)
    process = psutil.Process()
    imports = process.memory_info().rss
    first = replace(point, batch=1) if gpu.is_gpu(device) else point
    on_device: dict[str, float] = {}
    with gpu.on(device), torch.inference_mode():
        started = time.perf_counter()
        forward = load()
        gpu.synchronize(device)
        loaded = time.perf_counter()
        after_loading = process.memory_info().rss
        batch = random_batch(candidate.folder, first, values["seed"], device)
        begun = time.perf_counter()
        forward(*batch)
        gpu.synchronize(device)
        ended = time.perf_counter()
        if gpu.is_gpu(device):
            largest = random_batch(candidate.folder, point, values["seed"], device)
            on_device = _on_device(forward, batch, largest, device, before)
    resident = process.memory_info().rss
    return {
        "imports_bytes": imports,
        "resident_bytes": resident,
        "peak_bytes": max(peak_bytes(), resident),
        "loaded_bytes": after_loading - imports,
        "load_ms": round(1000 * (loaded - started), 2),
        "cold_start_ms": round(1000 * (ended - begun), 2),
        **on_device,
    }


def _on_device(forward: Forward, first: Batch, largest: Batch, device: str, before: int) -> dict[str, Any]:
    """Measures memory of the GPU after a pass of `first` and passes of `largest`, without the batches themselves."""
    fed = gpu.storage_bytes([*first, *largest])
    gc.collect()
    found: dict[str, Any] = {"device_weights_bytes": device_weights(forward, device)}
    found["device_bytes"] = gpu.allocated(device) - before - fed
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(_PASSES):
        forward(*largest)
    gpu.synchronize(device)
    found["device_peak_bytes"] = torch.cuda.max_memory_allocated(device)
    found["device_reserved_bytes"] = torch.cuda.memory_reserved(device)
    return found


def device_weights(forward: Forward, device: str) -> int | None:
    """Counts the bytes of a model's tensors and of its backend's prepared weights; None if the model is hidden."""
    model = getattr(forward, "model", None)
    if model is None:
        return None
    kept = gpu.reachable(model, Tensor, without=(Graphs,))
    return gpu.storage_bytes(t for t in kept if t.device.type == torch.device(device).type)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
