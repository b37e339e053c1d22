"""Writes `docs/reference/families.md`: what becomes of a tiny random model of every encoder family of transformers.

    python docs/reference/write_families.py [FAMILY …]

With names of families it prints their rows, and writes nothing. The whole table takes about ten minutes on a core.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from support.sweep import Row

PAGE = Path(__file__).parent / "families.md"
sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", OMP_NUM_THREADS="1")

HEAD = """# Families

What `convert` and `pack` make of every family of text and image encoders in transformers {version}, written by
`python docs/reference/write_families.py` (sentence-transformers {sentence}, torch {torch}). Run it again for another
version, and change the code, not this page.

Each family is a tiny model with random weights. "works" means three things. It was converted and packed at ternary and
int4. The checkpoint, computed with its unrounded weights, gave the source's vectors. The packed model agreed with the
checkpoint. The numbers are the width of the vectors, and the least cosine between the source's vectors and those of
the packed int4 model. Random weights round worse than trained ones, so the cosine does not tell what a real model
keeps. "refused" means that nothing was written; the sentence is the error. "not made" is a family of which
transformers makes no small model here, from the settings in `tests/support/sweep.py`.

{counts}

| family | | vectors, or the reason |
|---|---|---|
"""


def main() -> None:
    """Prints the rows of the named families, or writes the page."""
    from support.sweep import kinds, sweep

    rows = []
    for row in sweep(sys.argv[1:] or kinds()):
        print(row.kind, row.outcome, row.detail, sep="\t", flush=True)
        rows.append(row)
    if not sys.argv[1:]:
        PAGE.write_text(page(rows), encoding="utf-8")


def page(rows: "list[Row]") -> str:
    """The page with a line for each row."""
    import sentence_transformers
    import torch
    import transformers

    numbers = {name: sum(row.outcome == name for row in rows) for name in ("works", "refused", "not made", "fault")}
    counts = ", ".join(f"{count} {name}" for name, count in numbers.items() if count or name != "fault")
    head = HEAD.format(
        version=transformers.__version__,
        sentence=sentence_transformers.__version__,
        torch=torch.__version__.partition("+")[0],
        counts=f"{len(rows)} families: {counts}.",
    )
    lines = [f"| {row.kind} | {row.outcome} | {row.detail.replace('|', '/')} |" for row in rows]
    return head + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
