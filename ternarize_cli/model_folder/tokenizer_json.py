"""Checks what a tokenizer.json asks for: what its library would do without a bound, or fail at with some text."""

import base64
import binascii
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from ternarize_cli.errors import CheckpointError, shown
from ternarize_cli.storage.bounds import MAX_TOKENIZER, parse_json, read_bytes, require_regular

__all__ = ["check_tokenizer_json"]

_WRITING = (b'"Replace"', b'"Prepend"', b'"Precompiled"', b"\\u")
"""What a file holds that has a normalizer which writes text of its own; the last may hide one of the others."""
_SMALL = 1 << 22  # bytes; a file of so many is parsed in any case
_MOST = 1 << 14
"""The most characters that may become of one; the normalizers of public models make up to 66."""
_WITH_UNKNOWN = ("WordLevel", "WordPiece")


def check_tokenizer_json(path: Path) -> None:
    """Checks the normalizers of a tokenizer, and its token for unknown words; a file that has not changed only once.

    Args:
        path: a tokenizer.json.

    Raises:
        CheckpointError: the file has more than MAX_TOKENIZER bytes, or holds no tokenizer; its normalizers may make
            more than 16,384 characters of one; or the token for unknown words is not in the vocabulary, so that a text
            with such a word would be an error.
    """
    status = require_regular(path)
    _check(path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=16)
def _check(path: Path, *_version: int) -> None:
    content = read_bytes(path, limit=MAX_TOKENIZER)
    if len(content) > _SMALL and not any(word in content for word in _WRITING):
        return
    state = parse_json(content, str(path))
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        raise CheckpointError(f"{path} is no tokenizer: it has no model", hint="fetch the file again")
    if (growth := _growth(state.get("normalizer"))) > _MOST:
        raise CheckpointError(
            f"{path}: its normalizers may make {growth:,} characters of one; {_MOST:,} are the most",
            hint="take them out of normalizer in the file",
        )
    model = state["model"]
    unknown, vocabulary = model.get("unk_token"), model.get("vocab")
    is_known = isinstance(vocabulary, dict) and isinstance(unknown, str) and unknown in vocabulary
    if str(model.get("type")) in _WITH_UNKNOWN and not is_known:
        raise CheckpointError(
            f"{path}: unk_token is {shown(unknown)}, which is not in the vocabulary; a text with an unknown word could "
            f"not be read",
            hint="fetch the whole model again, or put the token into vocab of the file",
        )


def _growth(normalizer: Any) -> int:
    """Gives an upper bound of the characters that a normalizer may make of one."""
    if not isinstance(normalizer, Mapping):
        return 1
    kind = normalizer.get("type")
    if kind == "Sequence":
        inner = normalizer.get("normalizers")
        product = 1
        for one in inner if isinstance(inner, list) else ():
            product = min(product * _growth(one), 1 << 64)
        return product
    if kind in ("Replace", "Prepend"):  # a pattern may match nothing, before each character
        written = normalizer.get("content" if kind == "Replace" else "prepend")
        return 1 + len(written) if isinstance(written, str) else 1
    if kind == "Precompiled":
        return _longest(normalizer.get("precompiled_charsmap"))
    return 1


def _longest(charsmap: Any) -> int:
    """Gives the length in bytes of the longest text in a map of SentencePiece: a table, and texts that end with 0."""
    try:
        content = base64.b64decode(charsmap or "")
    except (TypeError, ValueError, binascii.Error):  # which the library says better
        return 1
    start = 4 + int.from_bytes(content[:4], "little")
    return max(1, *map(len, content[start:].split(b"\0")))
