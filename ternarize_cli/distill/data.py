"""Batches of texts of like length, in an order that the seed decides.

Texts are shuffled, cut into chunks of some batches, sorted by length inside a chunk, and the batches of a chunk are
shuffled again: little padding, and still a fresh mixture every epoch.
"""

from collections.abc import Iterator, Sequence

import torch

from ternarize_cli.errors import DataError

__all__ = ["batches", "split"]

_CHUNK = 32


def split(texts: Sequence[str], seed: int, held_out: int = 256) -> tuple[list[str], list[str]]:
    """Distinct texts as (training, held out); at most `held_out` and at most a tenth are held out.

    Raises:
        DataError: fewer than 20 distinct texts.
    """
    distinct = list(dict.fromkeys(texts))
    if len(distinct) < 20:
        raise DataError(
            f"there are {len(distinct)} distinct texts; distillation needs at least 20",
            hint="--data FILE with one text per line; thousands are better",
        )
    count = min(held_out, len(distinct) // 10)
    order = torch.randperm(len(distinct), generator=torch.Generator().manual_seed(seed)).tolist()
    held = set(order[:count])
    return [t for i, t in enumerate(distinct) if i not in held], [distinct[i] for i in order[:count]]


def batches(texts: Sequence[str], batch_size: int, seed: int) -> Iterator[list[str]]:
    """Endless batches; characters stand for length, which is near enough for bucketing.

    Every epoch uses each text once, but for a last incomplete batch (kept if there is no other).
    """
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(texts), generator=generator).tolist()
        for start in range(0, len(order), batch_size * _CHUNK):
            chunk = sorted(order[start : start + batch_size * _CHUNK], key=lambda i: (len(texts[i]), i))
            groups = [chunk[i : i + batch_size] for i in range(0, len(chunk), batch_size)]
            if len(groups) > 1 and len(groups[-1]) < batch_size:
                groups.pop()
            for g in torch.randperm(len(groups), generator=generator).tolist():
                yield [texts[i] for i in groups[g]]
