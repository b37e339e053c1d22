"""Memory and start of one candidate, in a process of its own.

    python -m ternarize_cli.bench.probe '{"candidate": {"name": "onednn", …}, "point": {…}, "threads": 2, "seed": 0}'

A process that has held one model never gives all memory back, so candidates can't be measured one after the other in
one. The process imports everything, notes its resident memory, loads the model, runs one forward pass, and prints

    imports_bytes    resident after the imports, before the model: what any such process needs
    loaded_bytes     resident after loading, beyond the imports
    resident_bytes   resident after the forward pass
    peak_bytes       the highest resident memory on the way, loading included
    load_ms          from the end of the imports until the model can be called; files are in the system's cache
    cold_start_ms    the first forward pass

as JSON. On a GPU these are the host's memory, the first pass is at batch 1, and

    device_weights_bytes   storages of the model's parameters and buffers and of what its backend made of them
    device_bytes           what torch holds after that pass beyond what it held before loading
    device_peak_bytes      the highest that it held in passes at the point
    device_reserved_bytes  what it has taken from the driver by then, memory of recorded graphs included

What is made once and kept (an ONNX export, compiled C++) is there before the clock starts, so load times are
those of a server's second start. The peak is VmHWM of /proc/self/status where there is one: `getrusage` reports the
largest of the process that started this one if that was larger, because the counter survives `exec` on Linux.
"""

import gc
import json
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
from ternarize_cli.bench.candidates import Candidate
from ternarize_cli.engines.baselines import Forward
from ternarize_cli.engines.inputs import Batch, random_batch
from ternarize_cli.errors import TernarizeError
from ternarize_cli.measuring import gpu
from ternarize_cli.measuring.timing import Point

__all__ = ["Memory", "device_weights", "peak_bytes", "probe"]

_PASSES = 3  # of a recorded model: the first, the recording, the recorded


@dataclass(frozen=True)
class Memory:
    """What a process with one candidate needs: resident memory in bytes, and times in milliseconds.

    Attributes:
        name, kind: the candidate.
        imports_bytes: after the imports; what any such process needs.
        resident_bytes: after the first forward pass.
        peak_bytes: the highest on the way, loading included.
        loaded_bytes: after loading, beyond the imports.
        load_ms: of loading, imports not counted.
        cold_start_ms: of the first forward pass after it.
        model_bytes: peak minus imports.
        device_weights_bytes, device_bytes, device_peak_bytes, device_reserved_bytes: memory of the GPU, as the module
            says; None on the CPU, and weights also where a rival doesn't show its tensors.
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
        """Memory of the GPU: weights, in use, peak, reserved."""
        return self.device_weights_bytes, self.device_bytes, self.device_peak_bytes, self.device_reserved_bytes


def probe(candidate: Candidate, point: Point, *, threads: int, seed: int) -> Memory:
    """Measures a candidate at one point in a subprocess.

    Raises:
        TernarizeError: the subprocess failed (killed for want of memory, for instance).
    """
    request = {
        "candidate": {**asdict(candidate), "folder": str(candidate.folder.resolve())},
        "point": asdict(point),
        "threads": threads,
        "seed": seed,
    }
    command = [sys.executable, "-m", "ternarize_cli.bench.probe", json.dumps(request)]
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
    """The highest resident memory of this process so far."""
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

    values = json.loads(request)
    fields = values["candidate"]
    candidate, point = Candidate(**{**fields, "folder": Path(fields["folder"])}), Point(**values["point"])
    transformers_plugin.quiet_libraries()
    torch.set_num_threads(values["threads"])
    device = candidate.device
    path = candidate.prepare()
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
        forward, _ = candidate.load(path)
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
    """Memory of the GPU, after a pass of `first`; the batches themselves are not counted."""
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
    """Bytes of the tensors of a model and of what its backend made of them; None if it does not show its model."""
    model = getattr(forward, "model", None)
    if model is None:
        return None
    kept = gpu.reachable(model, Tensor, without=(Graphs,))
    return gpu.storage_bytes(t for t in kept if t.device.type == torch.device(device).type)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
