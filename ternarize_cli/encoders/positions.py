"""Finds how many tokens a text encoder can read: the rows of its learned table of positions.

    BERT, DistilBERT, GPT-2, CLIP      one row a token
    RoBERTa, XLM-R, MPNet              positions begin behind the padding token's id, so that the first rows are unused
    BART, OPT                          the same, with a fixed offset
    T5, ModernBERT, Qwen3, …           no table: positions are computed, and no length is too long

A text with more tokens ends in an index error inside the model. sentence-transformers cuts texts at `max_seq_length` if
the folder has one, and otherwise at max_position_embeddings, which may both be more than the table has.
"""

import json
from pathlib import Path
from typing import Any

from ternarize_cli.model_folder import integrity
from ternarize_cli.storage.bounds import read_object

__all__ = ["cut_at_positions", "readable_tokens", "write_limit"]

_NAMES = ("position_embeddings", "position_embedding", "embed_positions", "wpe", "positions_embed", "pos_embed")
_NOT_TEXT = ("vision", "visual", "image", "audio")


def readable_tokens(model: Any) -> int | None:
    """Returns the most tokens that an encoder's tables of positions have rows for; None if it has no such table.

    Args:
        model: the model of transformers, of any stage; the meta device is enough.
    """
    found = []
    for name, module in model.named_modules():
        rows = getattr(module, "num_embeddings", None)
        parts = name.split(".")
        if parts[-1] in _NAMES and isinstance(rows, int) and not any(p.startswith(_NOT_TEXT) for p in parts):
            padding = getattr(module, "padding_idx", None)
            skipped = getattr(module, "offset", None)
            skipped = skipped if isinstance(skipped, int) else 0 if padding is None else padding + 1
            found.append(rows - skipped if rows > skipped else rows)
    return min(found, default=None)


def cut_at_positions(encoder: Any, folder: Path) -> None:
    """Lowers the number of tokens at which a loaded encoder cuts texts to what its tables of positions hold.

    Logs a sentence if the folder asks for more by a `max_seq_length` of its own.
    """
    first: Any = encoder[0]
    tokenizer: Any = getattr(encoder, "tokenizer", None)
    model = getattr(first, "auto_model", None)
    limit = None if model is None or "text" not in getattr(first, "modalities", ()) else readable_tokens(model)
    wanted = getattr(tokenizer, "model_max_length", None)
    if limit is None or wanted is None or wanted <= limit:
        return
    tokenizer.model_max_length = limit
    if any(length > limit for length in _lengths(folder).values()):
        integrity.note_once(_sentence(wanted, limit))


def write_limit(model: Any, folder: Path) -> list[str]:
    """Lowers `max_seq_length` in a new model folder to what the tables of positions hold.

    Args:
        model: the encoder's skeleton.
        folder: the new folder, with the companion files of its source.

    Returns:
        Sentences that tell the user what was written.
    """
    limit = readable_tokens(model)
    notes = []
    for path, length in _lengths(folder).items():
        if limit is not None and length > limit:
            values = read_object(path) | {"max_seq_length": limit}
            path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            notes.append(_sentence(length, limit))
    return notes


def _lengths(folder: Path) -> dict[Path, int]:
    """The files of a folder that name a max_seq_length, with its value."""
    values = {path: read_object(path).get("max_seq_length") for path in folder.glob("sentence_*_config.json")}
    return {path: length for path, length in values.items() if isinstance(length, int)}


def _sentence(length: float, limit: int) -> str:
    return (
        f"max_seq_length is {length:g}, and the model has positions for {limit} tokens: texts are cut there; "
        "SentenceTransformer would end in an index error"
    )
