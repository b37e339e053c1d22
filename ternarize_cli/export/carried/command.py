"""The command of a wheel, and `python -m NAME`: texts or files of images in, a line of JSON out for each.

Its exit codes are those of `ternarize`: the code of an error's class, 1 for an error of the system, such as a full
device, and 130 after Ctrl-C.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ternarize_cli.data.image_decoding import decoded_rgb
from ternarize_cli.errors import InputError, TernarizeError, UnavailableError, reason
from ternarize_cli.export.carried.check import check, results
from ternarize_cli.export.carried.model import Classifier, Encoder, Reranker
from ternarize_cli.export.carried.place import FOLDER, PACKAGE, about, reading
from ternarize_cli.model_folder.integrity import verify
from ternarize_cli.runtime.native.library import library

__all__ = ["main"]

_CHUNK = 256
"""Lines of stdin that are read before they are computed."""
_IMAGES = 64
"""The most images whose pixel values are in memory at a time."""
_INTERRUPTED = 130


def main() -> int:
    """Runs the command; returns its exit code."""
    asked = _parser().parse_args()
    try:
        if asked.serve:
            return _serve(asked.host, asked.port)
        return _check() if asked.check else _run(asked.item, _work(_model(), asked))
    except TernarizeError as e:
        _tell(f"error: {e}")
        if e.hint:
            _tell(f"  try: {e.hint}")
        return e.exit_code
    except BrokenPipeError:  # `… | head`: the reader has ended, which is no failure
        _drop_output()
        return 0
    except OSError as e:
        _tell(f"error: {e.strerror or e}" + (f": {e.filename}" if e.filename else ""))
        _drop_output()
        return 1
    except KeyboardInterrupt:
        _drop_output()
        return _INTERRUPTED


def _tell(text: str) -> None:
    """Prints a line on stderr, with escapes for what would move a terminal's cursor, as a file's name may."""
    with suppress(OSError):
        print("".join(c if c.isprintable() else ascii(c)[1:-1] for c in text), file=sys.stderr, flush=True)


def _drop_output() -> None:
    """Sends what is still to be written to stdout nowhere, so that Python does not try to write it when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _model() -> Encoder | Reranker | Classifier:
    kind = about()["kind"]
    return Encoder() if kind == "encoder" else Reranker() if kind == "reranker" else Classifier()


def _parser() -> argparse.ArgumentParser:
    kind, reads = about()["kind"], about()["reads"]
    what = "texts" if "text" in reads else "files of images"
    parser = argparse.ArgumentParser(
        prog=PACKAGE.name, description=f"Prints a line of JSON for each of some {what}.", allow_abbrev=False
    )
    parser.add_argument("item", nargs="*", help=f"the {what}; without any, each line of stdin is one")
    if kind == "encoder":
        parser.add_argument("--dimensions", metavar="N", type=int, help="leading dimensions of a vector that are kept")
    if kind == "encoder" and "text" in reads:
        parser.add_argument("--prompt-name", metavar="NAME", help="the prompt that is put before each text")
    if kind == "encoder" and reads == ["image", "text"]:
        parser.add_argument("--images", action="store_true", help="the arguments or lines are files of images")
    if kind == "reranker":
        parser.add_argument("--query", metavar="TEXT", help="the text that each is scored with")
    parser.add_argument(
        "--check", action="store_true", help="compare the model's files and some results with what was packed, and exit"
    )
    parser.add_argument(
        "--serve",
        action="store_true",
        help=f"serve over HTTP; needs {PACKAGE.name}[serve]. If TERNARIZE_API_KEY is set, only requests with that key "
        "are answered",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to serve on; default: %(default)s")
    parser.add_argument("--port", type=int, default=8080, help="the port to serve on; default: %(default)s")
    return parser


def _work(model: Encoder | Reranker | Classifier, asked: argparse.Namespace) -> Callable[[list[str]], Iterator[str]]:
    """Returns what makes of some texts or files the JSON behind the id of each."""
    if isinstance(model, Classifier):
        return lambda items: (_object(model.labels, row) for row in model.classify(items))
    if isinstance(model, Reranker):
        if asked.query is None:
            raise InputError("there is nothing to score the texts with", hint="--query TEXT")
        return lambda items: (_scored(model, row) for row in model.score([(asked.query, item) for item in items]))
    if "text" not in model.reads or getattr(asked, "images", False):
        return lambda items: map(_vector, _of_images(model, items, asked.dimensions))
    return lambda items: map(_vector, model.encode(items, prompt_name=asked.prompt_name, dimensions=asked.dimensions))


def _run(items: Sequence[str], work: Callable[[list[str]], Iterator[str]]) -> int:
    waiting = iter(items or _lines())
    number = 0
    while some := list(islice(waiting, _CHUNK)):
        for made in work(some):
            number += 1
            print(f'{{"id": "{number}", {made}}}')
        sys.stdout.flush()
    return 0


def _lines() -> Iterator[str]:
    """Yields the lines of stdin.

    Raises:
        InputError: a line is not UTF-8.
    """
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode().rstrip("\r\n")
        except UnicodeDecodeError as e:
            raise InputError(f"line {number} of stdin is not UTF-8: {reason(e)}", hint="iconv -t utf-8") from e


def _numbers(values: np.ndarray) -> str:
    """Writes numbers with the fewest digits from which a float32 comes back bit for bit."""
    return ", ".join(map(str, values))


def _vector(row: np.ndarray) -> str:
    return f'"vector": [{_numbers(row)}]'


def _object(labels: Sequence[str], row: np.ndarray) -> str:
    pairs = (f"{json.dumps(label)}: {value}" for label, value in zip(labels, map(str, row), strict=True))
    return f'"scores": {{{", ".join(pairs)}}}'


def _scored(model: Reranker, row: Any) -> str:
    return _object(model.labels, row) if np.ndim(row) else f'"score": {row}'


def _of_images(model: Encoder, paths: Sequence[str], dimensions: int | None) -> Iterator[np.ndarray]:
    """Yields the vector of each of some files of images: float32 `[dimensions]`.

    Raises:
        InputError: a file can't be read, is no image, or its image would become too large; the message names the file.
    """
    for start in range(0, len(paths), _IMAGES):
        pixels = [_pixels(model, path) for path in paths[start : start + _IMAGES]]
        yield from model.encode_pixels(pixels, dimensions=dimensions)


def _pixels(model: Encoder, path: str) -> np.ndarray:
    (made,) = model.process_images([decoded_rgb(Path(path), path)], lambda _: path)
    return made


def _check() -> int:
    with reading():
        verify(FOLDER, always=True)
    model, stored, here = _model(), about(), library().chosen
    is_well, said = check(stored, results(model, stored["texts"]), here)
    print(f"{said}\ninstruction set: {stored['instruction_set']} when the package was made, {here} here", flush=True)
    return 0 if is_well else 1


def _serve(host: str, port: int) -> int:
    try:
        server = import_module(f"{__package__}.server")
    except ModuleNotFoundError as e:
        hint = f"pip install '{PACKAGE.name}[serve]'"
        raise UnavailableError(f"the server needs {e.name}, which is not installed", hint=hint) from e
    server.run(host, port)
    return 0
