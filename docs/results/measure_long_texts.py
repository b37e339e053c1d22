"""Measures one text of 512 to 8,192 tokens through a packed model: milliseconds, and what the process grows by.

    python docs/results/measure_long_texts.py PACKED

The page speed-cpu.md shows it for the shape modernbert-base of measure_families.py (FOLDER/modernbert-base/packed).
"""

import resource
import statistics
import sys
import time

import torch
from transformers import AutoModel

from ternarize_cli import hf, kernels

LENGTHS, THREADS, CALLS = (512, 1024, 2048, 4096, 8192), 2, 5


def peak() -> float:
    """Returns the greatest resident memory of this process so far, in MB of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


@torch.inference_mode()
def main(folder: str) -> None:
    """Prints a line for each length."""
    hf.quiet_libraries()
    torch.set_num_threads(THREADS)
    model = AutoModel.from_pretrained(folder).eval()
    print(kernels.use_backend(model, "native"))
    for tokens in LENGTHS:
        ids = torch.randint(5, 1000, (1, tokens), generator=torch.Generator().manual_seed(0))
        before, times = peak(), []
        for _ in range(CALLS):
            began = time.perf_counter()
            model(input_ids=ids)
            times.append(1e3 * (time.perf_counter() - began))
        print(f"{tokens} tokens: {statistics.median(times):.0f} ms, {peak() - before:.0f} MB more")


if __name__ == "__main__":
    main(sys.argv[1])
