"""Measures how near exports are to `reference`, with activations rounded to int8 and as they are; prints JSON.

    python docs/results/check_exports.py PACKED [--sts pairs.csv] [--formats onnx,openvino] [--count 100]

For each format, `int8` and `float` are the mean and the lowest cosine of its vectors to those of the packed model with
activations as it rounds them, and not rounded. The inputs are the texts of the pairs, the built-in ones of `ternarize
export --check`, or random images. A runtime that keeps activations in floating point should have a mean of .999 in
`float`; one that rounds them in its own way differs from both by about what `rounding` is, the cosines of the two
references. With --sts, a file of `sentence 1, sentence 2, score`, `spearman` has the correlation of each with the
scores.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
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

BATCH = 10


def batches(encoder: Any, folder: Path, texts: list[str], count: int) -> list[dict[str, Any]]:
    """Makes the batches that all are compared with."""
    if inputs.image_shape(folder) is None:
        return [dict(encoder.preprocess(texts[first : first + BATCH])) for first in range(0, len(texts), BATCH)]
    drawn = [inputs.random_batch(folder, GridPoint(BATCH), seed=first)[0] for first in range(0, count, BATCH)]
    return [{"pixel_values": pixels, "modality": "image"} for pixels in drawn]


def cosines(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Summarises the cosines of two sets of vectors."""
    found = (units(a) * units(b)).sum(axis=1)
    return {"mean": round(float(found.mean()), 5), "lowest": round(float(found.min()), 5)}


def spearman(vectors: np.ndarray, scores: list[float]) -> float:
    """Correlates cosines of pairs with their scores; the first sentences come before the second ones."""
    first, second = np.split(units(vectors), 2)
    return round(float(spearmanr((first * second).sum(axis=1), scores).statistic), 5)


@torch.inference_mode()
def main() -> None:
    """Exports, compares and prints."""
    parser = argparse.ArgumentParser()
    parser.add_argument("packed", type=Path)
    parser.add_argument("--sts", type=Path)
    parser.add_argument("--formats", default="onnx,openvino")
    parser.add_argument("--count", type=int, default=100)
    wanted = parser.parse_args()
    hf.quiet_libraries()
    texts, scores = sentences(), []
    if wanted.sts:
        pairs = list(csv.reader(wanted.sts.open(encoding="utf-8")))[-1500:]
        texts, scores = [row[0] for row in pairs] + [row[1] for row in pairs], [float(row[2]) for row in pairs]
    rounded: Any = load_encoder(wanted.packed, backend="reference", device="cpu")
    floats: Any = dequantize(load_encoder(wanted.packed, backend="reference", device="cpu"))
    fed = batches(rounded, wanted.packed, texts, wanted.count)
    found: dict[str, Any] = {"model": wanted.packed.name, "inputs": sum(len(next(iter(b.values()))) for b in fed)}

    def run_all(encoder: Any, run: Run) -> tuple[np.ndarray, np.ndarray]:
        made = [vectors_of(encoder, dict(batch), run) for batch in fed]
        theirs, ours = (np.concatenate(part) for part in zip(*made, strict=True))
        return theirs, ours

    model = floats[0].model if hasattr(floats[0], "model") else floats[0].auto_model
    ours = run_all(rounded, lambda batch: {"last_hidden_state": model(**batch).last_hidden_state})
    references = dict(zip(("int8", "float"), ours, strict=True))
    found["rounding"] = cosines(*ours)
    if scores:
        found["spearman"] = {name: spearman(vectors, scores) for name, vectors in references.items()}
    with TemporaryDirectory() as place:
        for name in wanted.formats.split(","):
            output = Path(place) / name
            export(wanted.packed, output, to=name, options=ExportOptions(check=False))
            form: Any = find_format(name)
            _, vectors = run_all(floats, form.open(output))  # which pools them
            found[name] = {kind: cosines(reference, vectors) for kind, reference in references.items()}
            if scores:
                found["spearman"][name] = spearman(vectors, scores)
            print(name, found[name], file=sys.stderr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
