"""Measures how near exports are to the packed model, with activations rounded to int8 and as they are; prints JSON.

    python docs/results/check_exports.py PACKED [--sts pairs.csv …] [--pairs N] [--formats onnx,openvino] [--count N]
        [--images FOLDER] [--elsewhere optimum=PYTHON transformers=PYTHON llama=PYTHON node=FOLDER …]

For each format, `int8` and `float` are the mean and the lowest cosine of its vectors to those of `reference`, with
activations as the packed model rounds them, and not rounded. The inputs are `count` texts of each file, the built-in
texts of `ternarize export --check` if there is none, or `count` crops of the pictures in a folder (--images) as the
model's image processor makes them, or random images. A runtime that keeps activations in floating
point should have a mean of .999 in `float`. One that rounds them in its own way should be no further from `float` than
the packed model is, whose cosines to it are `rounding`. `passes` says by which of these a format does, if any.

With --sts, files of `sentence 1, sentence 2, score`, `spearman` has the correlation of the first `pairs` with their
scores, of the packed model (backend `native`), of its values with activations as they are, and of each format.

With --elsewhere, encode_elsewhere.py and check_transformersjs.mjs encode the same texts in the environments that are
named, each with what RUNTIMES lists for it, and are compared as formats are:

    optimum         sentence-transformers 5, optimum-onnx, optimum-intel, openvino, onnxruntime, fastembed
    transformers    sentence-transformers 6, compressed-tensors
    llama           llama-cpp-python
    node            a folder in which @huggingface/transformers is installed
"""

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

from ternarize_cli import hf
from ternarize_cli.encoders.loading import load_encoder
from ternarize_cli.encoders.module_replacement import dequantize
from ternarize_cli.engines import inputs
from ternarize_cli.export.formats import find_format
from ternarize_cli.export.nearness import Run, sentences, vectors_of
from ternarize_cli.export.options import ExportOptions
from ternarize_cli.export.session import export
from ternarize_cli.measuring.similarity import units
from ternarize_cli.measuring.timing import GridPoint

HERE = Path(__file__).resolve().parent
BATCH = 10
NEAR = 0.999
LIBRARIES = "torch", "transformers", "sentence-transformers", "onnx", "onnxruntime", "openvino"

RUNTIMES = {
    "sentence-transformers onnx": ("optimum", "onnx", "onnx"),
    "fastembed": ("optimum", "onnx", "fastembed"),
    "transformers.js": ("node", "onnx", ""),
    "sentence-transformers openvino": ("optimum", "openvino", "openvino"),
    "llama-cpp-python": ("llama", "gguf", "llama"),
    "compressed-tensors": ("transformers", "compressed-tensors", "torch"),
}
"""By their names the runtimes of --elsewhere: the environment, the format, and the name in encode_elsewhere.py."""

Vectors = Callable[[dict[str, Any]], np.ndarray]
"""Computes the vectors of a batch."""


def crops(folder: Path, count: int) -> list[Any]:
    """Cuts `count` squares out of the pictures of a folder, taking turns; sizes and places are drawn, from a seed."""
    generator = np.random.default_rng(0)
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.iterdir())]
    found = []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        size = int(min(picture.size) * generator.uniform(0.5, 1))
        left, top = (int(generator.integers(side - size + 1)) for side in picture.size)
        found.append(picture.crop((left, top, left + size, top + size)))
    return found


def batches(
    encoder: Any, folder: Path, texts: list[str], count: int, images: Path | None = None
) -> list[dict[str, Any]]:
    """Makes the batches that all are compared with: of the texts, of crops of pictures, or of `count` random images."""
    if images is not None:
        cut = crops(images, count)
        return [dict(encoder.preprocess(cut[first : first + BATCH])) for first in range(0, count, BATCH)]
    if inputs.image_shape(folder) is None:
        prompt = encoder.prompts.get(encoder.default_prompt_name)
        parts = [texts[first : first + BATCH] for first in range(0, len(texts), BATCH)]
        return [dict(encoder.preprocess(part, prompt=prompt)) for part in parts]
    drawn = [inputs.random_batch(folder, GridPoint(BATCH), seed=first)[0] for first in range(0, count, BATCH)]
    return [{"pixel_values": pixels, "modality": "image"} for pixels in drawn]


def by_encoder(encoder: Any) -> Vectors:
    """Makes the vectors of a model of ours, as `vectors_of` does."""

    def run(batch: dict[str, Any]) -> np.ndarray:
        if "pixel_values" in batch and len(encoder) == 1:
            hidden = encoder[0].model(pixel_values=batch["pixel_values"]).last_hidden_state
            return np.asarray(hidden.mean(dim=1))
        return np.asarray(encoder(dict(batch))["sentence_embedding"])

    return run


def by_export(pools: Any, run: Run) -> Vectors:
    """Makes the vectors of an export, whose hidden states the model `pools` pools."""
    return lambda batch: vectors_of(pools, dict(batch), run)[1]


