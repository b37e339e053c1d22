"""Makes training text of the documentation of many packages: the mixture of "Breadth of text" in distillation.md.

    python docs/research/documentation_text.py ROOT OUT [--without TASK]... [--chinese]

ROOT has a folder for each package, into which it was unpacked (`dpkg-deb -x PACKAGE.deb ROOT/PACKAGE`). OUT gets
passages.txt (texts of more than 350 characters) and sentences.txt, one a line, in an order that chance gives once. Of a
package at most 9,000 of each are taken, so that no large one drowns the others. A text that shares a sentence or a
query with a TASK (a folder for `eval --retrieval`, or a CSV file for `--sts`) is left out. With `--chinese`, Chinese
manual pages and translations of documentation give one file, chinese.txt.
"""

import argparse
import csv
import json
import random
import re
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path

from ternarize_cli.data.dictionaries import dictionary_entries
from ternarize_cli.data.doc_files import doc_files
from ternarize_cli.data.manuals import manual_pages
from ternarize_cli.data.prose import pieces

MOST, LONG, PAGES = 9000, 350, 500
DOCUMENTATION = ("doc", "help/C", "gnome/help", "gtk-doc/html")
SENTENCE = re.compile(r"(?<=[.!?:]) +|[。！？；]")
HAN = re.compile("[\u4e00-\u9fff]")


def plain(text: str) -> str:
    """A text without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))


def sentences(text: str) -> Iterator[str]:
    """The text and its sentences, plain, if they are long enough to tell where they come from."""
    for found in (text, *SENTENCE.split(text)):
        if len(found.split()) >= 5 or len(HAN.findall(found)) >= 10:
            yield plain(found)


def measured(task: Path) -> Iterator[str]:
    """The sentences and queries of a task."""
    if task.is_dir():
        parts = ((task / f"{part}.jsonl").read_text(encoding="utf8") for part in ("corpus", "queries"))
        for line in filter(None, chain.from_iterable(part.split("\n") for part in parts)):
            text = json.loads(line)["text"]
            yield from (plain(text), *sentences(text))
    else:
        with task.open(encoding="utf8", newline="") as rows:
            yield from map(plain, chain.from_iterable(csv.reader(rows)))


def english(share: Path) -> list[str]:
    """The texts of a package."""
    found: list[str] = []
    for paragraphs in doc_files(tuple(str(share / name) for name in DOCUMENTATION)):
        found += pieces(paragraphs)
        if len(found) > 6 * MOST:
            break
    for file in sorted(p for p in (share / "games/fortunes").glob("*") if p.is_file() and not p.suffix):
        found += chain.from_iterable(pieces([part]) for part in file.read_text("utf8", "ignore").split("\n%\n"))
    found += chain.from_iterable(map(pieces, dictionary_entries((), (str(share / "dictd"),))))
    found += chain.from_iterable(map(pieces, manual_pages(PAGES, roots=(str(share / "man"),))))
    return [text for text in found if len(text) >= 25 and sum(c < "\u0250" for c in text) > 0.97 * len(text)]


def chinese(share: Path) -> list[str]:
    """Chinese sentences of a package, and passages of some 150 characters."""
    pages = chain.from_iterable(manual_pages(2000, tongue, (str(share / "man"),)) for tongue in ("zh_CN", "zh_TW"))
    roots = (share / "doc", *(share / "help").glob("zh_*"))
    found: list[str] = []
    for paragraphs in chain(doc_files(tuple(map(str, roots)), translations=True), pages):
        joined = ""
        for paragraph in paragraphs:
            line = " ".join(paragraph.split())
            if len(HAN.findall(line)) < max(6, len(line) / 2):
                continue
            found += (s for s in re.split("(?<=[。！？；])", line) if len(HAN.findall(s)) >= 6)
            joined += line
            if len(joined) > 150:
                found.append(joined[:420])
                joined = ""
    return found


def of_package(package: Path, is_chinese: bool) -> list[str]:
    """All Chinese texts of a package, or at most 9,000 passages and 9,000 sentences in English, by chance."""
    found = list(dict.fromkeys((chinese if is_chinese else english)(package / "usr/share")))
    random.Random(1).shuffle(found)
    if is_chinese:
        return found
    parts = [[t for t in found if len(t) > LONG], [t for t in found if len(t) <= LONG]]
    return [text for part in parts for text in part[:MOST]]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--without", type=Path, action="append", default=[])
    parser.add_argument("--chinese", action="store_true")
    wanted = parser.parse_args()
    seen = set(chain.from_iterable(map(measured, wanted.without)))
    packages = sorted(wanted.root.iterdir())
    texts: dict[str, None] = {}
    with ProcessPoolExecutor() as pool:
        for package, found in zip(
            packages, pool.map(partial(of_package, is_chinese=wanted.chinese), packages), strict=True
        ):
            kept = [text for text in found if plain(text) not in seen and seen.isdisjoint(sentences(text))]
            texts |= dict.fromkeys(kept)
            print(f"{package.name}: {len(kept):,}, {len(found) - len(kept):,} left out")
    shuffled = list(texts)
    random.Random(2).shuffle(shuffled)
    files = {"chinese": shuffled}
    if not wanted.chinese:
        files = {
            "passages": [t for t in shuffled if len(t) > LONG],
            "sentences": [t for t in shuffled if len(t) <= LONG],
        }
    wanted.out.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (wanted.out / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf8")
        print(f"{name}.txt: {len(lines):,} texts, {sum(map(len, lines)) / 1e6:.1f} million characters")


if __name__ == "__main__":
    main()
