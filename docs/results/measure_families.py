"""Measures `native` against PyTorch in bfloat16 on models of random weights in the shapes of well-known encoders.

    python docs/results/measure_families.py FOLDER [SHAPE …] > docs/results/bench/families-cpu.json

The candidates take turns, call by call, with two threads: the packed model run fused, the packed model run linear by
linear, and the source in bfloat16. Models are kept in FOLDER. Times are medians of whole forward passes in
milliseconds.
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
from ternarize_cli.compress.convert import convert
from ternarize_cli.compress.options import ConvertOptions
from ternarize_cli.compress.pack import pack

SECONDS, THREADS, VOCABULARY = 1.5, 2, 20_000
GEMMA = {
    "hidden_size": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 1152,
    "sliding_window": 512,
    "use_bidirectional_attention": True,
}
QWEN3 = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
}
SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert-base": ("BertModel", "BertConfig", {}),
    "mpnet-base": ("MPNetModel", "MPNetConfig", {}),
    "modernbert-base": ("ModernBertModel", "ModernBertConfig", {}),
    "nomic-bert": ("NomicBertModel", "NomicBertConfig", {}),
    "embeddinggemma-300m": ("Gemma3TextModel", "Gemma3TextConfig", {"vocab_size": VOCABULARY, **GEMMA}),
    "qwen3-0.6b": ("Qwen3Model", "Qwen3Config", {"vocab_size": VOCABULARY, **QWEN3}),
    "siglip-base": ("SiglipVisionModel", "SiglipVisionConfig", {"image_size": 224, "patch_size": 16}),
    "clip-vit-b32": ("CLIPVisionModel", "CLIPVisionConfig", {}),
}
TEXTS, IMAGES = ((1, 16), (1, 128), (8, 128), (16, 256)), ((1, 0), (16, 0))


def candidates(name: str, folder: Path) -> dict[str, Any]:
    """Makes the candidates for a shape; the packed model is kept in the folder."""
    model, config, settings = SHAPES[name]
    kind, where = getattr(transformers, model), folder / name
    if not (where / "packed").exists():
        torch.manual_seed(0)
        kind(getattr(transformers, config)(**settings)).save_pretrained(where / "source")
        convert(where / "source", where / "ternary", None, ConvertOptions(check=False))
        pack(where / "ternary", where / "packed", check=False)
    found = {"native": kind.from_pretrained(where / "packed").eval()}
    found["native (linears only)"] = kind.from_pretrained(where / "packed").eval()
    for packed in found.values():
        kernels.use_backend(packed, "native")
    del found["native (linears only)"].forward
    found["torch-bf16"] = kind.from_pretrained(where / "source", dtype=torch.bfloat16).eval()
    return found


def row(name: str, found: dict[str, Any], batch: int, tokens: int) -> dict[str, Any]:
    """Measures the candidates on one batch: `tokens` is 0 for images of 224 x 224."""
    random = torch.Generator().manual_seed(0)
    times: dict[str, list[float]] = {candidate: [] for candidate in found}
    if tokens:
        ids = torch.randint(5, 1000, (batch, tokens), generator=random)
        given = {key: {"input_ids": ids, "attention_mask": torch.ones_like(ids)} for key in found}
    else:
        pixels = torch.randn(batch, 3, 224, 224, generator=random)
        given = {candidate: {"pixel_values": pixels.to(next(m.parameters()).dtype)} for candidate, m in found.items()}
    for candidate, model in found.items():
        model(**given[candidate])
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or min(map(len, times.values())) < 3:
        for candidate, model in found.items():
            began = time.perf_counter()
            model(**given[candidate])
            times[candidate].append(1e3 * (time.perf_counter() - began))
    medians = {candidate: round(statistics.median(t), 2) for candidate, t in times.items()}
    return {"shape": name, "batch": batch, "tokens": tokens, "median_ms": medians}


@torch.inference_mode()
def main(folder: Path, names: list[str]) -> None:
    """Measures the named shapes, or all, and prints JSON."""
    hf.quiet_libraries()
    torch.set_num_threads(THREADS)
    rows = []
    for name in names or SHAPES:
        found = candidates(name, folder)
        for batch, tokens in IMAGES if "Vision" in SHAPES[name][0] else TEXTS:
            rows.append(row(name, found, batch, tokens))
            print(rows[-1], file=sys.stderr)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({"threads": THREADS, "versions": versions, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
