"""Measures a packed model in its own runtime, in each export, and the int8 of other runtimes, in one run; prints JSON.

    pip install 'ternarize-cli[rivals,gguf]' compressed-tensors llama-cpp-python
    python docs/results/measure_exports.py PACKED SOURCE > docs/results/bench/exports.json
    python docs/results/write_exports.py

Candidates take turns, call by call, at texts of 1x16, 1x128 and 8x128 (batch x tokens), or at 1 and 8 images. A turn is
a whole forward pass to the hidden states, in gguf to the pooled vectors. `bytes` are those of the files with weights
and graph; in gguf the tokenizer is among them. `cosine` is the mean over inputs of `ternarize export --check`, to the
packed model (backend `reference`), and `unrounded` to it with activations as they are; for int8 of the original SOURCE,
both are to the original in fp32. `others_percent` is what other processes took of one core while times were measured. A
format whose libraries are missing, or that can't hold the model, is listed in `left_out` with the reason.

To add a format, add its name to FORMATS, and a way to open it to `open_export`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from check_exports import batches, by_encoder, by_export, cosines, run_all
from torch import Tensor

from ternarize_cli import hf, kernels
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.engines import baselines, exports, inputs
from ternarize_cli.errors import TernarizeError
from ternarize_cli.export.formats import find_format
from ternarize_cli.export.gguf_runtime import LlamaModel
from ternarize_cli.export.nearness import Run, sentences
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.measuring import machine
from ternarize_cli.measuring.timing import GridPoint, summarise, time_interleaved

TEXTS, IMAGES = (GridPoint(1, 16), GridPoint(1, 128), GridPoint(8, 128)), (GridPoint(1), GridPoint(8))
FORMATS: dict[str, tuple[str, ExportOptions]] = {
    "onnx 2 bit": ("onnx", ExportOptions(check=False)),
    "onnx 4 bit": ("onnx", ExportOptions(check=False, bits=4)),
    "openvino": ("openvino", ExportOptions(check=False)),
    "gguf": ("gguf", ExportOptions(check=False)),
    "dense": ("dense", ExportOptions(check=False)),
    "compressed-tensors": ("compressed-tensors", ExportOptions(check=False)),
}
WEIGHTS = ".onnx", ".onnx_data", ".xml", ".bin", ".gguf", ".safetensors"
RIVALS = "onnx-int8", "openvino-int8"
LIBRARIES = {name: name for name in ("torch", "transformers", "onnxruntime", "openvino", "nncf", "gguf")} | {
    "llama-cpp-python": "llama_cpp",
    "compressed-tensors": "compressed_tensors",
}
"""The packages that run candidates, and the modules by which they are imported."""


def run_of(forward: Callable[..., Tensor], names: tuple[str, ...]) -> Run:
    """Makes a `Run` of a `Forward`."""

    def run(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"last_hidden_state": forward(*(batch[name] for name in names))}

    return run


def open_export(to: str, output: Path) -> Run:
    """Opens an export in its runtime; checkpoints in torch, in float32."""
    if to == "gguf":
        return LlamaModel(next(output.glob("*.gguf")))
    if to in ("dense", "compressed-tensors"):
        model = exports.transformer(output, torch.float32)
        return run_of(baselines.forward_of(model), inputs.names(model))
    form: Any = find_format(to)
    run: Run = form.open(output)
    return run


def candidates(packed: Path, source: Path, place: Path) -> tuple[dict[str, tuple[Run, int, Path]], dict[str, str]]:
    """Makes the candidates: by their names what runs them, their bytes and the model that they should equal."""
    model = exports.transformer(packed)
    names = inputs.names(model)
    kernels.use_backend(model, "native")
    found = {
        "native": (run_of(baselines.forward_of(model), names), (packed / "model.safetensors").stat().st_size, packed)
    }
    left_out = {}
    for name, (to, options) in FORMATS.items():
        output = place / name.replace(" ", "-")
        try:
            export(packed, output, to=to, options=options)
            run = open_export(to, output)
        except (TernarizeError, ImportError) as e:
            left_out[name] = str(e)
            continue
        size = sum(path.stat().st_size for path in output.rglob("*") if path.suffix in WEIGHTS)
        found[name] = run, size, packed
    for name in RIVALS:
        try:
            path = baselines.require_baseline(name).prepare(source)
            forward = baselines.require_baseline(name).load(path, "cpu")
        except TernarizeError as e:
            left_out[name] = str(e)
            continue
        found[name] = run_of(forward, names), exports.bytes_of(path.parent), source
    return found, left_out


def references_of(packed: Path, source: Path, fed: list[dict[str, Any]]) -> dict[Path, dict[str, np.ndarray]]:
    """Makes the vectors that candidates are compared with, by the model that they should equal."""
    original = run_all(by_encoder(load_encoder(source, device="cpu")), fed)
    floats = dequantize(load_encoder(packed, backend="reference", device="cpu"))
    return {
        packed: {
            "cosine": run_all(by_encoder(load_encoder(packed, backend="reference", device="cpu")), fed),
            "unrounded": run_all(by_encoder(floats), fed),
        },
        source: {"cosine": original, "unrounded": original},
    }


@torch.inference_mode()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("packed", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=25, help="of each shape")
    parser.add_argument("--count", type=int, default=50, help="of texts or images for the cosine")
    wanted = parser.parse_args()
    hf.quiet_libraries()
    torch.set_num_threads(wanted.threads)
    packed, source = wanted.packed, wanted.source
    with TemporaryDirectory() as place:
        found, left_out = candidates(packed, source, Path(place))
        native: Any = load_encoder(packed, backend="native", device="cpu")  # which pools what exports give
        fed = batches(native, packed, sentences()[:: max(1, 100 // wanted.count)], wanted.count)
        references = references_of(packed, source, fed)
        rows: dict[str, dict[str, Any]] = {}
        for name, (run, size, folder) in found.items():
            ours = run_all(by_export(native, run), fed)
            near = {kind: cosines(ours, vectors)["mean"] for kind, vectors in references[folder].items()}
            rows[name] = {"bytes": size, **near}
            print(name, rows[name], file=sys.stderr, flush=True)
        names = inputs.names(exports.transformer(packed))
        with machine.LoadWatch() as watch:
            for point in IMAGES if inputs.image_shape(packed) else TEXTS:
                batch = dict(zip(names, inputs.random_batch(packed, point, seed=0), strict=True))
                calls = {name: (lambda run=run, batch=batch: run(batch)) for name, (run, _, _) in found.items()}
                times = time_interleaved(calls, repeats=wanted.rounds, seconds=wanted.seconds, warmup=2)
                for name, seconds in times.items():
                    shape = f"{point.batch}x{point.tokens}" if point.tokens else f"{point.batch}"
                    rows[name].setdefault("milliseconds", {})[shape] = summarise(seconds).median_ms
    versions = {package: version(package) for package, module in LIBRARIES.items() if find_spec(module)}
    facts = {
        "machine": machine.facts(),
        "threads": wanted.threads,
        "others_percent": watch.others,
        "versions": versions,
        "left_out": left_out,
    }
    print(json.dumps({"model": packed.name, "source": source.name} | facts | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
