"""Batches as a server sees them: real texts with their real lengths, padded to the longest of their batch.

A grid of batch × tokens shows what a kernel can do; what a user pays for depends on the lengths of the texts, because
a batch is as wide as its longest one. So texts are drawn from a file, tokenised and cut as the model does it, and put
into batches in the order in which they were drawn, as requests arrive, not sorted by length. The same few batches are
timed in turn for every candidate, which gives two rates:

    tokens/s              tokens of texts: what a user gets for the time
    tokens/s with padding all positions of the batches: what was computed

Each batch has been seen before it is timed, so runtimes that prepare kernels for a shape have done so.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ternarize_cli.data.texts import drawn, read_texts, source_name
from ternarize_cli.encoders import loading

__all__ = ["BATCHES", "draw", "padded_batches"]

BATCHES = 8
"""Batches of each size, at most."""
_KEPT = 10_000


def draw(path: str | Path, seed: int) -> list[str]:
    """Up to 10,000 texts of a file in random order, drawn without holding all of them (reservoir sampling).

    Raises:
        DataError: as `texts.read_texts`, or the texts drawn don't fit in memory.
    """
    return drawn((document.text for document in read_texts(path)), _KEPT, seed, source_name(path))


def padded_batches(
    model: Path, texts: Sequence[str], sizes: Sequence[int], count: int, device: str
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """The first texts as batches; where there are too few, they are taken again from the start.

    Args:
        model: whose tokenizer and length limit count.
        texts: as drawn.
        sizes: texts of a batch.
        count: batches of each size.
        device: torch device that the batches are put on.

    Returns:
        size → ids and mask of each batch, both int64 [size, its longest text].
    """
    encoder = loading.load_encoder(model, device="cpu")
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for size in sizes:
        found[size] = []
        for start in range(0, count * size, size):
            chosen = [texts[i % len(texts)] for i in range(start, start + size)]
            features = encoder.preprocess(chosen)
            found[size].append((features["input_ids"].to(device), features["attention_mask"].to(device)))
    return found
