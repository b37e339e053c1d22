"""Reads the dictionaries of this machine: WordNet's files, and those of dictd.

data.noun  data.verb  data.adj  data.adv    WordNet: `… | definition; "example"; "example"`, a meaning a line
NAME.dict.dz  NAME.dict                     dictd: entries one after the other, in a file that gzip unpacks
"""

import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from ternarize_cli.data.unpacked import open_text
from ternarize_cli.errors import DataError
from ternarize_cli.storage.bounds import lines_of

__all__ = ["dictionary_entries"]

_WORDNET = (
    "/usr/share/wordnet",
    "/usr/share/nltk_data/corpora/wordnet",
    f"{sys.prefix}/nltk_data/corpora/wordnet",
    f"{Path.home()}/nltk_data/corpora/wordnet",
)
_DICTD = ("/usr/share/dictd",)
_PARTS = ("data.noun", "data.verb", "data.adj", "data.adv")


def dictionary_entries(wordnet: tuple[str, ...] = _WORDNET, dictd: tuple[str, ...] = _DICTD) -> Iterator[list[str]]:
    """Yields the definition and the examples of each meaning, or the paragraphs of each entry.

    Args:
        wordnet: folders that may hold WordNet; only the first that does is read.
        dictd: folders that may hold dictionaries of dictd.
    """
    folder = next((Path(place) for place in wordnet if (Path(place) / _PARTS[0]).is_file()), None)
    for path in [folder / part for part in _PARTS] if folder else ():
        for line in _lines(path):
            if not line.startswith(" ") and " | " in line:  # the licence at the top is indented
                yield [part.strip() for part in re.split('[;"]', line.partition(" | ")[2]) if part.strip()]
    for path in sorted(chain.from_iterable(Path(place).glob("*.dict*") for place in dictd)):
        entry: list[str] = []
        for line in chain(_lines(path), ["end"]):
            if entry and not line.startswith(" "):  # the next headword
                if not entry[0].startswith(("00-database", "00database")):  # which say who made the dictionary
                    yield [" ".join(entry)]
                entry = []
            if line.strip():
                entry.append(line.strip())


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines of a file that are UTF-8; none of a file that can't be read, or of a pipe."""
    if not path.is_file():
        return
    try:
        with open_text(path) as stream:
            for line in lines_of(stream, str(path), DataError):
                yield line.decode("utf-8", "ignore").rstrip()
    except DataError:
        return
