"""Reads the manual pages of this machine, which groff renders.

A page is a program in roff that anybody may have written. groff runs in its safe mode, in which a page starts no
program and opens no file for writing. Requests that read other files (`.so`) are taken out before, and pages that give
requests other names are left out. A page gets 10 seconds, and of what it prints the first 2 MB count. Pages that are
links or only name another page are left out, too.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import Timer

from ternarize_cli.data.unpacked import inner_suffix, open_text
from ternarize_cli.errors import DataError

__all__ = ["manual_pages", "rendered", "renderer"]

_SECONDS = 10.0
_ROOTS = ("/usr/share/man", "/usr/local/share/man", f"{sys.prefix}/share/man")
_SECTION = re.compile(r"man[1-8]")
_PAGE = re.compile(r"\.[1-8][a-z]*")
_LONGEST = 2 << 20
_READS = re.compile(rb"^[.'](?:.*[ \t.'{])?m?so(?:quiet)?(?:[ \t].*)?$|^[.'][ \t]*\\\".*$", re.MULTILINE)
"""Lines that read other files or name a request that does, and comments."""
_RENAMES = re.compile(
    rb"^[.'](?:[ \t]*(?:if|ie|el|while|do|nop)\b.*[.'{])?[ \t]*"
    rb"(?:(?:cc|c2|ec|eo)(?:[ \t\r\n]|$)|(?:als|rn)[ \t].*\\|\\[*n$V])",
    re.MULTILINE,
)
"""Other control and escape characters, and requests whose names are made up of strings."""
_HEADING = re.compile(r"\S")
_NO_PROSE = re.compile(r"SYNOPSIS|SEE ALSO|AUTHORS?|COPYRIGHT|REPORTING BUGS|COLOPHON|EXAMPLES?|FILES")


def renderer() -> list[str] | None:
    """Returns the command that renders a page from stdin, with a paragraph a line; None if there is no groff."""
    groff = shutil.which("groff")
    if groff is None or not hasattr(os, "killpg"):
        return None
    return [groff, "-mandoc", "-Tutf8", "-Kutf8", "-t", "-P-cbou", "-rLL=9000n", "-rHY=0"]


def manual_pages(count: int, language: str = "", roots: tuple[str, ...] = _ROOTS) -> Iterator[list[str]]:
    """Yields the paragraphs of manual pages, page by page; none if there is no groff.

    Args:
        count: the most pages. Of more, one page of every program comes first, then another of each, in an order that
            depends on their names only.
        language: a language of translated pages, such as "zh_CN"; "" reads those in English.
        roots: folders with folders of sections.
    """
    command = renderer()
    if command is None:
        return
    pages = islice(_pages(language, roots), count)
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        yield from filter(None, pool.map(lambda page: rendered(page, command), pages))


def rendered(page: Path, command: list[str]) -> list[str]:
    """Returns the paragraphs of a page, without sections that are no prose; [] if it can't be read or rendered."""
    try:
        with open_text(page) as stream:
            source = stream.read(_LONGEST + 1)
    except DataError:
        return []
    kept = _READS.sub(b"", source.replace(b"\r", b""))
    if len(source) > _LONGEST or not kept.strip() or _RENAMES.search(kept):
        return []
    paragraphs, skipped = [], False
    for line in _printed(kept, command).decode("utf-8", "replace").splitlines()[1:-1]:  # without header and footer
        if _HEADING.match(line):
            skipped = _NO_PROSE.fullmatch(line.strip()) is not None
        elif line.strip() and not skipped:
            paragraphs.append(" ".join(line.split()))
    return paragraphs


def _pages(language: str, roots: tuple[str, ...]) -> Iterator[Path]:
    """Yields the files of pages: the first of each program in the order of checksums of names, then the second, …"""
    programs: dict[str, list[tuple[int, str, Path]]] = defaultdict(list)
    for root in dict.fromkeys(roots):
        for folder in _listed(Path(root) / language):
            if not _SECTION.fullmatch(folder.name) or folder.is_symlink():
                continue
            for page in _listed(folder):
                if _PAGE.fullmatch(inner_suffix(page)) and page.is_file() and not page.is_symlink():
                    program = re.split(r"[-_.:]", page.name, maxsplit=1)[0]
                    programs[program].append((zlib.crc32(page.name.encode()), page.name, page))
    ranked = ((i, *page) for pages in programs.values() for i, page in enumerate(sorted(pages)))
    yield from (page for *_, page in sorted(ranked))


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _printed(source: bytes, command: list[str]) -> bytes:
    """Returns what the command prints for a page, or what it had printed when it took too long or printed too much."""
    with tempfile.TemporaryFile() as given:
        given.write(source)
        given.seek(0)
        try:
            process = subprocess.Popen(
                command,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # groff starts the programs of its pipeline; all of them are ended
            )
        except OSError:
            return b""

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = Timer(_SECONDS, end)
        timer.start()
        with process:
            assert process.stdout is not None
            try:
                return process.stdout.read(_LONGEST)
            finally:
                timer.cancel()
                end()