def encode_elsewhere(name: str, place: str, export: Path, texts: list[str], prompt: str) -> tuple[np.ndarray, Any]:
    """Encodes texts in a runtime of --elsewhere.

    Args:
        name: the runtime's name in RUNTIMES.
        place: the Python of its environment, or the folder with its packages for node.
        export: the export's folder.
        texts: the texts.
        prompt: the model's default prompt, which sentence-transformers itself puts in front of texts.

    Returns:
        The vectors, and the versions of packages.
    """
    runtime = RUNTIMES[name][2]
    fed = texts if runtime in ("onnx", "openvino", "torch") else [prompt + text for text in texts]
    if not runtime:
        command = ["node", str(HERE / "check_transformersjs.mjs"), str(export)]
        lines = "\n".join(" ".join(text.split()) for text in fed)
        made = subprocess.run(command, cwd=place, input=lines, capture_output=True, text=True, check=True)
        packages = {"transformers.js": made.stderr.split()[-1]}
        return np.array([json.loads(line) for line in made.stdout.splitlines()], np.float32), packages
    with TemporaryDirectory() as folder:
        files = Path(folder) / "texts.json", Path(folder) / "vectors.npy"
        files[0].write_text(json.dumps(fed), "utf-8")
        command = [place, str(HERE / "encode_elsewhere.py"), runtime, str(export), *map(str, files)]
        made = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return np.load(files[1]), json.loads(made.stdout.splitlines()[-1])


def run_all(vectors: Vectors, fed: list[dict[str, Any]]) -> np.ndarray:
    """Runs all batches."""
    return np.concatenate([vectors(batch) for batch in fed])


def cosines(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Summarises the cosines of two sets of vectors."""
    found = (units(a) * units(b)).sum(axis=1)
    return {"mean": round(float(found.mean()), 5), "lowest": round(float(found.min()), 5)}


def passed(near: dict[str, dict[str, float]], rounding: dict[str, float]) -> str | None:
    """Says by which criterion a format is near enough; None if it is not."""
    if near["float"]["mean"] >= NEAR:
        return "float"
    return "rounding" if near["float"]["mean"] >= rounding["mean"] else None


def read_pairs(path: Path, count: int) -> tuple[list[str], list[float]]:
    """Reads the first `count` pairs: the first sentences, then the second ones, and the scores."""
    rows = list(csv.reader(path.open(encoding="utf-8")))[:count]
    return [row[0] for row in rows] + [row[1] for row in rows], [float(row[2]) for row in rows]


def spearman(vectors: np.ndarray, scores: list[float]) -> float:
    """Correlates cosines of pairs with their scores; the first sentences come before the second ones."""
    first, second = np.split(units(vectors), 2)
    return round(float(spearmanr((first * second).sum(axis=1), scores).statistic), 5)


@torch.inference_mode()
def main() -> None:
    """Exports, compares and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("packed", type=Path)
    parser.add_argument("--sts", type=Path, nargs="*", default=[])
    parser.add_argument("--pairs", type=int, default=1500)
    parser.add_argument("--formats", default="onnx,openvino")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--elsewhere", nargs="*", default=[])
    wanted = parser.parse_args()
    hf.quiet_libraries()
    places = dict(given.split("=", 1) for given in wanted.elsewhere)
    pairs = {path.stem: read_pairs(path, wanted.pairs) for path in wanted.sts}
    texts = [text for part, _ in pairs.values() for text in part[: wanted.count]] or sentences()
    rounded: Any = load_encoder(wanted.packed, backend="reference", device="cpu")
    native: Any = load_encoder(wanted.packed, backend="native", device="cpu")
    floats: Any = dequantize(load_encoder(wanted.packed, backend="reference", device="cpu"))
    fed = batches(rounded, wanted.packed, texts, wanted.count, wanted.images)
    references = {"int8": run_all(by_encoder(rounded), fed), "float": run_all(by_encoder(floats), fed)}
    rounding = cosines(references["int8"], references["float"])
    candidates: dict[str, Vectors] = {"native": by_encoder(native), "float": by_encoder(floats)}
    versions = {name: version(name) for name in LIBRARIES}
    found: dict[str, Any] = {"model": wanted.packed.name, "inputs": len(references["int8"]), "versions": versions}
    found |= {"rounding": rounding, "spearman": {}}
    prompt = rounded.prompts.get(rounded.default_prompt_name) or ""
    sides = {file: part for file, (part, _) in pairs.items()}
    lent: dict[str, np.ndarray] = {}
    with TemporaryDirectory() as place:
        for name in wanted.formats.split(","):
            output = Path(place) / name
            export(wanted.packed, output, to=name, options=ExportOptions(check=False))
            form: Any = find_format(name)
            candidates[name] = by_export(native, form.open(output))
            vectors = run_all(candidates[name], fed)
            near = {kind: cosines(reference, vectors) for kind, reference in references.items()}
            found[name] = {**near, "passes": passed(near, rounding)}
            print(name, found[name], file=sys.stderr, flush=True)
        for name, (environment, form, _) in RUNTIMES.items():
            if environment not in places:
                continue
            output = Path(place) / form
            if not output.exists():
                export(wanted.packed, output, to=form, options=ExportOptions(check=False))
            asked = texts + [text for part in sides.values() for text in part]
            vectors, versions = encode_elsewhere(name, places[environment], output, asked, prompt)
            near = {kind: cosines(reference, vectors[: len(texts)]) for kind, reference in references.items()}
            found[name] = {**near, "passes": passed(near, rounding), "versions": versions}
            print(name, found[name], file=sys.stderr, flush=True)
            lent[name] = vectors[len(texts) :]
        for file, (part, scores) in pairs.items():
            fed = batches(rounded, wanted.packed, part, wanted.count)
            made = {name: spearman(run_all(vectors, fed), scores) for name, vectors in candidates.items()}
            for name, vectors in lent.items():
                made[name] = spearman(vectors[: len(part)], scores)
                lent[name] = vectors[len(part) :]
            found["spearman"][file] = {"pairs": len(scores)} | made
            print(file, made, file=sys.stderr, flush=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
