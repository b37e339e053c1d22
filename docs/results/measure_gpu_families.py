"""Measures encoders of many families on an NVIDIA GPU: our backends beside fp16, in one process, as JSON.

    python docs/results/measure_gpu_families.py modernbert-base --out modernbert-base.json

SHAPE is one that `ternarize bench --shape` knows. The model is made on the GPU, with random codes and scales (speed
depends on shapes alone), which takes seconds where converting takes minutes. To prepare several shapes side by side and
time them one after the other, start a process for each with `--of N`: each compiles and records its kernels, waits
until all N have, and takes its turn, in which it chooses its kernels anew and measures. A candidate that fails is named
and left out. With `--levels`, `scaled_mm` also runs models with int4 linears: all of them, or those of every fourth
block ("mixed").
"""

import argparse
import fcntl
import json
import os
import re
import shutil
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import ternarize_cli.hf  # noqa: F401  # packed models are known to transformers
from ternarize_cli import kernels
from ternarize_cli.bench.shapes import model_shape
from ternarize_cli.encoders.blocks.describing import describe
from ternarize_cli.encoders.encoder_alone import encoder_alone
from ternarize_cli.encoders.module_replacement import replace
from ternarize_cli.format.scheme import CODECS, Artifact, Scheme
from ternarize_cli.kernels.gpu import tuning
from ternarize_cli.kernels.stack import describe_by
from ternarize_cli.layers import PackedEmbedding, PackedLinear

CALLS = 20
POINTS = {"modernbert-base": [(1, 128), (64, 128), (64, 512), (8, 2048), (2, 8192)]}
TEXTS, IMAGES = [(1, 128), (64, 128), (64, 512)], [(1, 0), (64, 0)]


def config_of(name: str) -> Any:
    shape = model_shape(name)
    return transformers.AutoConfig.for_model(shape.model_type, **shape.config)


def dense(name: str, dtype: torch.dtype) -> nn.Module:
    config = config_of(name)
    kind = encoder_alone(config)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = kind(config) if kind else transformers.AutoModel.from_config(config)
    return model.eval().to(dtype)


def packed(name: str, backend: str, levels: str = "ternary") -> nn.Module:
    model = dense(name, torch.float32)
    if levels == "mixed":
        linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
        chosen = [path for path in linears if (number := re.search(r"\.(\d+)\.", path)) and int(number[1]) % 4 == 0]
        replace(model, Artifact("packed", Scheme(), "2bit", module_levels=dict.fromkeys(chosen, "int4")))
    else:
        replace(model, Artifact("packed", Scheme(levels=levels), CODECS[levels][0]))
    model.to("cuda")
    for module in model.modules():
        if isinstance(module, PackedLinear):
            ternary = module.scheme.levels == "ternary"
            codes = torch.randint(0, 3, (*module.weight.shape, 4), device="cuda", dtype=torch.int32)
            any_byte = torch.randint(0, 256, module.weight.shape, device="cuda").to(torch.uint8)
            packed_codes = (codes << torch.tensor([0, 2, 4, 6], device="cuda")).sum(-1).to(torch.uint8)
            module.weight = packed_codes if ternary else any_byte
            scale = (0.6 + torch.rand(module.weight_scale.shape, device="cuda")) / (1 if ternary else 5)
            module.weight_scale = (scale * module.in_features**-0.5).half()
            if module.bias is not None:
                module.bias = 0.02 * torch.randn_like(module.bias)
        elif isinstance(module, PackedEmbedding):
            module.weight = torch.randint(-127, 128, module.weight.shape, device="cuda").to(module.weight.dtype)
            module.weight_scale = torch.full_like(module.weight_scale, 0.0003)
    describe_by(model, describe(model))
    used = kernels.use_backend(model.eval(), backend)
    assert used == backend, used
    return model


def batch(config: Any, texts: int, tokens: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    if hasattr(config, "image_size"):
        return {"pixel_values": torch.randn(texts, 3, config.image_size, config.image_size, device="cuda", dtype=dtype)}
    ids = torch.randint(5, config.vocab_size - 5, (texts, tokens), device="cuda")
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def milliseconds(model: Callable[..., Any], given: dict[str, torch.Tensor]) -> float:
    torch.cuda.synchronize()
    started = time.perf_counter()
    model(**given)
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started)


