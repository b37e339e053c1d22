"""Reads the messages of programs from their translations, the .mo files of gettext.

uint32 magic (0x950412de, in the byte order of the file), revision, count, place of originals, place of translations
count pairs of uint32 length and offset at each of the two places; each message ends with a NUL, which is not counted
"""

import struct
from collections.abc import Iterator
from pathlib import Path

from ternarize_cli.errors import CheckpointError
from ternarize_cli.storage.bounds import read_bytes

__all__ = ["messages", "translations"]

_ROOTS = ("/usr/share/locale", "/usr/local/share/locale")
_LONGEST = 16 << 20
_MAGIC = 0x950412DE


def translations(languages: tuple[str, ...], roots: tuple[str, ...] = _ROOTS) -> Iterator[list[str]]:
    """Yields the messages of each program in languages such as "zh_CN"; of a message with several plurals the first."""
    for root in roots:
        for language in languages:
            for path in sorted((Path(root) / language / "LC_MESSAGES").glob("*.mo")):
                yield list(messages(path))


def messages(path: Path) -> Iterator[str]:
    """Yields the translated messages of a .mo file, without the header; none of a file that is damaged."""
    try:
        content = read_bytes(path, limit=_LONGEST)
        order = next((order for order in "<>" if struct.unpack_from(f"{order}I", content)[0] == _MAGIC), "<")
        count, originals, translated = struct.unpack_from(f"{order}3I", content, 8)
        left = len(content)  # messages do not overlap
        for i in range(min(count, len(content) // 16)):
            (length,) = struct.unpack_from(f"{order}I", content, originals + 8 * i)
            size, start = struct.unpack_from(f"{order}2I", content, translated + 8 * i)
            left -= size
            if left < 0:
                return
            if length:  # the translation of "" is the header
                yield content[start : start + size].partition(b"\0")[0].decode("utf-8", "ignore")
    except (CheckpointError, struct.error):
        return
