"""Measures the time of a batch, from texts or images to vectors."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ternarize_cli.measuring.timing import summarise, time_interleaved

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

__all__ = ["BATCH", "latency"]

BATCH = 8
"""Number of texts or images in the timed batch."""


def latency(
    encoders: Mapping[str, "SentenceTransformer"],
    items: Sequence[Any],
    *,
    batch: int = BATCH,
    repeats: int = 30,
    seconds: float = 20.0,
) -> dict[str, float]:
    """Measures the median milliseconds to encode one batch, tokenising and pooling included.

    Args:
        encoders: loaded models, by name; they are timed in interleaved rounds (`bench.measure`).
        items: texts or images; the batch is spread evenly over them, and all models encode this batch.
        batch: number of items in the batch.
        repeats: number of rounds.
        seconds: time budget, which may reduce the rounds, but not below three.
    """
    batch = min(batch, len(items))
    chosen = [items[i * len(items) // batch] for i in range(batch)]
    calls = {
        name: partial(encoder.encode, chosen, batch_size=len(chosen), show_progress_bar=False)
        for name, encoder in encoders.items()
    }
    times = time_interleaved(calls, repeats=repeats, seconds=seconds, warmup=2)
    return {name: summarise(measured).median_ms for name, measured in times.items()}
