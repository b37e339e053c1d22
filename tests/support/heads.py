"""Tiny models with a head: classifiers of pairs, and masked language models."""

import random
from pathlib import Path
from typing import Any

from support.models import WORDS, save_word_tokenizer

__all__ = ["PAIRS", "save_headed", "write_pairs"]

PAIRS = [
    (first, second)
    for first in ("the cat in a tree", "read the file", "water and fire", "a small red bird")
    for second in ("the dog by the river", "write and close the file", "light", "a big green house with stone")
]
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_OTHER: dict[str, dict[str, Any]] = {
    "DistilBert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64},
    "DebertaV2": {**_BERT, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["c2p", "p2c"]},
}


def save_headed(folder: Path, family: str = "Bert", head: str = "SequenceClassification", *, labels: int = 1) -> Path:
    """Saves a tiny model such as BertForSequenceClassification, whose outputs differ clearly from input to input."""
    import torch
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    kind = getattr(transformers, f"{family}For{head}")
    settings = {"vocab_size": save_word_tokenizer(folder), "pad_token_id": 0, "max_position_embeddings": 70}
    if head == "SequenceClassification":
        settings["num_labels"] = labels
    torch.manual_seed(0)
    model = kind(kind.config_class(**settings, **_OTHER.get(family, _BERT)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    model.save_pretrained(folder)
    return folder


def write_pairs(path: Path, rows: int = 200) -> Path:
    """Writes a CSV of query, passage and a relevance of 0 or 1; each query has four passages."""
    rng = random.Random(0)
    lines = ["query,passage,score"]
    for number in range(rows):
        query = " ".join(WORDS[(number // 4 + i * i) % len(WORDS)] for i in range(4))
        lines.append(f"{query},{' '.join(rng.choices(WORDS, k=6))},{number % 4 == 0:d}")
    path.write_text("\n".join(lines) + "\n")
    return path
