"""Makes batches as a server gets them: real texts with their real lengths, padded to the longest of the batch.

A grid of batch × tokens shows the speed of a kernel. The cost for users also depends on the lengths of texts, because a
batch is padded to its longest text. So texts are drawn from a file, tokenised and cut as the model does it, and put
into batches in random order, as requests arrive, not sorted by length. All candidates are timed on these few batches in
turn, which gives two rates:

    tokens/s              tokens of texts, without padding
    tokens/s with padding all positions of the batches

Each batch is run before it is timed, so runtimes that prepare kernels for a shape have done so.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ternarize_cli.data.texts import drawn, read_texts, source_name
from ternarize_cli.encoders import loading
from ternarize_cli.errors import DataError
from ternarize_cli.layers.text_lengths import with_lengths

__all__ = ["BATCHES", "draw", "padded_batches"]

BATCHES = 8
"""The most batches of each size."""
_KEPT = 10_000


def draw(path: str | Path, seed: int) -> list[str]:
    """Draws up to 10,000 texts of a file that are not empty, in random order (`texts.drawn`).

    Raises:
        DataError: the file can't be read or holds no usable text (`texts.read_texts`), all its texts are empty, or the
            drawn texts don't fit in memory.
    """
    texts = (document.text for document in read_texts(path) if document.text)
    if not (found := drawn(texts, _KEPT, seed, source_name(path))):
        raise DataError(f"all texts of {source_name(path)} are empty", hint="pass texts like those of your users")
    return found


def padded_batches(
    model: Path, texts: Sequence[str], sizes: Sequence[int], count: int, device: str
) -> dict[int, list[tuple[Tensor, Tensor]]]:
    """Makes batches of the first texts; if there are too few, takes texts again from the start.

    Args:
        model: the folder of the model whose tokenizer and length limit are used.
        texts: the drawn texts.
        sizes: sizes of batches, in texts.
        count: number of batches of each size.
        device: torch device for the batches.

    Returns:
        A dict from each size to the ids and masks of its batches, both int64 [size, tokens of the longest text]. The
        lengths of texts, which whoever tokenises knows, are noted at the masks.
    """
    encoder = loading.load_encoder(model, device="cpu")
    found: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for size in sizes:
        found[size] = []
        for start in range(0, count * size, size):
            chosen = [texts[i % len(texts)] for i in range(start, start + size)]
            features = encoder.preprocess(chosen)
            mask: Tensor = features["attention_mask"]
            known = mask.sum(dim=1).numpy() if encoder.tokenizer.padding_side == "right" else None
            found[size].append((features["input_ids"].to(device), with_lengths(mask.to(device), known)))
    return found
