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

as JSON. What is made once and kept (an ONNX export, compiled C++) is there before the clock starts, so load times are
those of a server's second start. The peak is VmHWM of /proc/self/status where there is one: `getrusage` reports the
largest of the process that started this one if that was larger, because the counter survives `exec` on Linux.
"""

import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from ternarize_cli.bench.candidates import Candidate
from ternarize_cli.bench.inputs import random_batch
from ternarize_cli.bench.measure import Point
from ternarize_cli.errors import TernarizeError

__all__ = ["Memory", "peak_bytes", "probe"]


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
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _measure(request: str) -> dict[str, float]:
    import sentence_transformers  # noqa: F401  (counted as an import for every candidate)
    import torch

    from ternarize_cli import hf

    values = json.loads(request)
    fields = values["candidate"]
    candidate, point = Candidate(**{**fields, "folder": Path(fields["folder"])}), Point(**values["point"])
    hf.quiet_libraries()
    torch.set_num_threads(values["threads"])
    path = candidate.prepare()
    process = psutil.Process()
    imports = process.memory_info().rss
    with torch.inference_mode():
        started = time.perf_counter()
        forward, _ = candidate.load(path)
        loaded = time.perf_counter()
        after_loading = process.memory_info().rss
        batch = random_batch(candidate.folder, point, values["seed"], candidate.device)
        begun = time.perf_counter()
        forward(*batch)
        ended = time.perf_counter()
    resident = process.memory_info().rss
    return {
        "imports_bytes": imports,
        "resident_bytes": resident,
        "peak_bytes": max(peak_bytes(), resident),
        "loaded_bytes": after_loading - imports,
        "load_ms": round(1000 * (loaded - started), 2),
        "cold_start_ms": round(1000 * (ended - begun), 2),
    }


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1])))
