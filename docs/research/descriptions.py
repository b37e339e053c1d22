"""Makes a retrieval task of Debian's descriptions of packages: short description -> long description.

    apt-get -o Dir::State::Lists=LISTS -o Acquire::Languages=zh_CN -o Acquire::GzipIndexes=false update
    python docs/research/descriptions.py LISTS/*_main_i18n_Translation-zh*CN OUT

OUT gets corpus.jsonl and queries.jsonl, for `eval --retrieval`. A package is left out if another one has the same short
description or the same beginning of the long one, if its long description has fewer than 40 characters, and if it has
hardly any Chinese in one of the two (a file of another language keeps all).
"""

import argparse
import json
import re
from collections import Counter
from pathlib import Path

HAN = re.compile("[\u4e00-\u9fff]")


def entries(file: Path, tongue: str) -> list[tuple[str, str, str]]:
    """The names, short and long descriptions of a translation file."""
    found: list[tuple[str, str, str]] = []
    for part in file.read_text(encoding="utf-8").split("\n\n"):
        entry = re.match(rf"Package: (\S+)\n.*?^Description-{tongue}: (.+?)\n(.*)", part, re.S | re.M)
        if entry is None:
            continue
        lines = [line.strip() for line in entry[3].split("\n") if line.strip() != "."]
        text = re.sub(r"\s+", " ", ("" if tongue.startswith("zh") else " ").join(lines)).strip()
        enough = not tongue.startswith("zh") or (len(HAN.findall(entry[2])) >= 4 and len(HAN.findall(text)) >= 20)
        if enough and len(text) >= 40:
            found.append((entry[1], entry[2].strip(), text[:1500]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("out", type=Path)
    wanted = parser.parse_args()
    tongue = wanted.file.name.rpartition("-")[2].replace("%5f", "_")
    found = list({entry[0]: entry for entry in entries(wanted.file, tongue)}.values())
    shorts, longs = Counter(short for _, short, _ in found), Counter(text[:40] for _, _, text in found)
    alone = sorted(entry for entry in found if shorts[entry[1]] == 1 and longs[entry[2][:40]] == 1)
    wanted.out.mkdir(parents=True, exist_ok=True)
    files = {
        "corpus": [{"_id": name, "text": text} for name, _, text in alone],
        "queries": [{"_id": f"q{name}", "text": short, "relevant": [name]} for name, short, _ in alone],
    }
    for name, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (wanted.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    print(f"{len(alone)} packages")


if __name__ == "__main__":
    main()
