"""Computes a few results of a model: when its wheel is made, and again for the command's --check."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ternarize_cli.runtime import Classifier, Encoder, Reranker

__all__ = ["TEXTS", "check", "results"]

TEXTS = ("a cat in a tree", "The shop opens at 9:30.", "Zürich – 東京 – naïve café")
_LEAST = {True: 0.999, False: 0.99}
"""The least cosine between a vector and the stored one, on the same instruction set and on another.

Equal instruction sets gave equal bits so far. Others round in other places: AMX, with attention in bfloat16, gave .9977
for the text of 60 that was farthest from AVX2's, with a MiniLM whose weights were rounded without any training.
"""
_MOST = {True: 0.01, False: 0.1}
"""How far scores may be apart, as a share of the largest."""
_SIDE = 40


def results(model: Encoder | Reranker | Classifier, texts: Sequence[str] = TEXTS) -> np.ndarray:
    """Computes three results: float32 `[3, …]`.

    Args:
        model: the model.
        texts: three texts. A reranker scores each of them with the first one. A model that reads no texts gets three
            images instead, which are always the same.
    """
    if isinstance(model, Reranker):
        return model.score([(texts[0], text) for text in texts], raw=True).reshape(len(texts), -1)
    if isinstance(model, Classifier):
        return model.classify(texts, raw=True)
    return model.encode(texts) if "text" in model.reads else model.encode_images(_images())


def check(stored: dict[str, Any], made: np.ndarray, instruction_set: str) -> tuple[bool, str]:
    """Compares results with stored ones.

    Args:
        stored: what about.json holds.
        made: float32 `[3, …]`, the results that the model gives now.
        instruction_set: the name of the instruction set that computed `made`.

    Returns:
        Whether they are as close as they should be, and a sentence about how close they are.
    """
    wanted, is_same = np.array(stored["results"], dtype=np.float32), instruction_set == stored["instruction_set"]
    if np.array_equal(made, wanted):
        return True, f"{len(made)} results: equal bit for bit"
    apart = float(np.abs(made - wanted).max())
    said = f"{len(made)} results: up to {apart:.2g} apart"
    if stored["kind"] != "encoder":  # a few numbers, of which a cosine says little
        bound = _MOST[is_same] * max(1.0, float(np.abs(wanted).max()))
        return apart <= bound, f"{said}, and may be {bound:.2g}"
    lengths = np.linalg.norm(made, axis=1) * np.linalg.norm(wanted, axis=1)
    cosine = float(np.min(np.sum(made * wanted, axis=1) / lengths))
    return cosine >= _LEAST[is_same], f"{said}; the least cosine is {cosine:.6f}, and may be {_LEAST[is_same]}"


def _images() -> list[Any]:
    from PIL import Image

    ramp = np.linspace(0, 255, _SIDE * _SIDE * 3).astype(np.uint8).reshape(_SIDE, _SIDE, 3)
    return [Image.fromarray(array) for array in (ramp, np.ascontiguousarray(np.flip(ramp, 1)), 255 - ramp)]
