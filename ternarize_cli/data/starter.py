"""The data source `starter`: texts that this machine has, for people who bring none.

    starter       English: docstrings of the installed Python packages, manual pages, documentation files, dictionaries
    starter:zh    Chinese: manual pages and the messages of programs in Chinese

A file or folder with that name comes first; `./starter` always means the file. Every kind gives up to 60,000 texts,
sentences and passages of up to 1,000 characters, each once. The same machine gives the same texts in the same order, as
long as nothing is installed. Nothing is imported or downloaded. What a package manager says of packages is not read.

One source file of Python in ten is left out, that by which `ternarize demo` scores (`docstrings.is_held_out`).
"""

import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

from ternarize_cli.data.prose import NO_TEXT, pieces
from ternarize_cli.errors import DataError
from ternarize_cli.model_folder.integrity import note_once

__all__ = ["NAMES", "Starter", "is_starter", "starter", "starter_texts"]

NAMES = ("starter", "starter:zh")
_KIND_TEXTS = 60_000
_FEWEST = 1000
_LONGEST = 1000
_PAGES = 800
_SECONDS = 900.0
_CHINESE = ("zh_CN", "zh_TW")
_HAN = re.compile("[\u4e00-\u9fff]")
_FEWEST_HAN = 6
_PLACEHOLDER = re.compile(r"%\(?\w|[{}<>]|\\n")


@dataclass(frozen=True)
class Starter:
    """The texts of a machine.

    Attributes:
        texts: the texts, each once, in the order of their checksums, so that the first of them are of all kinds.
        counts: how many are of each kind.
        notes: what is missing on this machine, and what to do about it.
    """

    texts: tuple[str, ...]
    counts: Mapping[str, int]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        shares = (f"{count:,} from {kind} ({count / len(self.texts):.0%})" for kind, count in self.counts.items())
        return "; ".join([f"{len(self.texts):,} texts: {', '.join(shares)}", *self.notes])


def is_starter(source: str | Path) -> bool:
    """Returns whether a source names the texts of this machine, and no file or folder with that name exists."""
    return str(source) in NAMES and not os.path.exists(source)


def starter_texts(name: str) -> tuple[str, ...]:
    """Returns the texts of `starter` or `starter:zh`, and logs once what they are.

    Raises:
        DataError: this machine has fewer than 1,000 texts.
    """
    found = starter(name)
    note_once(f"{name}: {found}")
    return found.texts


@cache
def starter(name: str) -> Starter:
    """Collects the texts of `starter` or `starter:zh`; a process does so once.

    Raises:
        DataError: this machine has fewer than 1,000 texts.
    """
    from ternarize_cli.data import manuals

    ends = time.monotonic() + _SECONDS
    texts: dict[str, None] = {}
    counts, notes = {}, []
    for kind, found in _readers(name).items():
        before = len(texts)
        for text in found:
            if len(texts) - before >= _KIND_TEXTS or time.monotonic() > ends:
                break
            if len(text) <= _LONGEST:
                texts[text] = None
        if len(texts) > before:
            counts[kind] = len(texts) - before
    if time.monotonic() > ends:
        notes.append(f"reading ended after {_SECONDS:.0f} s, so another run may find more")
    if manuals.renderer() is None:
        notes.append("manual pages are left out, since groff is not installed")
    if len(texts) < _FEWEST:
        raise DataError(
            f"this machine has {len(texts):,} texts for {name}, and {_FEWEST:,} are needed"
            + "".join(f"; {note}" for note in notes),
            hint="--data FILE with texts like those that the model will see, one a line",
        )
    mixed = sorted(texts, key=lambda text: (zlib.crc32(text.encode()), text))
    return Starter(tuple(mixed), counts, tuple(notes))


def _english(files: Iterable[list[str]]) -> Iterator[str]:
    return chain.from_iterable(map(pieces, files))


def _chinese(files: Iterable[list[str]]) -> Iterator[str]:
    """Yields the sentences of paragraphs that are Chinese: with 6 Chinese characters at least, half of all."""
    for text in chain.from_iterable(files):
        for sentence in re.split(r"(?<=[。！？；])|\n\s*\n", text):
            line = " ".join(sentence.split())
            count = len(_HAN.findall(line))
            if count >= max(_FEWEST_HAN, len(line) / 2) and not _PLACEHOLDER.search(line) and not NO_TEXT.search(line):
                yield line


def _readers(name: str) -> dict[str, Iterator[str]]:
    """Returns the texts of each kind, which are read as they are taken."""
    from ternarize_cli.data import dictionaries, doc_files, docstrings, manuals, messages  # encode needs none of them

    if name == "starter:zh":
        pages = (manuals.manual_pages(_PAGES, language) for language in _CHINESE)
        return {
            "manual pages": _chinese(chain.from_iterable(pages)),
            "messages of programs": _chinese(messages.translations(_CHINESE)),
        }
    documented = docstrings.training_sentences(docstrings.collect())
    return {
        "docstrings": (" ".join(text.split()) for text in documented),
        "manual pages": _english(manuals.manual_pages(_PAGES)),
        "documentation files": _english(doc_files.doc_files()),
        "dictionaries": _english(dictionaries.dictionary_entries()),
    }