def busiest(model: Callable[..., Any], given: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """The kernels that take the most time: microseconds of a call, and calls a pass."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(3):
            model(**given)
        torch.cuda.synchronize()
    found = sorted(seen.key_averages(), key=lambda e: -e.self_device_time_total)[:8]
    return {e.key[:60]: [round(e.self_device_time_total / e.count, 1), e.count / 3] for e in found if e.count}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--of", type=int, default=1, help="how many processes take turns")
    parser.add_argument("--wait", type=float, default=300, help="the most seconds that the others are waited for")
    parser.add_argument("--levels", action="store_true", help="scaled_mm with int4 and mixed linears, too")
    parser.add_argument("--autotuned", action="store_true", help="fp16 with max-autotune, too")
    options = parser.parse_args()
    name, config = options.shape, config_of(options.shape)
    turns = Path(tempfile.gettempdir()) / "measure-gpu-families"
    turns.mkdir(exist_ok=True)
    os.environ["TERNARIZE_CACHE"] = str(turns / f"cache-{name}")
    points = IMAGES if hasattr(config, "image_size") else POINTS.get(name, TEXTS)
    torch._dynamo.config.cache_size_limit = 64
    makers: dict[str, Callable[[], Any]] = {
        "triton": lambda: packed(name, "triton"),
        "scaled_mm": lambda: packed(name, "scaled_mm"),
        "torch-fp16": lambda: dense(name, torch.float16),
        "torch-fp16-compiled": lambda: torch.compile(dense(name, torch.float16), mode="reduce-overhead", dynamic=False),
    }
    if options.levels:
        makers |= {f"scaled_mm-{kind}": partial(packed, name, "scaled_mm", kind) for kind in ("int4", "mixed")}
    if options.autotuned:
        makers["torch-fp16-autotuned"] = lambda: torch.compile(
            dense(name, torch.float16), mode="max-autotune", dynamic=False
        )

    def run(candidate: str, model: Any, point: tuple[int, int]) -> dict[str, torch.Tensor]:
        given = batch(config, *point, torch.float16 if "fp16" in candidate else torch.float32)
        for _ in range(3):
            model(**given)
        torch.cuda.synchronize()
        return given

    report: dict[str, Any] = {"shape": name, "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    report |= {"transformers": transformers.__version__, "calls": CALLS, "milliseconds": {}, "kernels": {}}
    with torch.inference_mode():
        made: dict[str, Any] = {}
        for candidate, make in makers.items():
            started = time.perf_counter()
            try:
                model = make()
                for point in points:
                    run(candidate, model, point)
            except Exception:
                traceback.print_exc()
                print(f"{name}: {candidate} failed", flush=True)
                continue
            made[candidate] = model
            print(f"{name}: {candidate} is ready after {time.perf_counter() - started:.0f} s", flush=True)
        (turns / f"ready-{name}").touch()
        until = time.monotonic() + options.wait
        while len(list(turns.glob("ready-*"))) < options.of and time.monotonic() < until:
            time.sleep(0.5)
        with open(turns / "turn", "w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            shutil.rmtree(os.environ["TERNARIZE_CACHE"], ignore_errors=True)
            tuning._found.cache_clear()
            ours = [candidate for candidate in made if "fp16" not in candidate]
            for backend in ours:  # kernels that were chosen beside other work are chosen again
                made[backend] = makers[backend]()
                for point in points:
                    run(backend, made[backend], point)
            for point in points:
                given = {candidate: run(candidate, model, point) for candidate, model in made.items()}
                times: dict[str, list[float]] = {candidate: [] for candidate in made}
                for _ in range(CALLS):
                    for candidate, model in made.items():
                        times[candidate].append(milliseconds(model, given[candidate]))
                row = {candidate: round(statistics.median(found), 3) for candidate, found in times.items()}
                best = min(value for candidate, value in row.items() if "fp16" in candidate)
                row["against fp16"] = round(best / min(row[c] for c in ours if c in ("triton", "scaled_mm")), 2)
                key = f"{point[0]} x {point[1]}" if point[1] else f"{point[0]} images"
                report["milliseconds"][key] = row
                report["kernels"][key] = {b: busiest(made[b], given[b]) for b in ours}
                print(name, key, row, flush=True)
            report["choices"] = tuning.found()
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
