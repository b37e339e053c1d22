"""Measures `ternarize encode` beside its parts: reading, the tokenizer and the model, each alone; prints JSON.

    python docs/results/measure_encode.py MODEL TEXTS [--device cuda] [--backend scaled_mm] [--rounds 3]

MODEL is a packed model, and TEXTS a file with a text a line. In this process, the file is read, its texts are tokenised
and padded as the command does it, and the model runs on these batches, which lie on the device already; on a GPU the
host only launches, and waits once at the end. Then the command runs in processes of its own. `start_seconds` is what
passes there until the first chunk of texts is written, and `rest_seconds` what passes after that.

Since the start is left out, the parts count all chunks but the first. `ratio` is the time of the slower of tokenizer
and model, divided by `rest_seconds`; 1 would be perfect. The command's first run, which compiles kernels on a GPU, is
reported apart if there are several rounds. While the start lasts, up to three more chunks are tokenised:
`least_ratio` leaves these out of the parts as well. Times are the median of the rounds. Here everything runs in
PyTorch, on a CPU too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch

from ternarize_cli import hf
from ternarize_cli.data.corpora import open_corpus, unique
from ternarize_cli.data.prefetch import in_chunks
from ternarize_cli.encoders import loading
from ternarize_cli.measuring import machine
from ternarize_cli.vectors import gpu_batches
from ternarize_cli.vectors.text_batches import Prepared
from ternarize_cli.vectors.text_encoder import TextEncoder

AHEAD = 3
IN_TORCH = {**os.environ, "TERNARIZE_RUNTIME": "torch"}


def seconds(function: Callable[[], object]) -> float:
    """Seconds of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


@torch.inference_mode()
def run_all(encode: TextEncoder, batches: list[dict[str, Any]]) -> tuple[float, float]:
    """Runs batches that lie on the device; returns seconds until they are launched, and until they are done."""
    on_gpu = encode.encoder.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(encode.encoder.device)
    began = time.perf_counter()
    for features in batches:
        encode.encoder(dict(features))
    launched = time.perf_counter() - began
    if on_gpu:
        torch.cuda.synchronize(encode.encoder.device)
    return launched, time.perf_counter() - began


def parts(wanted: argparse.Namespace) -> dict[str, Any]:
    """Measures reading, tokenizer and model in this process."""
    hf.quiet_libraries()
    folder = loading.resolve(wanted.model)
    encode = TextEncoder(loading.load_encoder(folder, backend=wanted.backend, device=wanted.device))

    def read() -> list[tuple[str, str]]:
        corpus = open_corpus(wanted.texts)
        return list(unique(corpus.items, corpus.name))

    items = read()
    chunks = [[text for _, text in chunk] for chunk in in_chunks(items, **encode.chunking)]
    if len(chunks) <= 1 + AHEAD:
        raise SystemExit(f"{wanted.texts} makes {len(chunks)} chunks: give more texts")
    encode.prepare(chunks[0])
    made: list[Prepared] = []

    def tokenise(start: int) -> None:
        made[start:] = [encode.prepare(chunk) for chunk in chunks[start:]]

    made[:] = [encode.prepare(chunk) for chunk in chunks]
    device = encode.encoder.device
    on_device = [[gpu_batches.on_device(features, device) for _, features in chunk.batches] for chunk in made]
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    run_all(encode, list(chain.from_iterable(on_device)))  # compiles and records what the shapes need
    run_all(encode, list(chain.from_iterable(on_device)))
    for _ in range(wanted.rounds):
        note("reading_seconds", seconds(read))
        for name, start in (("", 1), ("least_", 1 + AHEAD)):
            note(f"{name}tokenizer_seconds", seconds(lambda start=start: tokenise(start)))
            launched, done = run_all(encode, list(chain.from_iterable(on_device[start:])))
            note(f"{name}launching_seconds", launched)
            note(f"{name}model_seconds", done)
    batches = [features["input_ids"].shape for chunk in on_device for features in chunk]
    return {
        "texts": len(items),
        "tokens": sum(chunk.tokens for chunk in made),
        "padded_tokens": sum(shape.numel() for shape in batches),
        "chunks": len(chunks),
        "batches": len(batches),
        "rest_count": len(items) - len(chunks[0]),
        **{name: round(statistics.median(values), 4) for name, values in found.items()},
    }


def whole(wanted: argparse.Namespace, folder: str) -> dict[str, float]:
    """Runs the command once in a process of its own."""
    command = [sys.executable, "-m", "ternarize_cli", "encode", wanted.model, wanted.texts, "--json", "--quiet"]
    command += ["-o", f"{folder}/v.npy", "--force", "--backend", wanted.backend]
    command += ["--device", wanted.device] if wanted.device else []
    began = time.perf_counter()
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=IN_TORCH)
    report = json.loads(ended.stdout)
    names = ("start_seconds", "rest_count", "rest_seconds", "per_second")
    return {"process_seconds": time.perf_counter() - began, **{name: report[name] for name in names}}


def main() -> None:
    """Measures all, and prints JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("texts")
    parser.add_argument("--device", help="cpu, cuda or cuda:1; default: as `ternarize encode` chooses")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for _ in range(wanted.rounds):
            runs.append(whole(wanted, folder))
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    alone = parts(wanted)
    later = runs[1:] or runs  # the first may compile kernels, and measure which are the fastest
    command = {name: round(statistics.median(run[name] for run in later), 3) for name in runs[0]}
    slower = max(alone["tokenizer_seconds"], alone["model_seconds"])
    least = max(alone["least_tokenizer_seconds"], alone["least_model_seconds"])
    report = {
        "model": wanted.model,
        "device": wanted.device,
        "backend": wanted.backend,
        "alone": alone,
        "first_command": {name: round(value, 3) for name, value in runs[0].items()},
        "command": command,
        "slower": "tokenizer" if slower == alone["tokenizer_seconds"] else "model",
        "ratio": round(slower / command["rest_seconds"], 3),
        "least_ratio": round(least / command["rest_seconds"], 3),
        "machine": machine.facts(),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
