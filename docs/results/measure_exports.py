"""Measures a packed model in its own runtime, in each export, and the int8 of other runtimes, in one run; prints JSON.

    pip install 'ternarize-cli[rivals]'
    python docs/results/measure_exports.py PACKED SOURCE > docs/results/bench/exports.json

Candidates take turns, call by call, at texts of 1x16, 1x128 and 8x128 (batch x tokens), or at 1 and 8 images. A turn is
a whole forward pass to the hidden states. `bytes` are those of the files with weights and graph. `cosine` is the mean
over the inputs of `ternarize export --check` of the cosine to `reference`; for int8 of the original SOURCE, to the
original in fp32. A format whose libraries are missing, or that can't hold the model, is listed in `left_out` with the
reason.

To add a format, add its name to FORMATS; its class needs `open`, which gives a `Run`.
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

import torch
from torch import Tensor

from ternarize_cli import hf, kernels
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.engines import baselines, exports, inputs
from ternarize_cli.errors import TernarizeError
from ternarize_cli.export.formats import find_format
from ternarize_cli.export.nearness import Run, sentences, vectors_of
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.measuring import machine
from ternarize_cli.measuring.similarity import units
from ternarize_cli.measuring.timing import GridPoint, summarise, time_interleaved

TEXTS, IMAGES = (GridPoint(1, 16), GridPoint(1, 128), GridPoint(8, 128)), (GridPoint(1), GridPoint(8))
FORMATS: dict[str, tuple[str, ExportOptions]] = {
    "onnx 2 bit": ("onnx", ExportOptions(check=False)),
    "onnx 4 bit": ("onnx", ExportOptions(check=False, bits=4)),
    "openvino": ("openvino", ExportOptions(check=False)),
}
RIVALS = "onnx-int8", "openvino-int8"
LIBRARIES = "torch", "transformers", "onnxruntime", "openvino", "nncf"
BATCH = 10


def run_of(forward: Callable[..., Tensor], names: tuple[str, ...]) -> Run:
    """Makes a `Run` of a `Forward`."""

    def run(batch: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {"last_hidden_state": forward(*(batch[name] for name in names))}

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
        except TernarizeError as e:
            left_out[name] = str(e)
            continue
        form: Any = find_format(to)
        found[name] = form.open(output), exports.bytes_of(output / to), packed
    for name in RIVALS:
        try:
            path = baselines.require_baseline(name).prepare(source)
            forward = baselines.require_baseline(name).load(path, "cpu")
        except TernarizeError as e:
            left_out[name] = str(e)
            continue
        found[name] = run_of(forward, names), exports.bytes_of(path.parent), source
    return found, left_out


def cosine(encoder: Any, folder: Path, run: Run, count: int) -> float:
    """Computes the mean cosine to the encoder."""
    cosines: list[float] = []
    texts = sentences()[:count]
    for first in range(0, count, BATCH):
        if inputs.image_shape(folder) is None:
            features = dict(encoder.preprocess(texts[first : first + BATCH]))
        else:
            pixels = inputs.random_batch(folder, GridPoint(BATCH), seed=first)[0]
            features = {"pixel_values": pixels, "modality": "image"}
        theirs, ours = vectors_of(encoder, features, run)
        cosines += (units(theirs) * units(ours)).sum(axis=1).tolist()
    return round(sum(cosines) / len(cosines), 5)


@torch.inference_mode()
def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("packed", type=Path)
    parser.add_argument("source", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60, help="of each shape")
    parser.add_argument("--count", type=int, default=100, help="of texts or images for the cosine")
    wanted = parser.parse_args()
    hf.quiet_libraries()
    torch.set_num_threads(wanted.threads)
    packed, source = wanted.packed, wanted.source
    with TemporaryDirectory() as place:
        found, left_out = candidates(packed, source, Path(place))
        encoders = {
            packed: load_encoder(packed, backend="reference", device="cpu"),
            source: load_encoder(source, device="cpu"),
        }
        rows: dict[str, dict[str, Any]] = {}
        for name, (run, size, folder) in found.items():
            rows[name] = {"bytes": size, "cosine": cosine(encoders[folder], folder, run, wanted.count)}
            print(name, rows[name], file=sys.stderr)
        names = inputs.names(exports.transformer(packed))
        for point in IMAGES if inputs.image_shape(packed) else TEXTS:
            fed = dict(zip(names, inputs.random_batch(packed, point, seed=0), strict=True))
            calls = {name: (lambda run=run, fed=fed: run(fed)) for name, (run, _, _) in found.items()}
            times = time_interleaved(calls, repeats=wanted.rounds, seconds=wanted.seconds, warmup=2)
            for name, seconds in times.items():
                shape = f"{point.batch}x{point.tokens}" if point.tokens else f"{point.batch}"
                rows[name].setdefault("milliseconds", {})[shape] = summarise(seconds).median_ms
    versions = {name: version(name) for name in LIBRARIES if find_spec(name)}
    facts = {"machine": machine.facts(), "threads": wanted.threads, "versions": versions, "left_out": left_out}
    print(json.dumps({"model": packed.name} | facts | {"rows": rows}, indent=1))


if __name__ == "__main__":
    main()
