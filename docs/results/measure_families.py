"""Measures `native` against PyTorch in bfloat16 on models of random weights in the shapes of well-known encoders.

    python docs/results/measure_families.py FOLDER [SHAPE …] > docs/results/bench/families-cpu.json

The candidates take turns, call by call, with two threads: the packed model run fused, the packed model run linear by
linear, and the source in bfloat16. Models are kept in FOLDER; their shapes are those of `ternarize bench --shape`.
Times are medians of whole forward passes in milliseconds.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from ternarize_cli import hf, kernels
from ternarize_cli.bench.shapes import SHAPES, random_model
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack
from ternarize_cli.engines.baselines import Forward, forward_of
from ternarize_cli.engines.exports import transformer
from ternarize_cli.engines.inputs import image_shape, random_batch
from ternarize_cli.measuring.timing import GridPoint

SECONDS, THREADS = 1.5, 2
TEXTS = [GridPoint(1, 16), GridPoint(1, 128), GridPoint(8, 128), GridPoint(16, 256)]
IMAGES = [GridPoint(1), GridPoint(16)]


def candidates(name: str, folder: Path) -> dict[str, Forward]:
    """Makes the candidates for a shape; source and packed model are kept in the folder."""
    source, packed = folder / name / "source", folder / name / "packed"
    if not packed.exists():
        random_model(source, SHAPES[name], seed=0)
        convert(source, folder / name / "ternary", None, ConvertOptions(check=False))
        pack(folder / name / "ternary", packed, check=False)
    fused, linears_only = (transformer(packed) for _ in range(2))
    for model in (fused, linears_only):
        kernels.use_backend(model, "native")
    del linears_only.forward
    found = {"native": fused, "native (linears only)": linears_only}
    forwards: dict[str, Forward] = {candidate: forward_of(model) for candidate, model in found.items()}
    forwards["torch-bf16"] = forward_of(transformer(source, torch.bfloat16), torch.bfloat16)
    return forwards


def row(name: str, found: dict[str, Forward], folder: Path, point: GridPoint) -> dict[str, Any]:
    """Measures the candidates on one batch: `tokens` is 0 for images."""
    batch = random_batch(folder / name / "source", point, seed=0)
    times: dict[str, list[float]] = {candidate: [] for candidate in found}
    for forward in found.values():
        forward(*batch)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or min(map(len, times.values())) < 3:
        for candidate, forward in found.items():
            began = time.perf_counter()
            forward(*batch)
            times[candidate].append(1e3 * (time.perf_counter() - began))
    medians = {candidate: round(statistics.median(t), 2) for candidate, t in times.items()}
    return {"shape": name, "batch": point.batch, "tokens": point.tokens, "median_ms": medians}


@torch.inference_mode()
def main(folder: Path, names: list[str]) -> None:
    """Measures the named shapes, or all, and prints JSON."""
    hf.quiet_libraries()
    torch.set_num_threads(THREADS)
    rows = []
    for name in names or SHAPES:
        found = candidates(name, folder)
        for point in IMAGES if image_shape(folder / name / "source") else TEXTS:
            rows.append(row(name, found, folder, point))
            print(rows[-1], file=sys.stderr)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"threads": THREADS, "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
