"""Makes a retrieval task of manual pages, and texts of other pages: "Your own texts" in distillation.md.

    python docs/research/manual_pages.py OUT [ROOT]...

ROOT are folders with sections of manual pages in English (default: /usr/share/man). A query is the line of a page that
has its name and what it is for, its document the first 1,000 characters of what follows. OUT/task has the documents of
2,000 pages, 1,000 of them with queries, for `eval --retrieval`; OUT/texts.txt has 10,000 passages of other pages, one a
line, none of which has a sentence of five words or more that a document of the task has whole. Pages come in the order
of checksums of their names, so that the task is a draw of all.
"""

import argparse
import json
import re
import zlib
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from documentation_text import sentences

from ternarize_cli.data.manuals import rendered, renderer
from ternarize_cli.data.prose import pieces

DOCUMENTS, QUERIES, TEXTS, CHARACTERS = 2000, 1000, 10_000, 1000
SUMMARY = re.compile(r"[^ ]+(?:, [^ ]+)* [-–—] .{10,200}")


def pages(roots: list[Path]) -> list[Path]:
    """The pages below some folders, a name once, in the order of checksums of their names."""
    found = {file.name: file for root in roots for file in sorted(root.glob("man[1-8]/*")) if not file.is_symlink()}
    return sorted(found.values(), key=lambda file: zlib.crc32(file.name.encode()))


def main() -> None:
    """Writes the task and the texts."""
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("roots", type=Path, nargs="*", default=[Path("/usr/share/man")])
    wanted = parser.parse_args()
    command = renderer()
    if command is None:
        raise SystemExit("groff is not installed")
    task: dict[str, tuple[str, str]] = {}
    seen: set[str] = set()
    texts: dict[str, None] = {}
    with ProcessPoolExecutor() as pool:
        listed = pages(wanted.roots)
        for file, paragraphs in zip(listed, pool.map(partial(rendered, command=command), listed), strict=True):
            if len(task) < DOCUMENTS:
                document = " ".join(paragraphs[1:])[:CHARACTERS]
                is_new = document[: CHARACTERS // 4] not in {known[: CHARACTERS // 4] for _, known in task.values()}
                if SUMMARY.fullmatch((paragraphs or [""])[0]) and len(document) > CHARACTERS / 4 and is_new:
                    task[file.name] = paragraphs[0], document
                    seen |= {*sentences(document), *sentences(paragraphs[0])}
            elif len(texts) < TEXTS:
                texts |= dict.fromkeys(t for t in pieces(paragraphs) if len(t) > 100 and seen.isdisjoint(sentences(t)))
            else:
                pool.shutdown(wait=False, cancel_futures=True)
                break
    folder = wanted.out / "task"
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {
        "corpus": [{"_id": name, "text": document} for name, (_, document) in task.items()],
        "queries": [
            {"_id": f"q{name}", "text": summary, "relevant": [name]}
            for name, (summary, _) in list(task.items())[:QUERIES]
        ],
    }
    for part, found in rows.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        (folder / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
    (wanted.out / "texts.txt").write_text("".join(f"{text}\n" for text in list(texts)[:TEXTS]), encoding="utf-8")
    print(f"{len(listed):,} pages; {len(task):,} documents, {len(rows['queries']):,} queries; {len(texts):,} texts")


if __name__ == "__main__":
    main()
