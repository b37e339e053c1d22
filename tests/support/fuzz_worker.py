"""Opens damaged folders one after the other, in a process that may crash.

    python fuzz_worker.py SEED KIND FOLDER FIRST END [KIND FOLDER FIRST END …]

Prints a JSON line a case: its kind, folder and number, what was done, how it ended, seconds, and the memory of the
process in MB. A case ends as "same" (opened, the same answer), "refused" (an error of ours), "other" (opened, and
answers differ where nothing was verified), or in a fault: "different" (opened, verified, and answers differ) or
"undesigned" (an error that is none of ours). A crash ends the process, and so does the alarm after 20 seconds;
`test_fuzz` goes on with the next.

KIND: packed, sealed (packed, and sealed again after the damage), runtime (as sealed, opened without PyTorch), latent,
full, index, signed (an index whose digests are written anew after the damage).
"""

import json
import logging
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.mutations import Files, mutate, read, write

TEXTS = ["the cat", "a dog by the river", "red fire and stone light in the house", "file"]
_SECONDS = 20


def answer_of_model(folder: Path) -> Any:
    """The vectors of a few texts, as bytes."""
    from ternarize_cli.encoders.loading import load_encoder

    return load_encoder(folder, backend="native", threads=1).encode(TEXTS).tobytes()


def answer_of_runtime(folder: Path) -> Any:
    """What a packed model of any kind gives for a few inputs, as bytes."""
    from PIL import Image

    from ternarize_cli.runtime import Encoder, Reranker
    from ternarize_cli.runtime.opening import open_model

    model = open_model(folder)
    if isinstance(model, Reranker):
        return model.score([(text, TEXTS[0]) for text in TEXTS]).tobytes()
    if not isinstance(model, Encoder):
        return model.classify(TEXTS).tobytes()
    pictures = [Image.new("RGB", (20, 30), color) for color in ("red", "white")]
    seen = model.encode_images(pictures).tobytes() if "image" in model.reads else b""
    return seen + (model.encode(TEXTS).tobytes() if "text" in model.reads else b"")


def answer_of_full(folder: Path) -> Any:
    from ternarize_cli.encoders.loading import load_encoder

    return load_encoder(folder, threads=1).encode(TEXTS).tobytes()


def answer_of_index(folder: Path) -> Any:
    """Ids, texts and scores of the nearest documents of a few vectors."""
    import numpy as np

    from ternarize_cli.index.search import _opened, search_live, set_knob

    info, index, dead, documents = _opened(folder)
    for name, value in info.search.items():
        set_knob(index, info, name, value)
    queries = np.random.default_rng(0).standard_normal((4, info.dim)).astype(np.float32)
    scores, rows = search_live(index, queries, 5, dead)
    texts = documents.of_rows({int(row) for row in rows.flat if row >= 0})
    pairs = zip(rows, scores, strict=True)
    return [[(texts[int(row)], float(s)) for row, s in zip(*both, strict=True) if row >= 0] for both in pairs]


def seal(folder: Path) -> None:
    """Writes the digest of a packed model anew, where its config can be read."""
    from ternarize_cli.model_folder import integrity

    try:
        integrity.seal(folder)
    except Exception:  # a config that can't be sealed is opened as it is
        return


def sign(folder: Path) -> None:
    """Writes digests and checksum of an index anew, where its record can be read."""
    from ternarize_cli.storage.bounds import read_json
    from ternarize_cli.storage.checksummed import with_checksum
    from ternarize_cli.storage.digests import sha256

    try:
        record = read_json(folder / "index.json")
        record.pop("record_sha256", None)
        for name, file in record["files"].items():
            if (folder / name).is_file() and not (folder / name).is_symlink():
                file |= {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        (folder / "index.json").write_text(with_checksum(record))
    except Exception:  # a record that can't be signed is opened as it is
        return


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Path], None] | None]] = {
    "packed": (answer_of_model, None),
    "sealed": (answer_of_model, seal),
    "runtime": (answer_of_runtime, seal),
    "latent": (answer_of_full, None),
    "full": (answer_of_full, None),
    "index": (answer_of_index, None),
    "signed": (answer_of_index, sign),
}


def ended(answer: Callable[[Path], Any], folder: Path, expected: Any, verified: bool) -> tuple[str, str]:
    """How opening a folder ends, and the message of an error."""
    from ternarize_cli.errors import TernarizeError

    try:
        found = answer(folder)
    except TernarizeError as e:
        return ("refused", str(e)) if len(str(e)) <= 2001 else ("undesigned", f"a message of {len(str(e))} characters")
    except OSError as e:  # the command line says these in words
        return ("refused", str(e)) if e.errno is not None else ("undesigned", repr(e))
    except Exception as e:
        return "undesigned", f"{type(e).__name__}: {e}"
    return ("same" if found == expected else "different" if verified else "other"), ""


def memory() -> float:
    """The memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def run(seed: str, kind: str, source: Path, first: int, end: int) -> None:
    """Opens the cases of one kind and folder."""
    answer, after = KINDS[kind]
    original, scratch = read(source), source.with_name(f"damaged-{source.name}")
    expected = answer(source)
    for number in range(first, end):
        draw, files = random.Random(f"{seed}/{kind}/{source.name}/{number}"), Files(original)
        case = {"kind": kind, "folder": str(source), "case": number, "done": mutate(files, draw)}
        print(json.dumps(case), flush=True)
        write(files, scratch)
        if after is not None:
            after(scratch)
        signal.alarm(_SECONDS)
        started = time.monotonic()
        how, message = ended(answer, scratch, expected, after is None and kind in ("packed", "index"))
        signal.alarm(0)
        result = {"ended": how, "message": message[:300], "seconds": time.monotonic() - started, "memory": memory()}
        print(json.dumps(case | result), flush=True)


if __name__ == "__main__":
    logging.disable()
    seed, *jobs = sys.argv[1:]
    for at in range(0, len(jobs), 4):
        run(seed, jobs[at], Path(jobs[at + 1]), int(jobs[at + 2]), int(jobs[at + 3]))
