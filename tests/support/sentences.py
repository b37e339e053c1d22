"""Sentences about known subjects, and tasks over them that are scored in place."""

import random
from pathlib import Path
from typing import Any

from support.models import WORDS


def make_sentences() -> list[str]:
    """60 different sentences of 2 to 10 words, not in order of length."""
    chance = random.Random(5)
    return [" ".join(chance.choices(WORDS, k=1 + i * 7 % 9)) + f" {WORDS[i % len(WORDS)]}" for i in range(60)]


def load(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu")


def local(encoder: Any, **kwargs: Any) -> Any:
    from ternarize_cli.evaluation.encoder import LocalEncoder

    return LocalEncoder(encoder, **({"name": "tiny", "content_hash": "0" * 64} | kwargs))


def cosines(encoder: Any, first: list[str], second: list[str]) -> list[float]:
    a, b = encoder.encode(first), encoder.encode(second)
    return [float(x @ y) for x, y in zip(a.astype("float64"), b.astype("float64"), strict=True)]
