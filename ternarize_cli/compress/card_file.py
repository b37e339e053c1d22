"""Reads model cards (README.md), also of strangers, and marks the places in them that are ours.

A card of more than 4 MB, or with metadata that can't be read, is a stranger's file like any other.
"""

import re
from pathlib import Path
from typing import Any

from ternarize_cli.errors import InputError

__all__ = ["BEGIN", "END", "HEADER", "RESULTS", "SCORES", "USAGE", "metadata_in", "read_card", "read_text"]

BEGIN, USAGE, END = (f"<!-- ternarize: {place} -->" for place in ("begin", "usage", "end"))
"""Marks of our part of a card."""
HEADER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
"""The metadata of a card, in its first group."""
RESULTS = re.compile(r"^[\"']?model-index[\"']?[ \t]*:.*\n?(?:[ \t#-].*\n?|\r?\n)*", re.MULTILINE)
"""The key `model-index` of metadata, with its value."""
SCORES = re.compile(r"<!-- ternarize: scores -->.*?<!-- ternarize: end of scores -->(?:\r?\n){0,2}", re.DOTALL)
"""Our table of scores in a card."""
_LONGEST, _LONGEST_HEADER = 4 << 20, 64 << 10


def read_text(path: Path) -> str:
    """Reads a card as it is, with its ends of lines.

    Raises:
        InputError: the card is longer than 4 MB, or no text in UTF-8.
    """
    if path.stat().st_size > _LONGEST:
        raise InputError(f"{path} is longer than 4 MB, and is left as it is", hint="leave --card out, or shorten it")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as e:
        raise InputError(f"{path} is no text in UTF-8, and is left as it is", hint="save it as UTF-8") from e


def read_card(path: Path) -> tuple[dict[str, Any], str]:
    """Reads the metadata, without results, and the text of a card; empty of one that is missing or too long."""
    if not path.is_file() or path.stat().st_size > _LONGEST:
        return {}, ""
    text = path.read_bytes().decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    header = HEADER.match(text)
    if header is None:
        return {}, text
    return metadata_in(RESULTS.sub("", header[1] + "\n")) or {}, text[header.end() :]


def metadata_in(header: str) -> dict[str, Any] | None:
    """Reads metadata as huggingface_hub does; None if they can't be read or are longer than 64 kB.

    Args:
        header: the YAML between the two lines `---` of a card.
    """
    from huggingface_hub import ModelCard

    if len(header) > _LONGEST_HEADER:
        return None
    try:
        return dict(vars(ModelCard(f"---\n{header}\n---\n", ignore_metadata_errors=True).data))
    except Exception:  # YAML of a stranger: a syntax error, a recursion, keys that are no names, …
        return None
