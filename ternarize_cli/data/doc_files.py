"""Reads the documentation that packages have installed as files: READMEs, manuals and guides, as text or HTML.

Changelogs, licences, lists of names and files of package managers are left out: they are no prose, and what package
managers say of a package is not read at all. So are translations, which have a language in their path. Links are not
followed.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

from ternarize_cli.data.prose import paragraphs_of
from ternarize_cli.data.unpacked import inner_suffix, open_text
from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import MAX_FOLDERS

__all__ = ["doc_files"]

_ROOTS = ("/usr/share/doc", "/usr/local/share/doc", f"{sys.prefix}/share/doc", "/usr/share/help/C")
_LONGEST = 1 << 20
_LONGEST_TAG = 2000
_DEEPEST = 100  # parts without prose inside each other, which are searched at every end of one
_FILES_PER_PACKAGE = 500
_HTML = (".html", ".htm", ".xhtml", ".page")
_SUFFIXES = ("", ".txt", ".md", ".rst", ".debian", *_HTML)
_SKIPPED = re.compile(
    r"(changelog|changes|news|copy(ing|right)|licen[cs]e|authors|credits|thanks|contributors|maintainers|todo|makefile|"
    r"history|notice|control|status|available|packages).*|.*\.list",
    re.IGNORECASE,
)
_TRANSLATED = re.compile(
    r"(.*[._])?(ar|bg|ca|cs|da|de|el|es|et|eu|fi|fr|gl|he|hr|hu|id|it|ja|ko|lt|lv|nb|nl|nn|pl|pt|ro|ru|sk|sl|sr|sv|tr|uk|vi|"
    r"zh)([-_@](\w\w|hans|hant|latin))?(\.[a-z]+(-?\d+)?)*",
    re.IGNORECASE,
)
"""Names with a language and perhaps a country: html/pt_BR, README.de.txt. A word behind it is no country: nl-manual."""
_NO_PROSE = ("script", "style", "pre", "table", "nav", "head", "svg", "screen", "info")  # the last two: of help pages
_BLOCKS = (
    "p",
    "div",
    "li",
    "title",
    "item",
    "dd",
    "dt",
    "td",
    "blockquote",
    "section",
    "article",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
)


def doc_files(roots: tuple[str, ...] = _ROOTS, *, translations: bool = False) -> Iterator[list[str]]:
    """Yields the paragraphs of documentation files: the outermost of every package, then the next of each, up to 500.

    Args:
        roots: folders with a folder for each package.
        translations: read files that have a language in their path, too.
    """
    packages = []
    for root in dict.fromkeys(roots):
        try:
            packages += sorted(entry.path for entry in os.scandir(root) if entry.is_dir(follow_symlinks=False))
        except OSError:
            continue
    for files in zip_longest(*(_files(Path(package), translations)[:_FILES_PER_PACKAGE] for package in packages)):
        yield from (_paragraphs(path) for path in files if path is not None)


def _files(package: Path, translations: bool) -> list[Path]:
    def is_read(name: str) -> bool:
        return translations or not _TRANSLATED.fullmatch(name)

    found = []
    for folder, folders, names in os.walk(package):
        here = Path(folder)
        if len(here.parts) - len(package.parts) >= MAX_FOLDERS:
            folders.clear()
        folders[:] = filter(is_read, folders)
        for name in names:
            path = here / name
            if inner_suffix(path) in _SUFFIXES and not _SKIPPED.fullmatch(name) and is_read(name):
                found.append(path)
    found.sort(key=lambda path: (len(path.parts), path))
    return [path for path in found if path.is_file() and not path.is_symlink()]


def _paragraphs(path: Path) -> list[str]:
    """Returns the paragraphs of a file; [] if it can't be read, is no text, or is larger than 1 MB."""
    try:
        with open_text(path) as stream:
            content = stream.read(_LONGEST + 1)
    except DataError:
        return []
    if len(content) > _LONGEST or b"\0" in content:
        return []
    text = content.decode("utf-8", "replace")
    return _of_html(text) if inner_suffix(path) in _HTML else paragraphs_of(text)


def _of_html(text: str) -> list[str]:
    if not _has_short_tags(text):
        return []
    reader = _Reader()
    with suppress(AssertionError):  # of a declaration that the parser does not know; what was read before it stays
        reader.feed(text)
        reader.close()
    return [" ".join(paragraph.split()) for paragraph in "".join(reader.found).split("\0") if paragraph.strip()]


def _has_short_tags(text: str) -> bool:
    """Returns whether every tag ends after a while: the parser reads one that does not again and again."""
    opened = None
    for bracket in re.finditer("[<>]|$", text):
        if opened is not None and bracket.start() - opened > _LONGEST_TAG:
            return False
        if bracket[0] != "<":
            opened = None
        elif opened is None:
            opened = bracket.start()
    return True


class _Reader(HTMLParser):
    """Collects the text of a page, with a NUL at the borders of paragraphs, without code, tables and menus."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _BLOCKS:
            self.found.append("\0")
        if tag in _NO_PROSE and len(self._inside) < _DEEPEST:
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in _BLOCKS:
            self.found.append("\0")
        if tag in self._inside:
            del self._inside[self._inside.index(tag) :]

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.found.append(data)
